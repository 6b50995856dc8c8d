"""op `v4_choose`: scores of all entries, then the best k of them.

The scores' floor is the bytes of the index keys, read once a token: a program takes one token and
every so many tiles of entries, its heads' product by tensor cores. Scores go through memory, at
most `SCORES` of them at a time. Not measured on a GPU yet.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from atom.ops.contracts import AttentionMetadata
from atom.ops.registry import OpQuery, register
from atom.ops.triton import support
from atom.ops.triton.v4_best import choose_best
from atom.ops.triton.v4_common import declines, owner, turned

SCORES = 1 << 24  # float32 numbers held at a time
MOST_ROWS = 32768  # of a grid's second axis there may be 65535


@triton.jit(do_not_specialize=["num_seqs", "table_row", "first", "width"])
def v4_scores_kernel(
    scores, q, weights, keys, table, cu_seqlens, seq_lens, cos_sin, num_seqs, first, width,
    q_row, weight_row, key_block, key_slot, table_row,
    H: tl.constexpr, D: tl.constexpr, R: tl.constexpr, RATIO: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_N: tl.constexpr, DECODE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Program (t, i): token first + t, every so many tiles from i on of the entries that are
    complete at the token, into `scores` [tokens, width]."""
    local, part, parts = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    token = (first + local).to(tl.int64)
    seq, position, _ = owner(cu_seqlens, seq_lens, first + local, num_seqs, DECODE)
    count = (position + 1) // RATIO
    h, d = tl.arange(0, BLOCK_H), tl.arange(0, D)
    at = q + token * q_row + h[:, None] * D + d[None, :]
    x = tl.load(at, mask=(h < H)[:, None], other=0.0).to(tl.float32)
    x = turned(x, cos_sin, tl.maximum(position, 0), D, R, False).to(q.dtype.element_ty)
    w = tl.load(weights + token * weight_row + h, mask=h < H, other=0.0).to(tl.float32)
    pages = table + seq.to(tl.int64) * table_row
    out = scores + local.to(tl.int64) * width
    for tile in range(part, tl.cdiv(count, BLOCK_N), parts):
        n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        live = n < count
        page = tl.load(pages + n // ROWS, mask=live, other=0).to(tl.int64)
        place = keys + page * key_block + n % ROWS * key_slot
        k = tl.load(place[:, None] + d[None, :], mask=live[:, None], other=0.0)
        each = tl.dot(x, tl.trans(k.to(x.dtype)), input_precision=PRECISION)
        s = tl.sum(tl.maximum(each, 0.0) * w[:, None], 0)
        tl.store(out + n, s, mask=live)


def _declines(query: OpQuery) -> str | None:
    if query.size("D") > 256:
        return "index heads of at most 256"
    return declines(query)


@register("v4_choose", "triton", _declines)
def v4_choose(
    q: Tensor,
    weights: Tensor,
    keys: Tensor,
    positions: Tensor,
    cos_sin: Tensor,
    meta: AttentionMetadata,
    ratio: int,
    k: int,
) -> Tensor:
    tokens, heads, dim = q.shape
    chosen = torch.empty((tokens, k), dtype=torch.int32, device=q.device)
    width = max(meta.max_seq_len // ratio, k)
    slab = min(max(SCORES // width, 1), MOST_ROWS)
    block_h = max(support.next_power_of_2(heads), 16)
    block_n = 16 if q.dtype == torch.float32 else 64
    for first in range(0, tokens, slab):
        count = min(slab, tokens - first)
        scores = torch.empty((count, width), dtype=torch.float32, device=q.device)
        parts = max(2 * support.num_sms(q.device.index or 0) // count, 1)
        v4_scores_kernel[count, min(parts, triton.cdiv(width, block_n))](
            scores, q, weights, keys, meta.block_table, meta.cu_seqlens_q, meta.seq_lens,
            cos_sin, meta.num_seqs, first, width,
            q.stride(0), weights.stride(0), keys.stride(0), keys.stride(1),
            meta.block_table.stride(0),
            H=heads, D=dim, R=cos_sin.shape[1], RATIO=ratio, ROWS=keys.shape[1],
            BLOCK_H=block_h, BLOCK_N=block_n, DECODE=meta.is_decode,
            PRECISION="ieee" if q.dtype == torch.float32 else "tf32", num_warps=4,
        )  # fmt: skip
        choose_best(chosen, scores, first, meta, ratio)
    return chosen
