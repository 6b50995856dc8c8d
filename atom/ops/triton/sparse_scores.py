"""Scores of index keys: what every query of a step thinks of every key that it sees.

A tile is BLOCK_Q query tokens of one sequence; a program scores BLOCK_N keys for all of a tile, so
that a key is read once for them. Tiles find their sequence on the device, as those of
`varlen_attention` do. Scores go to a workspace with a row per token of a tile. Tiles none of whose
queries has more keys than it takes are left out: their keys are not ranked.

Floor on an H200, decode, per sequence and block of a model: the index keys, 256 bytes a token (7 us
at 131072 tokens). A prefill computes 16 kFLOP for each pair of query and key of 64 index heads.
Not measured on a GPU yet.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from atom.ops.contracts import AttentionMetadata
from atom.ops.triton import support
from atom.ops.triton.launch import begin, pdl_options
from atom.ops.triton.varlen_attention import find_sequence


@triton.jit
def find_tile(
    tile, cu_seqlens, seq_lens, num_seqs, BLOCK_Q: tl.constexpr
):  # fmt: skip
    """(sequence, first query token of the step, how many queries of the sequence there are from it
    on, the first one's position): counts below 1 mean that there is no such tile."""
    # In a decode step a tile is a sequence.
    seq = tile if BLOCK_Q == 1 else find_sequence(cu_seqlens, tile, num_seqs, BLOCK_Q)
    start = tl.load(cu_seqlens + seq)
    count = tl.load(cu_seqlens + seq + 1) - start
    first = 0 if BLOCK_Q == 1 else (tile - (start // BLOCK_Q + seq)) * BLOCK_Q
    position = tl.load(seq_lens + seq) - count + first
    return seq, start + first, count - first, position


@triton.jit
def _load_query(
    q, weights, line, q_row, weight_row,
    HEADS: tl.constexpr, HEADS_PAD: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr,
):  # fmt: skip
    """Heads [D_PAD, HEADS_PAD] of a token, and their weights [1, HEADS_PAD] float32."""
    d, head = tl.arange(0, D_PAD)[:, None], tl.arange(0, HEADS_PAD)[None, :]
    mask = (d < D) & (head < HEADS)
    x = tl.load(q + line * q_row + head * D + d, mask=mask, other=0.0)
    w = tl.load(weights + line * weight_row + head, mask=head < HEADS, other=0.0)
    return x, w.to(tl.float32)


@triton.jit
def _score(keys, x, w, PRECISION: tl.constexpr):
    products = tl.dot(keys.to(x.dtype), x, input_precision=PRECISION)
    return tl.sum(tl.maximum(products, 0.0) * w, 1)


@triton.jit(do_not_specialize=["first_tile", "num_seqs", "table_row", "width"])
def index_scores_kernel(
    scores, q, weights, cache, block_table, cu_seqlens, seq_lens, first_tile, num_seqs,
    q_row, weight_row, cache_block, cache_slot, table_row, width,
    HEADS: tl.constexpr, HEADS_PAD: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr,
    TOP_K: tl.constexpr, BLOCK_SIZE: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (n, t): tile first_tile + t, and blocks of BLOCK_N keys from the n-th on, as
    far apart as there are programs for the tile."""
    row = tl.program_id(1)
    begin(PDL)
    seq, token, count, position = find_tile(
        first_tile + row, cu_seqlens, seq_lens, num_seqs, BLOCK_Q
    )
    queries = tl.minimum(count, BLOCK_Q)
    end = position + queries  # keys that the last query sees
    if (queries < 1) | (end <= TOP_K):
        return
    d = tl.arange(0, D_PAD)
    pages = block_table + seq.to(tl.int64) * table_row
    line = token.to(tl.int64)
    target = scores + (row * BLOCK_Q).to(tl.int64) * width
    if BLOCK_Q == 1:
        x, w = _load_query(q, weights, line, q_row, weight_row, HEADS, HEADS_PAD, D, D_PAD)
    for at in range(tl.program_id(0) * BLOCK_N, end, tl.num_programs(0) * BLOCK_N):
        key = at + tl.arange(0, BLOCK_N)
        live = key < end
        page = tl.load(pages + key // BLOCK_SIZE, mask=live, other=0).to(tl.int64)
        places = cache + page * cache_block + key % BLOCK_SIZE * cache_slot
        # A slot without a key may hold NaN; its score is not stored.
        keys = tl.load(places[:, None] + d[None, :], mask=(d < D)[None, :], other=0.0)
        if BLOCK_Q == 1:
            tl.store(target + key, _score(keys, x, w, PRECISION), mask=live)
        else:
            for i in range(queries):
                x, w = _load_query(
                    q, weights, line + i, q_row, weight_row, HEADS, HEADS_PAD, D, D_PAD
                )
                total = _score(keys, x, w, PRECISION)
                tl.store(target + tl.cast(i, tl.int64) * width + key, total, mask=live)


class Tiling(NamedTuple):
    """Query tokens of a tile, and how many tiles a step may have."""

    block_q: int
    tiles: int

    @classmethod
    def of(cls, meta: AttentionMetadata) -> Tiling:
        if meta.is_decode:
            return cls(1, meta.num_seqs)
        block_q = 8
        return cls(block_q, meta.num_tokens // block_q + meta.num_seqs)


def index_scores(
    scores: Tensor,
    q: Tensor,
    weights: Tensor,
    cache: Tensor,
    meta: AttentionMetadata,
    k: int,
    tiling: Tiling,
    first_tile: int,
) -> None:
    """scores [tiles * block_q, width] float32 of as many tiles from `first_tile` on; q, weights and
    cache as of op `index_topk`. What is not ranked is not written."""
    rows, width = scores.shape
    heads, dim = q.shape[1:]
    wide = q.element_size() > 2
    block_n = 32 if wide else 128
    # A step of short sequences may run in a graph for long ones: few programs that find no keys.
    tiles = rows // tiling.block_q
    most = (8 if tiling.block_q == 1 else 64) * support.num_sms(q.device.index or 0)
    blocks = min(triton.cdiv(meta.max_seq_len, block_n), max(most // tiles, 1))
    pdl = pdl_options(q.device)
    grid = (blocks, tiles)
    index_scores_kernel[grid](
        scores, q, weights, cache, meta.block_table, meta.cu_seqlens_q, meta.seq_lens, first_tile,
        meta.num_seqs, q.stride(0), weights.stride(0), *cache.stride()[:2],
        meta.block_table.stride(0), width,
        HEADS=heads, HEADS_PAD=max(16, support.next_power_of_2(heads)), D=dim,
        D_PAD=max(16, support.next_power_of_2(dim)), TOP_K=k, BLOCK_SIZE=cache.shape[1],
        BLOCK_Q=tiling.block_q, BLOCK_N=block_n, PRECISION="ieee" if wide else "tf32",
        PDL=bool(pdl), num_warps=4, num_stages=3 if tiling.block_q == 1 else 2, **pdl,
    )  # fmt: skip
