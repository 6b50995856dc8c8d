"""The best k of each token's scores, exactly: the second half of op `v4_choose`.

As `sparse_topk` chooses keys: a row is cut into segments that programs hold in registers, what they
keep is a shorter row for the next stage, and a row of one segment is done. 131072 entries (half a
million tokens) with k = 512 take two stages. Not measured on a GPU yet.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from atom.ops.contracts import AttentionMetadata
from atom.ops.triton import support
from atom.ops.triton.sparse_topk import _keep, _ordered
from atom.ops.triton.v4_common import owner

MOST_SEGMENT = 8192  # more would not fit registers


@triton.jit(do_not_specialize=["stage", "first", "num_seqs", "in_width", "out_width"])
def v4_best_kernel(
    chosen, out_scores, out_entries, scores, entries, cu_seqlens, seq_lens, stage, first,
    num_seqs, in_width, out_width,
    K: tl.constexpr, K_PAD: tl.constexpr, FIRST: tl.constexpr, SEGMENT: tl.constexpr,
    RATIO: tl.constexpr, DECODE: tl.constexpr,
):  # fmt: skip
    """Program (i, t): segment i of row t of `scores` [rows, in_width], which is that of token
    first + t. `entries` say what the scores are of, -1 for nothing, from the second stage on."""
    segment, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    _, position, _ = owner(cu_seqlens, seq_lens, first + tl.program_id(1), num_seqs, DECODE)
    line = chosen + (first + row) * K
    length, done = (position + 1) // RATIO, False
    for _ in range(stage):  # a row that an earlier stage has finished, or cut down
        done |= length <= SEGMENT
        length = tl.cdiv(length, SEGMENT) * K
    if done | (segment * SEGMENT >= tl.maximum(length, 1)):
        return
    if FIRST:  # noqa: SIM102 (known when compiled)
        if length <= K:
            j = tl.arange(0, K_PAD)
            tl.store(line + j, tl.where(j < length, j, -1), mask=j < K)
            return
    n = segment * SEGMENT + tl.arange(0, SEGMENT)
    valid = n < length
    x = tl.load(scores + row * in_width + n, mask=valid, other=0.0)
    entry = n
    if not FIRST:
        entry = tl.load(entries + row * in_width + n, mask=valid, other=-1)
        valid = entry >= 0
    total = tl.sum(valid.to(tl.int32), 0)
    if total > K:
        kept, place = _keep(tl.where(valid, _ordered(x), 0), K)
    else:
        kept, place = valid, tl.cumsum(valid.to(tl.int32), 0) - 1
    if length <= SEGMENT:
        tl.store(line + place, entry, mask=kept)
    else:
        to = row * out_width + segment * K
        tl.store(out_scores + to + place, x, mask=kept)
        tl.store(out_entries + to + place, entry, mask=kept)
        j = tl.arange(0, K_PAD)
        lacking = (j >= total) & (j < K)
        tl.store(out_entries + to + j, tl.full((K_PAD,), -1, tl.int32), mask=lacking)


def choose_best(
    chosen: Tensor,
    scores: Tensor,
    first: int,
    meta: AttentionMetadata,
    ratio: int,
    most: int = MOST_SEGMENT,
) -> None:
    """`chosen` [T, k] int32 from row `first` on, by scores [rows, width] of those rows' entries, of
    which those that are complete count. `most` scores are held by a program, or four times k."""
    rows, k, device = scores.shape[0], chosen.shape[1], scores.device
    k_pad = support.next_power_of_2(k)
    width, entries, stage = scores.shape[1], chosen, 0
    segment = min(max(most, 4 * k_pad), max(support.next_power_of_2(width), 2 * k_pad))
    while True:
        segments = triton.cdiv(width, segment)
        shape = (rows, segments * k if segments > 1 else 0)
        out_scores = torch.empty(shape, dtype=torch.float32, device=device)
        out_entries = torch.empty(shape, dtype=torch.int32, device=device)
        v4_best_kernel[segments, rows](
            chosen, out_scores, out_entries, scores, entries, meta.cu_seqlens_q, meta.seq_lens,
            stage, first, meta.num_seqs, width, shape[1],
            K=k, K_PAD=k_pad, FIRST=stage == 0, SEGMENT=segment, RATIO=ratio,
            DECODE=meta.is_decode, num_warps=min(16, max(4, segment // 512)),
        )  # fmt: skip
        if segments == 1:
            return
        scores, entries, width, stage = out_scores, out_entries, shape[1], stage + 1
