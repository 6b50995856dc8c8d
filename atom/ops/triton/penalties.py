"""Repetition, frequency and presence penalties from the tokens that a row has seen: two launches.

The first counts each token of a history in a table of the vocabulary: twice the occurrences in the
output, and one if it is in the prompt. The second takes each count out again; whoever finds one
there, which of equal tokens only one does, changes the logit. So the table is zero again.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from atom.ops.triton.launch import begin, pdl_options

_BLOCK = 1024


@triton.jit
def _history(pool, pool_stride, pool_rows, lengths, row, BLOCK: tl.constexpr):
    """(token, position, whether there is one) of a block of the row's history."""
    position = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    known = position < tl.load(lengths + row)
    line = pool + tl.load(pool_rows + row) * pool_stride
    return tl.load(line + position, mask=known, other=0).to(tl.int64), position, known


@triton.jit
def count_kernel(
    counts,  # [P, V] int32
    pool,
    pool_rows,
    lengths,
    num_prompt,
    pool_stride,
    size,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    begin(PDL)
    row = tl.program_id(0).to(tl.int64)
    token, position, known = _history(pool, pool_stride, pool_rows, lengths, row, BLOCK)
    place = counts + row * size + token
    is_output = position >= tl.load(num_prompt + row)
    tl.atomic_add(place, 2, mask=known & is_output, sem="relaxed")
    tl.atomic_or(place, 1, mask=known & (is_output == 0), sem="relaxed")


@triton.jit
def apply_kernel(
    logits,
    indices,
    counts,
    pool,
    pool_rows,
    lengths,
    repetition,
    frequency,
    presence,
    stride,
    pool_stride,
    size,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    begin(PDL)
    row = tl.program_id(0).to(tl.int64)
    token, _, known = _history(pool, pool_stride, pool_rows, lengths, row, BLOCK)
    count = tl.atomic_xchg(counts + row * size + token, 0, mask=known, sem="relaxed")
    mine = known & (count != 0)
    place = logits + tl.load(indices + row) * stride + token
    value = tl.load(place, mask=mine, other=0.0)
    repeat = tl.load(repetition + row)
    value = tl.where(value > 0, value / repeat, value * repeat)
    occurrences = count >> 1
    value -= tl.load(frequency + row) * occurrences.to(tl.float32)
    value -= tl.where(occurrences > 0, tl.load(presence + row), 0.0)
    tl.store(place, value, mask=mine)


def apply(
    logits: Tensor,
    counts: Tensor,
    pool: Tensor,
    indices: Tensor,
    pool_rows: Tensor,
    lengths: Tensor,
    num_prompt: Tensor,
    repetition: Tensor,
    frequency: Tensor,
    presence: Tensor,
    max_length: int,
) -> None:
    """Edit rows `indices` [P] int64 of logits [L, V] float32 by the histories in pool [R, W] int32.

    counts [at least P * V] int32 is zero before and after. pool_rows, lengths and num_prompt [P]
    int64, the penalties [P] float32; no length exceeds `max_length`.
    """
    count, size = len(indices), logits.shape[1]
    options = dict(pdl_options(logits.device))
    pdl, grid = bool(options), (count, -(-max_length // _BLOCK))
    count_kernel[grid](
        counts, pool, pool_rows, lengths, num_prompt, pool.stride(0), size,
        BLOCK=_BLOCK, PDL=pdl, num_warps=4, **options,
    )  # fmt: skip
    apply_kernel[grid](
        logits, indices, counts, pool, pool_rows, lengths, repetition, frequency, presence,
        logits.stride(0), pool.stride(0), size,
        BLOCK=_BLOCK, PDL=pdl, num_warps=4, **options,
    )  # fmt: skip
