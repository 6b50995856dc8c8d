"""Logits to token ids on a device, without a sort and without looking at a value on the host.

A draw takes two launches: `chunk_stats` (maximum and sum of weights of each chunk of a row) and
`draw` (a chunk by the sums, then a token in it). min_p adds a launch that sums what passes it.

top_k and top_p are thresholds. The maxima of groups of 64 logits tell a value that the threshold is
not below, and which groups have something from there on (`bound`); these alone are read again, into
the registers of one program, and bisected (`threshold`), exactly. Where that would be most groups,
as for a top_p of flat logits, two rounds (`narrow`) measure what is above 16 values instead, each
keeps the gap that the threshold is in, and what is left there is listed (`collect`). A pass over
the vocabulary is spread over the chunks of all rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from atom.ops.sampling_row import WORDS, Kinds
from atom.ops.triton import sampling_filters as filters
from atom.ops.triton import sampling_kernels as kernels
from atom.ops.triton import support
from atom.ops.triton.argmax import argmax
from atom.ops.triton.launch import pdl_options

__all__ = ["argmax", "sample"]

_CHUNK = 4096
_GROUPS = 64  # of a chunk, whose maxima are kept
_WARPS = 4  # of a program that has a chunk and reduces it often
_STREAM_WARPS = 8  # of one that mostly reads it
_PIVOTS = 16
_LISTED = 16384  # logits of a row that one program holds in registers
_SMALL = 2048  # the same, of rows that have no more


def sample(logits: Tensor, settings: Tensor, kinds: Kinds) -> Tensor:
    """[L] int64 token ids from logits [L, V] float32, which are left as they are.

    settings [L, WORDS] int32 are rows of `sampling_row.ROW`, and `kinds` says what is among them.
    """
    num_rows, size = logits.shape
    assert settings.shape == (num_rows, WORDS), settings.shape
    out = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    if num_rows == 0:
        return out
    num_chunks = -(-size // _CHUNK)
    chunks = support.next_power_of_2(num_chunks)
    new, shape = logits.new_empty, (num_rows, num_chunks)
    keys = torch.empty(shape, dtype=torch.int64, device=logits.device)
    sums = new(shape)
    least, peaks = (new(shape), new((*shape, _GROUPS))) if kinds.searched else (sums, sums)
    floors = new(num_rows) if kinds.floored or kinds.searched else sums
    options = pdl_options(logits.device)
    pdl = bool(options)
    grid, stride = (num_rows, num_chunks), logits.stride(0)
    kernels.chunk_stats_kernel[grid](
        logits, settings, keys, sums, least, peaks, stride, size, num_chunks, CHUNK=_CHUNK,
        GROUPS=_GROUPS, SEARCH=kinds.searched, PDL=pdl, num_warps=_STREAM_WARPS, **options,
    )  # fmt: skip
    numbers, narrow = keys, False
    if kinds.searched:
        # As many groups as top_k are read again, and a few more where logits are equal.
        narrow = kinds.open_top_p or kinds.max_top_k * (_CHUNK // _GROUPS) > 0.75 * _LISTED
        numbers = _search(logits, settings, keys, sums, least, peaks, floors, narrow)
    if kinds.floored or narrow:
        kernels.mass_kernel[grid](
            logits, settings, keys, numbers, floors, sums, stride, size, num_chunks, CHUNK=_CHUNK,
            CHUNKS=chunks, SEARCH=kinds.searched, PDL=pdl, num_warps=_WARPS, **options,
        )  # fmt: skip
    kernels.draw_kernel[(num_rows,)](
        logits, settings, keys, sums, floors, out, stride, size, num_chunks, CHUNK=_CHUNK,
        CHUNKS=chunks, LINE=min(64, _CHUNK // 4), FILTERS=kinds.floored or kinds.searched,
        PDL=pdl, num_warps=8, **options,
    )  # fmt: skip
    return out


def _search(
    logits: Tensor,
    settings: Tensor,
    keys: Tensor,
    sums: Tensor,
    least: Tensor,
    peaks: Tensor,
    floors: Tensor,
    narrow: bool,
) -> Tensor:
    """Write floors [L] of the rows that have top_k or top_p, and the sums of those that are not
    narrowed. [L] int32: 0 of those that are."""
    (num_rows, num_chunks), size, stride = keys.shape, logits.shape[1], logits.stride(0)
    chunks, group = support.next_power_of_2(num_chunks), _CHUNK // _GROUPS
    most, capacity = _LISTED // group, max(64, min(_CHUNK, _LISTED // chunks))
    new, device = logits.new_empty, logits.device
    state = torch.empty((3, num_rows, 4), dtype=torch.float64, device=device)
    numbers = torch.empty(num_rows, dtype=torch.int32, device=device)
    members = torch.empty((num_rows, most), dtype=torch.int32, device=device)
    found, counts = sums, members
    options: dict[str, Any] = dict(pdl_options(device))
    shared = {"CHUNKS": chunks, "PDL": bool(options), **options}
    filters.bound_kernel[(num_rows,)](
        settings, keys, sums, peaks, state, numbers, members, num_rows, num_chunks, GROUPS=_GROUPS,
        ALL=chunks * _GROUPS, MEMBERS=most, NARROW=narrow, num_warps=8, **shared,
    )  # fmt: skip
    if narrow:
        pivots = new((2, num_rows, _PIVOTS))
        partials = new((2, num_rows, num_chunks, _PIVOTS))
        found = new((num_rows, num_chunks, capacity))
        counts = torch.empty((num_rows, num_chunks), dtype=torch.int32, device=device)
        for number in range(2):
            filters.narrow_kernel[(num_rows, num_chunks)](
                logits, settings, keys, least, state, numbers, pivots, partials, stride, size,
                num_rows, num_chunks, CHUNK=_CHUNK, PIVOTS=_PIVOTS, ROUND=number,
                num_warps=_WARPS, **shared,
            )  # fmt: skip
        filters.collect_kernel[(num_rows, num_chunks)](
            logits, settings, state, numbers, pivots, partials, found, counts, stride, size,
            num_rows, num_chunks, CHUNK=_CHUNK, PIVOTS=_PIVOTS, CAPACITY=capacity,
            num_warps=_STREAM_WARPS, **shared,
        )  # fmt: skip
    filters.threshold_kernel[(num_rows,)](
        logits, settings, keys, state, numbers, members, found, counts, floors, sums, stride, size,
        num_rows, num_chunks, CHUNK=_CHUNK, GROUPS=_GROUPS, MEMBERS=most,
        SMALL=min(most, _SMALL // group), CAPACITY=capacity, NARROW=narrow, num_warps=16, **shared,
    )  # fmt: skip
    return numbers
