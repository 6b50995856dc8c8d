"""Log-probabilities of chosen tokens, their ranks and the best alternatives: two launches, no sort.

The first takes what it needs of each chunk of a row in one pass: maximum, sum of exponentials, how
many logits are above the chosen one, and the best of each small group. The second joins the chunks.
The n best of a row are in the n groups whose own best are the best, so only these are read again.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from atom.ops.triton import support
from atom.ops.triton.argmax import order_key
from atom.ops.triton.launch import begin, pdl_options

_CHUNK = 4096
_GROUP = 64
_LOWEST = tl.constexpr(-0x8000000000000000)


@triton.jit
def _pack(x, cols):
    """int64 in the order of the values x; of equals the first is the greatest."""
    return (order_key(x).to(tl.int64) << 32) | (0x7FFFFFFF - cols).to(tl.int64)


@triton.jit
def _value_of(packed):
    key = (packed >> 32).to(tl.int32)
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def chunk_logprobs_kernel(
    logits,
    rows,  # [n] int64 rows of the logits
    token_ids,  # [n] integers
    stats,  # [n, C, 4] float32: maximum, sum of exponentials, number above the chosen one
    bests,  # [n, C, CHUNK / GROUP] int64: the best of each group, value and place
    stride,
    size,
    num_chunks,
    HAS_ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    GROUP: tl.constexpr,
    TOP: tl.constexpr,
    PDL: tl.constexpr,
):
    begin(PDL)
    index, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    line = logits + (tl.load(rows + index) if HAS_ROWS else index) * stride
    cols = chunk * CHUNK + tl.arange(0, CHUNK)
    x = tl.load(line + cols, mask=cols < size, other=float("-inf"))
    chosen = tl.load(line + tl.load(token_ids + index).to(tl.int64))
    top = tl.max(x, axis=0)
    # A chunk of minus infinities has the sum 0, and not NaN.
    total = tl.sum(tl.where(x > float("-inf"), tl.exp(x - top), 0.0), axis=0)
    place = index * num_chunks + chunk
    tl.store(stats + place * 4, top)
    tl.store(stats + place * 4 + 1, total)
    tl.store(stats + place * 4 + 2, tl.sum((x > chosen).to(tl.float32), axis=0))
    if TOP > 0:
        groups: tl.constexpr = CHUNK // GROUP
        grouped = tl.reshape(_pack(x, cols), (groups, GROUP))
        lines = bests + place * groups + tl.arange(0, groups)
        tl.store(lines, tl.max(grouped, axis=1))


@triton.jit(do_not_specialize=["num_top"])
def join_logprobs_kernel(
    logits,
    rows,
    token_ids,
    stats,
    bests,
    logprobs,  # [n] float32
    ranks,  # [n] int32
    top_ids,  # [n, num_top] int32
    top_logprobs,  # [n, num_top] float32
    stride,
    size,
    num_chunks,
    num_top,
    HAS_ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    GROUP: tl.constexpr,
    TOP: tl.constexpr,
    PDL: tl.constexpr,
):
    begin(PDL)
    index = tl.program_id(0).to(tl.int64)
    line = logits + (tl.load(rows + index) if HAS_ROWS else index) * stride
    chosen = tl.load(line + tl.load(token_ids + index).to(tl.int64))
    chunk = tl.arange(0, CHUNKS)
    inside = chunk < num_chunks
    place = stats + (index * num_chunks + chunk) * 4
    tops = tl.load(place, mask=inside, other=float("-inf"))
    sums = tl.load(place + 1, mask=inside, other=0.0)
    above = tl.load(place + 2, mask=inside, other=0.0)
    top = tl.max(tops, axis=0)
    norm = top + tl.log(tl.sum(tl.where(sums > 0.0, sums * tl.exp(tops - top), 0.0), axis=0))
    tl.store(logprobs + index, chosen - norm)
    tl.store(ranks + index, tl.sum(above.to(tl.int32), axis=0) + 1)
    if TOP > 0:
        groups: tl.constexpr = CHUNK // GROUP
        g, j = tl.arange(0, CHUNKS * groups), tl.arange(0, TOP)
        lines = bests + index * num_chunks * groups + g
        group_bests = tl.load(lines, mask=g < num_chunks * groups, other=_LOWEST)
        chosen_groups = tl.full((TOP,), -1, tl.int32)
        for i in range(0, num_top):
            best = tl.max(group_bests, axis=0)
            group = (0x7FFFFFFF - (best & 0x7FFFFFFF)).to(tl.int32) // GROUP
            group = tl.where(best > _LOWEST, group, -1)
            chosen_groups = tl.where(j == i, group, chosen_groups)
            group_bests = tl.where(group_bests == best, _LOWEST, group_bests)
        cols = chosen_groups[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
        listed = (chosen_groups >= 0)[:, None] & (cols < size)
        x = tl.load(line + cols, mask=listed, other=float("-inf"))
        packed = tl.where(listed, _pack(x, cols), _LOWEST)
        for i in range(0, num_top):
            best = tl.max(tl.max(packed, axis=1), axis=0)
            place_of = (0x7FFFFFFF - (best & 0x7FFFFFFF)).to(tl.int32)
            tl.store(top_ids + index * num_top + i, place_of)
            tl.store(top_logprobs + index * num_top + i, _value_of(best) - norm)
            packed = tl.where(packed == best, _LOWEST, packed)


def logprobs(
    logits: Tensor, rows: Tensor | None, token_ids: Tensor, num_top: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-softmax of logits [L, V] float32 at `token_ids` [n]; `rows` [n] int64, None: all, n = L.

    Returns (logprobs [n] float32, ranks [n] int32 from 1, the best num_top <= V of each row,
    descending, the lower id first of equals: ids [n, num_top] int32 and log-probabilities float32).
    """
    count, size, device = len(token_ids), logits.shape[1], logits.device
    values, ranks = logits.new_empty(count), torch.empty(count, dtype=torch.int32, device=device)
    top_ids = torch.empty((count, num_top), dtype=torch.int32, device=device)
    top_values = logits.new_empty((count, num_top))
    if count == 0:
        return values, ranks, top_ids, top_values
    num_chunks = -(-size // _CHUNK)
    top = support.next_power_of_2(num_top) if num_top else 0
    stats = logits.new_empty((count, num_chunks, 4))
    shape = (count, num_chunks, _CHUNK // _GROUP) if top else (0,)
    bests = torch.empty(shape, dtype=torch.int64, device=device)
    options = dict(pdl_options(device))
    pdl, stride, has_rows = bool(options), logits.stride(0), rows is not None
    rows = token_ids if rows is None else rows
    shared = {"HAS_ROWS": has_rows, "CHUNK": _CHUNK, "GROUP": _GROUP, "TOP": top, "PDL": pdl}
    chunk_logprobs_kernel[(count, num_chunks)](
        logits, rows, token_ids, stats, bests, stride, size, num_chunks, num_warps=8, **shared,
        **options,
    )  # fmt: skip
    join_logprobs_kernel[(count,)](
        logits, rows, token_ids, stats, bests, values, ranks, top_ids, top_values, stride, size,
        num_chunks, num_top, CHUNKS=support.next_power_of_2(num_chunks), num_warps=8, **shared,
        **options,
    )  # fmt: skip
    return values, ranks, top_ids, top_values
