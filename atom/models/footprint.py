"""What a model takes, from its configuration and file headers alone: weights, caches.

Reads no weights and imports no torch, so that `atom doctor` and `atom recipe check` can plan for a
model that this machine could never load.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from atom.models.gguf import GGUFFile
from atom.models.hf_config import HFConfig
from atom.models.inventory import (
    Tensors,
    caches,
    expert_size,
    mtp_tensors,
    num_experts,
    tensors,
)
from atom.models.inventory_types import COPY, EMBEDDING, EXPERTS, SEQUENCE, TOKEN, WINDOW
from atom.models.source import ModelSource
from atom.models.stored import DTYPE_BYTES, Scheme, scheme_of, stored_dtype


@dataclass(frozen=True, slots=True)
class Footprint:
    """`weight_bytes` as held in memory under the dtype asked for. `weights_from` says how known."""

    parameters: int
    weight_bytes: int
    weights_from: str
    kv_bytes_per_token: int
    max_model_len: int | None  # the model's own limit


class CacheUse(NamedTuple):
    """Bytes over all layers of one kind of cache on one rank: of a token (on average, where one
    entry stands for several), of a token of the window, or of a sequence (`lives`)."""

    name: str
    lives: str
    bytes: float
    window: int
    layers: int
    kept: int  # tokens of a block whose values are kept; 0: all

    def of_block(self, block_size: int) -> float:
        """Bytes of a block, or of a sequence's slot."""
        if self.lives == SEQUENCE:
            return self.bytes
        return self.bytes * min(block_size, self.kept or block_size)


def footprint(
    source: ModelSource,
    dtype: str,
    kv_dtype: str,
    *,
    keep_stored: bool,
    packed: bool = True,
    ranks: int = 1,
) -> Footprint:
    """What one of `ranks` holds. `dtype` and `kv_dtype` are torch names. `keep_stored`: weights
    stay in their stored form; `packed`: those that are quantised do."""
    config = source.config
    if source.format == "gguf":
        parameters, stored = _gguf_sizes(GGUFFile(source.path))
        known = "the file"
        size = (stored if keep_stored else parameters * DTYPE_BYTES[dtype]) // ranks
    else:
        parameters, known = count_parameters(config), "the configuration"
        held = stored_dtype(config) if keep_stored else dtype
        size = weight_bytes(config, held, ranks=ranks, packed=packed)
    limit = config.get("max_position_embeddings")
    uses = cache_uses(config, kv_dtype, dtype, ranks=ranks)
    return Footprint(
        parameters=parameters,
        weight_bytes=size,
        weights_from=known,
        kv_bytes_per_token=math.ceil(sum(use.bytes for use in uses if use.lives == TOKEN)),
        max_model_len=limit if isinstance(limit, int) else None,
    )


def count_parameters(config: HFConfig, *, mtp: bool = False) -> int:
    """Parameters of the language model; `mtp`: those of its multi-token prediction instead.

    Copies of embedding and head are not counted, nor are tables of integers.
    """
    found = mtp_tensors(config) if mtp else tensors(config)
    return sum(t.parameters for t in found if t.group != COPY and t.dtype != "int64")


def active_parameters(config: HFConfig) -> int:
    """Parameters that a token is computed with, as model cards count: of the experts those it is
    sent to, and no embedding but where that is the output head, too."""
    top_k = config.get("num_experts_per_tok") or 0
    total = 0
    for t in tensors(config):
        looked_up = t.group == EMBEDDING and "head" not in t.name and not config.tie_word_embeddings
        if not looked_up and t.dtype != "int64":
            share = top_k / num_experts(config) if t.group == EXPERTS else 1
            total += int(t.parameters * share)
    return total


def weight_bytes(
    config: HFConfig, dtype: str, *, ranks: int = 1, mtp: bool = False, packed: bool = True
) -> int:
    """Bytes of the weights on one of `ranks` GPUs.

    `dtype` is that of tensors which are not quantised; without `packed`, all are of that dtype.
    `mtp`: with the multi-token-prediction layers.
    """
    scheme = scheme_of(config) if packed else None
    wanted: list[Iterable[Tensors]] = [tensors(config)]
    if mtp:
        wanted.append(t for t in mtp_tensors(config) if t.group != COPY)
    total = 0.0
    for group in wanted:
        for tensor in group:
            total += _bytes_of(tensor, scheme, dtype) / tensor.share(ranks)
    return math.ceil(total)


def _bytes_of(tensor: Tensors, scheme: Scheme | None, dtype: str) -> int:
    width = DTYPE_BYTES[tensor.dtype or dtype]
    return scheme.bytes_of(tensor, width) if scheme else tensor.parameters * width


def cache_uses(config: HFConfig, kv_dtype: str, dtype: str, *, ranks: int = 1) -> list[CacheUse]:
    """What one rank keeps between steps. `kv_dtype` and `dtype` (the activations') are torch
    names."""
    widths = {"kv": kv_dtype, "model": dtype, "float32": "float32"}
    return [
        CacheUse(
            need.name,
            need.lives,
            need.layers
            * need.values
            * DTYPE_BYTES[widths[need.dtype]]
            / need.ratio
            / min(ranks, need.ways),
            need.window,
            need.layers,
            need.kept,
        )
        for need in caches(config)
    ]


def bytes_of_rows(uses: Iterable[CacheUse], block_size: int) -> dict[str, int]:
    """`lives` -> bytes of a block (or of a sequence's slot) of all caches that live so."""
    total = {TOKEN: 0.0, WINDOW: 0.0, SEQUENCE: 0.0}
    for use in uses:
        total[use.lives] += use.of_block(block_size)
    return {lives: math.ceil(size) for lives, size in total.items()}


def kv_bytes_per_token(config: HFConfig, kv_dtype: str, dtype: str = "bfloat16") -> int:
    """What every token of a sequence adds over all layers, on all ranks together."""
    uses = cache_uses(config, kv_dtype, dtype)
    return math.ceil(sum(use.bytes for use in uses if use.lives == TOKEN))


def activation_bytes(config: HFConfig, tokens: int, samples: int, itemsize: int) -> int:
    """About what a step takes at its peak, over weights and caches: the widest MLP or the logits.

    An MLP holds its input, the residual, both halves of its inner activations and their product;
    sampling holds the logits and three arrays in float32 beside them.
    """
    hidden = config.positive_int("hidden_size")
    width = 2 * hidden
    if num_experts(config):
        top_k = int(config.positive_int("num_experts_per_tok"))
        width += top_k * (3 * expert_size(config) + hidden)
    else:
        width += 3 * config.positive_int("intermediate_size")
    logits = samples * config.vocab_size * (itemsize + 12)
    return max(tokens * width * itemsize, tokens * hidden * itemsize * 2 + logits)


def _gguf_sizes(file: GGUFFile) -> tuple[int, int]:
    """(parameters, bytes of the tensors)."""
    tensors = file.tensors.values()
    return sum(math.prod(t.shape) for t in tensors), sum(int(t.data.nbytes) for t in tensors)


def stored_format(source: ModelSource) -> str:
    """The format that most weight bytes have: a GGUF type such as Q4_1, or a dtype."""
    if source.format != "gguf":
        return source.config.dtype or "bfloat16"
    sizes: dict[str, int] = {}
    for tensor in GGUFFile(source.path).tensors.values():
        sizes[tensor.qtype] = sizes.get(tensor.qtype, 0) + int(tensor.data.nbytes)
    largest = max(sizes, key=lambda name: sizes[name])
    return {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}.get(largest, largest)
