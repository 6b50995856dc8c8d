"""The order in which experts take their tokens.

A pair is one token with one of its k choices: number `t * k + j`. `sort_pairs` lines the pairs up
by expert, each expert's share filled up to whole blocks of rows, without atomics: the order within
an expert is that of the pairs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from atom.ops.triton.launch import begin, pdl_options
from atom.ops.triton.support import next_power_of_2

SMALL = 4096  # pairs that one launch sorts: each program reads them all
_CHUNK = 512  # pairs of a program, where there are more


class Order(NamedTuple):
    """Pairs by expert, in blocks of `block_m` rows of one expert each.

    `places` [max_blocks * block_m] int32: the pair in each row, or `num_pairs` in rows that only
    fill a block up. `experts` [max_blocks] int32. Only the first `num_blocks` [1] int32 blocks are
    valid; the host knows no more than `max_blocks`.
    """

    places: Tensor
    experts: Tensor
    num_blocks: Tensor
    num_pairs: int
    block_m: int
    max_blocks: int


@triton.jit
def write_blocks(places, experts, expert, first, size, num_pairs, BLOCK_M: tl.constexpr):
    """One expert's blocks, of which `size` rows hold pairs: whose they are, and what fills up."""
    blocks = tl.cdiv(size, BLOCK_M)
    row = size + tl.arange(0, BLOCK_M)
    filling = places + first.to(tl.int64) * BLOCK_M + row
    tl.store(filling, tl.zeros_like(row) + num_pairs, mask=row < blocks * BLOCK_M)
    for block in range(0, blocks):
        tl.store(experts + first + block, expert)


@triton.jit
def sort_kernel(
    ids,
    places,
    experts,
    count,
    num_pairs,
    BLOCK_M: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_E: tl.constexpr,
    PDL: tl.constexpr,
):
    """Sorts all pairs, BLOCK_P at most: program e places those of expert e."""
    expert = tl.program_id(0)
    pairs = tl.arange(0, BLOCK_P)
    bins = tl.arange(0, BLOCK_E)
    begin(PDL)
    chosen = tl.load(ids + pairs, mask=pairs < num_pairs, other=-1)
    sizes = tl.histogram(tl.maximum(chosen, 0), BLOCK_E, mask=chosen >= 0)
    blocks = (sizes + (BLOCK_M - 1)) // BLOCK_M
    first = tl.sum(tl.where(bins < expert, blocks, 0))
    size = tl.sum(tl.where(bins == expert, sizes, 0))
    mine = chosen == expert
    at = tl.cumsum(mine.to(tl.int32), axis=0) - 1
    tl.store(places + first * BLOCK_M + at, pairs, mask=mine)
    write_blocks(places, experts, expert, first, size, num_pairs, BLOCK_M)
    if expert == 0:
        tl.store(count, tl.sum(blocks))


@triton.jit
def count_kernel(
    ids, counts, num_pairs, E, CHUNK: tl.constexpr, BLOCK_E: tl.constexpr, PDL: tl.constexpr
):
    """counts [chunks, E]: how many pairs of each chunk each expert has."""
    chunk = tl.program_id(0)
    pairs = chunk * CHUNK + tl.arange(0, CHUNK)
    bins = tl.arange(0, BLOCK_E)
    begin(PDL)
    chosen = tl.load(ids + pairs, mask=pairs < num_pairs, other=-1)
    sizes = tl.histogram(tl.maximum(chosen, 0), BLOCK_E, mask=chosen >= 0)
    tl.store(counts + chunk * E + bins, sizes, mask=bins < E)


@triton.jit
def place_kernel(
    counts,
    starts,
    places,
    experts,
    count,
    num_pairs,
    num_chunks,
    E,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_E: tl.constexpr,
    PDL: tl.constexpr,
):
    """starts [chunks, E]: the row at which each chunk's pairs of an expert begin; program e."""
    expert = tl.program_id(0)
    bins = tl.arange(0, BLOCK_E)
    some = tl.arange(0, BLOCK_C)
    begin(PDL)
    sizes = tl.zeros((BLOCK_E,), dtype=tl.int32)
    for chunk in range(0, num_chunks, BLOCK_C):
        mask = (chunk + some < num_chunks)[:, None] & (bins < E)[None, :]
        rows = counts + (chunk + some)[:, None] * E + bins[None, :]
        sizes += tl.sum(tl.load(rows, mask=mask, other=0), axis=0)
    blocks = (sizes + (BLOCK_M - 1)) // BLOCK_M
    first = tl.sum(tl.where(bins < expert, blocks, 0))
    size = tl.sum(tl.where(bins == expert, sizes, 0))
    row = first * BLOCK_M
    for chunk in range(0, num_chunks, BLOCK_C):
        mask = chunk + some < num_chunks
        column = (chunk + some) * E + expert
        own = tl.load(counts + column, mask=mask, other=0)
        tl.store(starts + column, row + tl.cumsum(own, axis=0) - own, mask=mask)
        row += tl.sum(own)
    write_blocks(places, experts, expert, first, size, num_pairs, BLOCK_M)
    if expert == 0:
        tl.store(count, tl.sum(blocks))


