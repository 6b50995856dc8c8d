"""Logits to token ids on a device, without a sort and without looking at a value on the host.

A draw takes two launches: `chunk_stats` (maximum and sum of weights of each chunk of a row) and
`draw` (a chunk by the sums, then a token in it). min_p adds a threshold and the sums of what passes
it. top_k and top_p are thresholds too, of count and of weight. Two rounds measure what is above 16
logits and each time keep the gap that the threshold is in; what is left, some thousands at most
unless many logits are equal, is listed and bisected in the registers of one program. Every pass is
spread over the chunks of all rows; greedy and plain rows leave the filters' launches at once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from atom.ops.sampling_row import WORDS
from atom.ops.triton import sampling_kernels as kernels
from atom.ops.triton import support
from atom.ops.triton.argmax import argmax
from atom.ops.triton.launch import pdl_options

__all__ = ["argmax", "sample"]

_CHUNK = 4096
_WARPS = 4  # of a program that has a chunk
_PIVOTS = 16
_LISTED = 16384  # logits of a row that one program holds in registers


def sample(logits: Tensor, params: Tensor, *, filters: bool, search: bool) -> Tensor:
    """[L] int64 token ids from logits [L, V] float32, which are left as they are.

    params [L, 8] int32 are rows of `sampling_row.ROW`. `filters`: some row has one; `search`: some
    row has top_k or top_p. Rows beyond L in `params` are not looked at.
    """
    num_rows, size = logits.shape
    assert params.shape[1] == WORDS, params.shape
    out = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    if num_rows == 0:
        return out
    num_chunks = -(-size // _CHUNK)
    chunks = support.next_power_of_2(num_chunks)
    new, shape = logits.new_empty, (num_rows, num_chunks)
    keys = new(shape, dtype=torch.int64)
    sums, least = new(shape), new(shape)
    floors = new(num_rows) if filters else sums
    options = dict(pdl_options(logits.device))
    pdl = bool(options)
    grid, stride = (num_rows, num_chunks), logits.stride(0)
    kernels.chunk_stats_kernel[grid](
        logits, params, keys, sums, least, stride, size, num_chunks,
        CHUNK=_CHUNK, PDL=pdl, num_warps=_WARPS, **options,
    )  # fmt: skip
    if filters:
        _find_floors(logits, params, keys, least, floors, search)
        kernels.mass_kernel[grid](
            logits, params, keys, floors, sums, stride, size, num_chunks,
            CHUNK=_CHUNK, CHUNKS=chunks, PDL=pdl, num_warps=_WARPS, **options,
        )  # fmt: skip
    kernels.draw_kernel[(num_rows,)](
        logits, params, keys, sums, floors, out, stride, size, num_chunks,
        CHUNK=_CHUNK, CHUNKS=chunks, FILTERS=filters, PDL=pdl, num_warps=8, **options,
    )  # fmt: skip
    return out


def _find_floors(
    logits: Tensor, params: Tensor, keys: Tensor, least: Tensor, floors: Tensor, search: bool
) -> None:
    """Write floors [L] of the rows that have a filter."""
    (num_rows, num_chunks), size, stride = keys.shape, logits.shape[1], logits.stride(0)
    chunks = support.next_power_of_2(num_chunks)
    capacity = max(64, min(_CHUNK, _LISTED // chunks))
    new = logits.new_empty
    state = new((3, num_rows, 4), dtype=torch.float64)
    found = counts = floors
    options = dict(pdl_options(logits.device))
    pdl = bool(options)
    if search:
        pivots = new((2, num_rows, _PIVOTS))
        partials = new((2, num_rows, num_chunks, _PIVOTS))
        found = new((num_rows, num_chunks, capacity))
        counts = new((num_rows, num_chunks), dtype=torch.int32)
        for number in range(2):
            kernels.narrow_kernel[(num_rows, num_chunks)](
                logits, params, keys, least, state, pivots, partials, stride, size, num_rows,
                num_chunks, CHUNK=_CHUNK, CHUNKS=chunks, PIVOTS=_PIVOTS, ROUND=number, PDL=pdl,
                num_warps=_WARPS, **options,
            )  # fmt: skip
        kernels.collect_kernel[(num_rows, num_chunks)](
            logits, params, state, pivots, partials, found, counts, stride, size, num_rows,
            num_chunks, CHUNK=_CHUNK, CHUNKS=chunks, PIVOTS=_PIVOTS, CAPACITY=capacity, PDL=pdl,
            num_warps=_WARPS, **options,
        )  # fmt: skip
    kernels.threshold_kernel[(num_rows,)](
        logits, params, keys, state, found, counts, floors, stride, size, num_rows, num_chunks,
        CHUNK=_CHUNK, CHUNKS=chunks, CAPACITY=capacity, PDL=pdl, num_warps=16, **options,
    )  # fmt: skip
