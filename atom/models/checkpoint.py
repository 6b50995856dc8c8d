"""Where weights come from: safetensors, GGUF, or nowhere (dummy). Tensors are read lazily.

Reading returns views of the mapped file wherever it can: the one copy is made by the layer.
"""

from __future__ import annotations

import json
import math
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from atom.errors import ModelError
from atom.layers.weights import ALL, CheckpointTensor
from atom.models.gguf import QUANT_TYPES, GGUFFile, GGUFTensor
from atom.models.gguf_names import ROPE_FREQS, module_name
from atom.ops.contracts import GGUFWeight
from atom.ops.reference.gguf import dequantize

_DENSE = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_BLOCKS = {kind.name: kind for kind in QUANT_TYPES.values()}
_BYTES = torch.uint8


class SafetensorsTensor:
    __slots__ = ("_slice", "name", "shape")

    def __init__(self, name: str, piece: Any) -> None:
        self.name = name
        self.shape: tuple[int, ...] = tuple(piece.get_shape())
        self._slice = piece

    def read(self, rows: slice = ALL, cols: slice = ALL) -> Tensor:
        return self.dense(*(rows, cols)[: len(self.shape)])

    def dense(self, *index: slice) -> Tensor:
        part: Tensor = self._slice[index]
        if not part.is_floating_point() or part.element_size() < 2:
            raise ModelError(
                f"{self.name} is stored as {part.dtype}: quantised safetensors are not supported"
            )
        return part

    def packed(self, *index: slice) -> Tensor:
        part: Tensor = self._slice[index]
        if part.dtype != _BYTES:
            raise ModelError(f"{self.name} is stored as {part.dtype}: this format has bytes")
        return part

    def integers(self, limit: int) -> Tensor:
        values: Tensor = self._slice[:]
        if values.is_floating_point() or not 0 <= int(values.min()) <= int(values.max()) < limit:
            raise ModelError(f"{self.name} must hold integers from 0 to {limit - 1}")
        return values