@triton.jit
def scatter_kernel(
    ids,
    starts,
    places,
    num_pairs,
    E,
    CHUNK: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_E: tl.constexpr,
    PDL: tl.constexpr,
):
    """A chunk's pairs into their rows, BLOCK_P at a time: where the expert's share begins, and the
    pairs of the same expert before."""
    chunk = tl.program_id(0)
    here = tl.arange(0, BLOCK_P)
    bins = tl.arange(0, BLOCK_E)
    begin(PDL)
    rows = tl.load(starts + chunk * E + bins, mask=bins < E, other=0)
    for start in range(0, CHUNK, BLOCK_P):
        pairs = chunk * CHUNK + start + here
        chosen = tl.load(ids + pairs, mask=pairs < num_pairs, other=-1)
        bin_of = tl.maximum(chosen, 0)
        before = (chosen[:, None] == chosen[None, :]) & (here[:, None] > here[None, :])
        row = tl.gather(rows, bin_of, axis=0) + tl.sum(before.to(tl.int32), axis=1)
        tl.store(places + row, pairs, mask=chosen >= 0)
        rows += tl.histogram(bin_of, BLOCK_E, mask=chosen >= 0)


def max_blocks_of(num_pairs: int, num_experts: int, block_m: int) -> int:
    """Blocks at most, however the pairs are shared out."""
    touched = min(num_pairs, num_experts)
    return touched + (num_pairs - touched) // block_m


def sort_pairs(ids: Tensor, num_experts: int, block_m: int) -> Order:
    """ids [T, k] int32, contiguous, -1 = elsewhere, which is left out."""
    num_pairs, device = ids.numel(), ids.device
    max_blocks = max_blocks_of(num_pairs, num_experts, block_m)
    space = torch.empty(max_blocks * (block_m + 1) + 1, dtype=torch.int32, device=device)
    places, experts = space[: max_blocks * block_m], space[max_blocks * block_m : -1]
    order = Order(places, experts, space[-1:], num_pairs, block_m, max_blocks)
    if num_pairs <= SMALL:
        _sort_small(ids, order, num_experts)
    else:
        _sort_large(ids, order, num_experts)
    return order


def _sort_small(ids: Tensor, order: Order, num_experts: int) -> None:
    options = pdl_options(ids.device)
    sort_kernel[(num_experts,)](
        ids,
        order.places,
        order.experts,
        order.num_blocks,
        order.num_pairs,
        BLOCK_M=order.block_m,
        BLOCK_P=max(32, next_power_of_2(order.num_pairs)),
        BLOCK_E=max(32, next_power_of_2(num_experts)),
        PDL=bool(options),
        num_warps=4 if order.num_pairs <= 1024 else 8,
        **options,
    )


def _sort_large(ids: Tensor, order: Order, num_experts: int) -> None:
    options = pdl_options(ids.device)
    chunks = triton.cdiv(order.num_pairs, _CHUNK)
    counts = torch.empty(2, chunks, num_experts, dtype=torch.int32, device=ids.device)
    bins = max(32, next_power_of_2(num_experts))
    common = {"PDL": bool(options), **options}
    count_kernel[(chunks,)](
        ids, counts[0], order.num_pairs, num_experts, CHUNK=_CHUNK, BLOCK_E=bins, **common
    )
    place_kernel[(num_experts,)](
        counts[0],
        counts[1],
        order.places,
        order.experts,
        order.num_blocks,
        order.num_pairs,
        chunks,
        num_experts,
        BLOCK_M=order.block_m,
        BLOCK_C=max(1, 8192 // bins),
        BLOCK_E=bins,
        num_warps=8,
        **common,
    )
    scatter_kernel[(chunks,)](
        ids,
        counts[1],
        order.places,
        order.num_pairs,
        num_experts,
        CHUNK=_CHUNK,
        BLOCK_P=128,
        BLOCK_E=bins,
        num_warps=4,
        **common,
    )
