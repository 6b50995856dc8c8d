"""Rows of the embedding table by token id."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from atom.ops.contracts import PackedLinear
from atom.ops.registry import OpQuery, register
from atom.ops.triton import support
from atom.ops.triton.elementwise import declines
from atom.ops.triton.launch import begin

_FORMATS = ("bfloat16", "float16", "float32")


def _declines(query: OpQuery) -> str | None:
    if query.weight_format not in _FORMATS:
        return f"weight format {query.weight_format} is not one of {', '.join(_FORMATS)}"
    return declines(query)


@triton.jit
def embedding_kernel(
    ids, weight, out, weight_stride, K: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    begin(PDL)
    token = tl.program_id(0).to(tl.int64)
    row = tl.load(ids + token).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = cols < K
    values = tl.load(weight + row * weight_stride + cols, mask=inside, other=0.0)
    tl.store(out + token * K + cols, values.to(out.dtype.element_ty), mask=inside)


def _lookup(ids: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    size = weight.shape[1]
    out = torch.empty((len(ids), size), dtype=dtype, device=ids.device)
    if len(ids) == 0:
        return out
    block = min(1024, support.next_power_of_2(size))
    # Not a dependent launch: attention reads lengths and block tables before it waits for the
    # kernel before it. In a captured step they are written just before this lookup, and are there
    # for all that comes after because this one starts only when that has ended.
    embedding_kernel[(len(ids), -(-size // block))](
        ids,
        weight,
        out,
        weight.stride(0),
        K=size,
        BLOCK=block,
        PDL=False,
        num_warps=max(1, block // 256),
    )
    return out


def _table(weight: Tensor | PackedLinear) -> Tensor:
    """A tied head's pack keeps the rows in its `weight` as they are."""
    table = weight if isinstance(weight, Tensor) else getattr(weight, "weight", None)
    assert isinstance(table, Tensor), f"{type(weight).__name__} keeps no dense rows to look up"
    assert table.dim() == 2, table.shape
    assert table.stride(1) == 1, table.stride()
    return table


def embedding(ids: Tensor, weight: Tensor | PackedLinear, dtype: torch.dtype) -> Tensor:
    """ids [T] int64 in range -> [T, K] of `dtype`."""
    return _lookup(ids, _table(weight), dtype)


_traced_lookup = support.define(
    "embedding(Tensor ids, Tensor weight, ScalarType dtype) -> Tensor",
    _lookup,
    lambda ids, weight, dtype: weight.new_empty((ids.shape[0], weight.shape[1]), dtype=dtype),
)


def embedding_traced(ids: Tensor, weight: Tensor | PackedLinear, dtype: torch.dtype) -> Tensor:
    """As `embedding`, where a compiler looks on."""
    out: Tensor = _traced_lookup(ids, _table(weight), dtype)
    return out


register("embedding", "triton", _declines, traced=embedding_traced)(embedding)