def _shards(folder: Path) -> list[Path]:
    """The files of a checkpoint: those its index names, else what lies there."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ModelError(f"{index} is not an index of safetensors files") from None
        files = [folder / Path(name).name for name in names]
        if gone := [file.name for file in files if not file.exists()]:
            more = f" and {len(gone) - 1} more files, which are" if len(gone) > 1 else ", which is"
            raise ModelError(
                f"{index.name} names {gone[0]}{more} not in {folder}: finish the download"
            )
        return files
    single = folder / "model.safetensors"
    files = [single] if single.exists() else sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(f"no .safetensors file in {folder}")
    return files


def open_safetensors(folder: Path) -> Iterator[CheckpointTensor]:
    """Every tensor of a checkpoint, in file order."""
    for file in _shards(folder):
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 (not a mapping)
                    yield SafetensorsTensor(name, opened.get_slice(name))
        except (SafetensorError, OSError) as error:
            reason = str(error).splitlines()[0]
            hint = ": is it cut short? fetch it again" if "header" in reason else ""
            raise ModelError(f"cannot read {file}: {reason}{hint}") from None


def _as_tensor(data: NDArray[Any]) -> Tensor:
    with warnings.catch_warnings():  # the map is read-only, and nobody writes to weights
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(data)


class GGUFCheckpointTensor:
    """`heads` > 0: rows of each head lie interleaved (llama.cpp's rotary order) and are put back
    into halves, which packed blocks allow because rows are independent."""

    __slots__ = ("_heads", "_tensor", "name", "shape")

    def __init__(self, name: str, tensor: GGUFTensor, heads: int = 0) -> None:
        self.name = name
        self.shape = tensor.shape
        self._tensor = tensor
        self._heads = heads

    def read(self, rows: slice = ALL, cols: slice = ALL) -> Tensor | GGUFWeight:
        qtype = self._tensor.qtype
        if len(self.shape) == 1 and qtype not in _DENSE:
            raise ModelError(f"{self.name}: a vector of type {qtype} is not supported")
        data = self._ordered(self._tensor.data, rows)
        if len(self.shape) == 1:
            return _dense(qtype, data).flatten()
        if qtype in _DENSE:
            return _dense(qtype, data)[:, cols]
        start, stop, _ = cols.indices(self.shape[1])
        kind = _BLOCKS[qtype]
        if start % kind.block or stop % kind.block:
            return dequantize(GGUFWeight(qtype, _as_tensor(data), (len(data), self.shape[1])))[
                :, cols
            ]
        unit = kind.block_bytes
        blocks = data[:, start // kind.block * unit : stop // kind.block * unit]
        return GGUFWeight(qtype, _as_tensor(blocks), (len(data), stop - start))

    def dense(self, *index: slice) -> Tensor:
        assert not self._heads, "only matrices are in rotary order"
        data = self._tensor.data[tuple(index[:-1])]
        return _dense(self._tensor.qtype, data, self.shape[-1])[..., index[-1]]

    def packed(self, *index: slice) -> Tensor:
        raise ModelError(f"{self.name}: GGUF blocks are not those of safetensors")

    def integers(self, limit: int) -> Tensor:
        raise ModelError(f"{self.name}: a GGUF tensor of integers is not supported")

    def _ordered(self, data: NDArray[np.uint8], rows: slice) -> NDArray[np.uint8]:
        """Some rows (whole heads of a tensor in rotary order); of a vector, some values."""
        if len(self.shape) == 1:  # bytes of values that are rows
            data = data.reshape(self.shape[0], -1)
        data = data[rows]
        if not self._heads:
            return data
        dim = self.shape[0] // self._heads
        pairs = data.reshape(-1, dim // 2, 2, data.shape[-1])
        halves: NDArray[np.uint8] = pairs.swapaxes(1, 2).reshape(data.shape)
        return halves


def _dense(qtype: str, data: NDArray[np.uint8], size: int = 0) -> Tensor:
    """[..., row_bytes] uint8 -> [..., K]; `size` is K, needed for block types only."""
    if qtype in _DENSE:
        return _as_tensor(data).view(_DENSE[qtype])
    flat = _as_tensor(data.reshape(-1, data.shape[-1]))
    values = dequantize(GGUFWeight(qtype, flat, (len(flat), size)))
    return values.view(*data.shape[:-1], size)


def open_gguf(file: GGUFFile, num_heads: int, num_kv_heads: int) -> Iterator[CheckpointTensor]:
    """Every tensor of a file under our names; unknown ones keep theirs."""
    rotary_order = file.metadata.get("general.architecture") == "llama"
    for tensor in file.tensors.values():
        if tensor.name == ROPE_FREQS:
            continue
        name = module_name(tensor.name) or tensor.name
        heads = {"q_proj": num_heads, "k_proj": num_kv_heads}.get(name.split(".")[-2:][0], 0)
        yield GGUFCheckpointTensor(name, tensor, heads if rotary_order else 0)


@dataclass(frozen=True, slots=True)
class DummyTensor:
    """Random values that depend on seed and name only; norms are one."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    seed: int
    std: float = 0.02

    def read(self, rows: slice = ALL, cols: slice = ALL) -> Tensor:
        return self.dense(*(rows, cols)[: len(self.shape)])

    def dense(self, *index: slice) -> Tensor:
        if len(self.shape) == 1 and self.name.endswith("norm.weight"):
            return torch.ones(self.shape, dtype=self.dtype, device=self.device)[index]
        generator = torch.Generator(self.device)
        # One hash of both: the CPU's generator looks at 32 bits of its seed only.
        generator.manual_seed(zlib.crc32(f"{self.seed} {self.name}".encode()))
        values = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        return values.normal_(0.0, self.std, generator=generator)[index]

    def packed(self, *index: slice) -> Tensor:
        """Bytes; of scales, those that make values of about `std`."""
        if self.name.endswith("scales"):
            scale = torch.full(self.shape, 127 - 7, dtype=torch.uint8, device=self.device)
            return scale[index]
        generator = torch.Generator(self.device)
        generator.manual_seed(zlib.crc32(f"{self.seed} {self.name}".encode()))
        values = torch.empty(self.shape, dtype=torch.uint8, device=self.device)
        return values.random_(0, 256, generator=generator)[index]

    def integers(self, limit: int) -> Tensor:
        """Counting up, row after row: a row of no more than `limit` names nothing twice."""
        return (torch.arange(math.prod(self.shape), device=self.device) % limit).view(self.shape)
