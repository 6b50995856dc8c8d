"""The files of a tiny checkpoint: random safetensors, and a tokenizer of bytes. No torch."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from atom.models.hf_config import HFConfig
from atom.models.inventory import mtp_tensors, num_experts, tensors
from atom.models.inventory_types import Tensors
from atom.models.stored import quantisation_of_weights, stored_dtype

SPECIALS = ("<|bos|>", "<|eos|>", "<|pad|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>")
CHAT_TEMPLATE = (
    "{{ '<|bos|>' }}{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
_NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "int64": "I64", "uint8": "U8"}
_SHARDS = 2


class _Stored(NamedTuple):
    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes


def write_weights(config: HFConfig, out: Path, seed: int) -> None:
    """Two shards and their index, of tensors whose values depend on seed and name only."""
    found = list(_values(config, seed))
    weight_map = {}
    for shard in range(_SHARDS):
        part = found[shard::_SHARDS]
        name = f"model-{shard + 1:05d}-of-{_SHARDS:05d}.safetensors"
        _write_safetensors(out / name, part)
        weight_map.update({tensor.name: name for tensor in part})
    index = {
        "metadata": {"total_size": sum(len(tensor.data) for tensor in found)},
        "weight_map": weight_map,
    }
    (out / "model.safetensors.index.json").write_text(json.dumps(index))


def _write_safetensors(path: Path, parts: list[_Stored]) -> None:
    """Eight bytes of length, a JSON header, then the tensors one after the other."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for part in parts:
        end = start + len(part.data)
        header[part.name] = {
            "dtype": part.dtype,
            "shape": list(part.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for part in parts:
            file.write(part.data)


def _values(config: HFConfig, seed: int) -> Iterator[_Stored]:
    dtype = stored_dtype(config)
    packed = quantisation_of_weights(config) == "mxfp4"
    for tensor in (*tensors(config), *mtp_tensors(config)):
        for number in range(tensor.number):
            name = tensor.name.format(number)
            random = np.random.default_rng(zlib.crc32(f"{seed} {name}".encode()))
            if packed and name.endswith(("gate_up_proj", "down_proj")) and "experts" in name:
                yield from _mxfp4(name, tensor.shape, random)
            elif tensor.dtype == "int64":
                rows = random.random((tensor.shape[0], num_experts(config))).argsort(axis=1)
                ids = np.ascontiguousarray(rows[:, : tensor.shape[1]].astype(np.int64))
                yield _Stored(name, "I64", tensor.shape, ids.tobytes())
            else:
                values = _random(name, tensor, random)
                kind = tensor.dtype or dtype
                yield _Stored(name, _NAMES[kind], tensor.shape, _encode(values, kind))


def _random(name: str, tensor: Tensors, random: np.random.Generator) -> NDArray[np.float32]:
    values = random.standard_normal(tensor.shape, dtype=np.float32)
    if name.endswith("A_log"):  # slow decay, so that a state is felt over a whole prompt
        decay: NDArray[np.float32] = np.log(random.random(tensor.shape, np.float32) * 0.9 + 0.05)
        return decay
    if len(tensor.shape) == 1:
        return 0.1 * values if "norm" not in name else 1.0 + 0.1 * values
    if "embed" in name:
        return values
    # Of stacked experts [E, in, out], the last is as large as the fan-in here.
    scale: NDArray[np.float32] = values * np.float32(tensor.shape[-1] ** -0.5)
    return scale


def _encode(values: NDArray[np.float32], dtype: str) -> bytes:
    if dtype == "float32":
        return values.tobytes()
    if dtype == "float16":
        return values.astype(np.float16).tobytes()
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # to nearest, ties to even
    return rounded.astype(np.uint16).tobytes()


def _mxfp4(name: str, shape: tuple[int, ...], random: np.random.Generator) -> Iterator[_Stored]:
    """[E, in, out] as blocks [E, out, in/32, 16] of two values a byte, and a scale each."""
    experts, inputs, outputs = shape
    blocks = (experts, outputs, inputs // 32, 16)
    data = random.integers(0, 256, blocks, dtype=np.uint8)
    yield _Stored(f"{name}_blocks", "U8", blocks, data.tobytes())
    scales = np.full(blocks[:-1], 127 - 5, dtype=np.uint8)  # values of about 0.1
    yield _Stored(f"{name}_scales", "U8", blocks[:-1], scales.tobytes())


def write_tokenizer(out: Path) -> None:
    """Byte-level: ids 0..255 are bytes in the order of GPT-2's alphabet, then the specials."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIALS])
    tokenizer.save(str(out / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIALS[0],
        "eos_token": SPECIALS[1],
        "pad_token": SPECIALS[2],
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=1))
