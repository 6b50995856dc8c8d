"""op `index_topk`: scores of all keys, then the k best of each row, exactly and in order.

A row of scores is cut into segments that a program holds in registers. It finds the k-th largest
score bit by bit, 32 times counting how many are no less, and keeps the k best in order of position.
What segments keep is a shorter row, for the next stage; a row of one segment is done. A score that
is not among the k best of its segment, of equals the first, is not among those of the row: the
result is exact, ties included. With segments of 16384 and k = 2048, 131072 keys take two stages,
the first one spread over eight multiprocessors. Not measured on a GPU yet.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from atom.ops.contracts import AttentionMetadata
from atom.ops.registry import OpQuery, register
from atom.ops.triton import elementwise, support
from atom.ops.triton.launch import begin, pdl_options
from atom.ops.triton.sparse_scores import Tiling, find_tile, index_scores

# Elements of the scores of the tiles that are worked on at a time: 64 MB, about what the L2 cache
# of an H200 holds, and 128 rows of 131072 keys keep it busy for a while.
WORKSPACE = 16 << 20
MOST_SEGMENT = 16384
MOST_ROWS = 32768  # of a grid's second axis there may be 65535
MOST_HEADS, MOST_DIM = 128, 128


@triton.jit
def _ordered(x):
    """float32 as uint32 of the same order; both zeros are one."""
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) | -0x80000000)).to(tl.uint32, bitcast=True)


@triton.jit
def _keep(values, K: tl.constexpr):
    """(whether each is among the K largest, of equals the first; its place among them), for values
    [N] uint32, of which zeros are none and at least K are not."""
    least, bit = tl.full((), 0, tl.uint32), tl.full((), 0x80000000, tl.uint32)
    for _ in range(32):
        guess = least | bit
        enough = tl.sum((values >= guess).to(tl.int32), 0) >= K
        least = tl.where(enough, guess, least)
        bit = bit >> 1
    above, equal = values > least, values == least
    wanted = K - tl.sum(above.to(tl.int32), 0)
    kept = above | (equal & (tl.cumsum(equal.to(tl.int32), 0) <= wanted))
    return kept, tl.cumsum(kept.to(tl.int32), 0) - 1


@triton.jit(
    do_not_specialize=["stage", "first_tile", "num_seqs", "table_row", "in_width", "out_width"]
)
def keep_best_kernel(
    slots, out_scores, out_positions, scores, positions, block_table, cu_seqlens, seq_lens,
    stage, first_tile, num_seqs, table_row, in_width, out_width,
    K: tl.constexpr, FIRST: tl.constexpr, SEGMENT: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    BLOCK_Q: tl.constexpr, K_PAD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (i, r): segment i of workspace row r. `positions` say which keys the scores are of,
    -1 for none, from the second stage on. A row that fits into one segment gets its slots here."""
    segment, row = tl.program_id(0), tl.program_id(1)
    begin(PDL)
    seq, token, count, position = find_tile(
        first_tile + row // BLOCK_Q, cu_seqlens, seq_lens, num_seqs, BLOCK_Q
    )
    inner = row % BLOCK_Q
    position += inner
    length, done = position + 1, inner >= count
    for _ in range(stage):  # a row that an earlier stage has finished, or cut down
        done = done | (length <= SEGMENT)
        length = tl.cdiv(length, SEGMENT) * K
    if done | (segment * SEGMENT >= length):
        return
    table = block_table + seq.to(tl.int64) * table_row
    line = (token + inner).to(tl.int64)
    if length <= K:  # all of them, in the first stage: below it rows are longer
        j = tl.arange(0, K_PAD)
        page = tl.load(table + j // BLOCK_SIZE, mask=j < length, other=0)
        slot = tl.where(j < length, page * BLOCK_SIZE + j % BLOCK_SIZE, -1)
        tl.store(slots + line * K + j, slot, mask=j < K)
        return
    n = segment * SEGMENT + tl.arange(0, SEGMENT)
    source = row.to(tl.int64) * in_width + n
    valid = n < length
    if not FIRST:
        valid = tl.load(positions + source, mask=valid, other=-1) >= 0
    total = tl.sum(valid.to(tl.int32), 0)
    if total > K:
        x = tl.load(scores + source, mask=valid, other=0.0)
        kept, place = _keep(tl.where(valid, _ordered(x), 0), K)
    else:
        kept, place = valid, tl.cumsum(valid.to(tl.int32), 0) - 1
    # Read again: to hold them all the while would take all registers.
    where = n if FIRST else tl.load(positions + source, mask=kept, other=0)
    if length <= SEGMENT:
        page = tl.load(table + where // BLOCK_SIZE, mask=kept, other=0)
        tl.store(slots + line * K + place, page * BLOCK_SIZE + where % BLOCK_SIZE, mask=kept)
    else:
        target = row.to(tl.int64) * out_width + segment * K
        x = tl.load(scores + source, mask=kept, other=0.0)
        tl.store(out_scores + target + place, x, mask=kept)
        tl.store(out_positions + target + place, where, mask=kept)
        j = tl.arange(0, K_PAD)
        none = (j >= total) & (j < K)
        tl.store(out_positions + target + j, tl.full((K_PAD,), -1, tl.int32), mask=none)


class Stage(NamedTuple):
    """The longest row that comes in, and the segments it has."""

    width: int
    segments: int


def stages(width: int, k: int, segment: int) -> list[Stage]:
    """Until a row is one segment. Every stage shortens it: `segment` is at least 2 k."""
    out = [Stage(width, triton.cdiv(width, segment))]
    while out[-1].segments > 1:
        width = out[-1].segments * k
        out.append(Stage(width, triton.cdiv(width, segment)))
    return out


def choose_segment(width: int) -> int:
    """One of two: a kernel is compiled for each."""
    return MOST_SEGMENT // 2 if width <= MOST_SEGMENT // 2 else MOST_SEGMENT


def _declines(query: OpQuery) -> str | None:
    if query.size("Hi") > MOST_HEADS or query.size("D") > MOST_DIM:
        return f"at most {MOST_HEADS} index heads of at most {MOST_DIM}"
    if query.size("k") > MOST_SEGMENT // 4:
        return f"at most {MOST_SEGMENT // 4} keys"
    return elementwise.declines(query)


@register("index_topk", "triton", _declines)
def index_topk(
    q: Tensor,
    weights: Tensor,
    cache: Tensor,
    meta: AttentionMetadata,
    k: int,
    segment: int = 0,
    workspace: int = WORKSPACE,
) -> Tensor:
    """`segment`: scores that a program ranks, chosen here if 0; at least 2 k."""
    slots = torch.full((q.shape[0], k), -1, dtype=torch.int32, device=q.device)
    tiling, width = Tiling.of(meta), meta.max_seq_len
    segment = segment or choose_segment(width)
    step = max(1, min(workspace // width, MOST_ROWS) // tiling.block_q)
    for first_tile in range(0, tiling.tiles, step):
        tiles = min(step, tiling.tiles - first_tile)
        scores = torch.empty(tiles * tiling.block_q, width, dtype=torch.float32, device=q.device)
        if width > k:
            index_scores(scores, q, weights, cache, meta, k, tiling, first_tile)
        _keep_best(slots, scores, meta, k, tiling, first_tile, segment, cache.shape[1])
    return slots


def _keep_best(
    slots: Tensor,
    scores: Tensor,
    meta: AttentionMetadata,
    k: int,
    tiling: Tiling,
    first_tile: int,
    segment: int,
    block_size: int,
) -> None:
    """The slots of the tiles' rows from their scores [tiles * block_q, max_seq_len]."""
    rows, device, positions = scores.shape[0], scores.device, slots
    pdl = pdl_options(device)
    for number, stage in enumerate(stages(scores.shape[1], k, segment)):
        out_width = stage.segments * k if stage.segments > 1 else 0
        out_scores = torch.empty(rows, out_width, dtype=torch.float32, device=device)
        out_positions = torch.empty(rows, out_width, dtype=torch.int32, device=device)
        keep_best_kernel[stage.segments, rows](
            slots, out_scores, out_positions, scores, positions, meta.block_table,
            meta.cu_seqlens_q, meta.seq_lens, number, first_tile, meta.num_seqs,
            meta.block_table.stride(0), scores.shape[1], out_width,
            K=k, FIRST=number == 0, SEGMENT=segment, BLOCK_SIZE=block_size, BLOCK_Q=tiling.block_q,
            K_PAD=support.next_power_of_2(k), PDL=bool(pdl),
            num_warps=min(16, max(4, segment // 1024)), **pdl,
        )  # fmt: skip
        scores, positions = out_scores, out_positions
