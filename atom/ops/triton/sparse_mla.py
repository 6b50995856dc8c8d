"""op `sparse_mla`: every query attends to latents of its own choice, gathered by slot.

Program (h, t, i): BLOCK_H heads of token t over part i of its chosen keys. A latent is key and
value at once, and is read once for the heads of a program. A second kernel merges the parts, where
there are several. A token's programs read k * (R + P) values, 2.4 MB at k = 2048 in bfloat16, and
at 64 heads a program compute 120 FLOP per byte of them. Not measured on a GPU yet.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from atom.ops.registry import OpQuery, register
from atom.ops.triton import elementwise, support
from atom.ops.triton.launch import begin, pdl_options
from atom.ops.triton.varlen_attention import LOG2_E

MIN_PART = 256  # keys that are worth a program of their own
MOST_PARTS = 16


@triton.jit
def sparse_mla_kernel(
    out, partials, sums, q_latent, q_rope, cache, slots, scale_log2,
    latent_token, latent_head, rope_token, rope_head, cache_row, slots_row,
    H: tl.constexpr, R: tl.constexpr, P: tl.constexpr, K: tl.constexpr, K_PAD: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_N: tl.constexpr, PARTS: tl.constexpr, PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Scores are kept in powers of two. With PARTS > 1, `partials` [T, PARTS, H, R] get unnormed
    sums and `sums` [T, PARTS, H, 2] maxima and denominators; else `out` [T, H, R] the result."""
    token, part = tl.program_id(1), tl.program_id(2)
    begin(PDL)
    head = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)
    own, c, r = head < H, tl.arange(0, R), tl.arange(0, P)
    chosen = slots + token.to(tl.int64) * slots_row
    j = tl.arange(0, K_PAD)
    count = tl.sum((tl.load(chosen + j, mask=j < K, other=-1) >= 0).to(tl.int32), 0)
    share = tl.cdiv(tl.cdiv(count, PARTS), BLOCK_N) * BLOCK_N
    first = part * share
    end = tl.minimum(first + share, count)

    at = q_latent + token.to(tl.int64) * latent_token + head * latent_head
    q_c = tl.load(at[:, None] + c[None, :], mask=own[:, None], other=0.0)
    at = q_rope + token.to(tl.int64) * rope_token + head * rope_head
    q_r = tl.load(at[:, None] + r[None, :], mask=own[:, None], other=0.0)
    top = tl.full([BLOCK_H], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_H], tl.float32)
    acc = tl.zeros([BLOCK_H, R], tl.float32)
    for n in range(first, end, BLOCK_N):
        i = n + tl.arange(0, BLOCK_N)
        live = i < end
        slot = tl.load(chosen + i, mask=live, other=0).to(tl.int64)
        rows = cache + slot * cache_row
        # Slots that are not chosen may hold NaN: zeros in their place.
        latent = tl.load(rows[:, None] + c[None, :], mask=live[:, None], other=0.0).to(q_c.dtype)
        rope = tl.load(rows[:, None] + R + r[None, :], mask=live[:, None], other=0.0).to(q_c.dtype)
        s = tl.dot(q_c, tl.trans(latent), input_precision=PRECISION)
        s = tl.dot(q_r, tl.trans(rope), s, input_precision=PRECISION) * scale_log2
        s = tl.where(live[None, :], s, float("-inf"))
        new_top = tl.maximum(top, tl.max(s, 1))
        p = tl.exp2(s - new_top[:, None])
        alpha = tl.exp2(top - new_top)
        total = total * alpha + tl.sum(p, 1)
        acc = tl.dot(p.to(q_c.dtype), latent, acc * alpha[:, None], input_precision=PRECISION)
        top = new_top
    if PARTS == 1:
        acc = acc / tl.where(total > 0, total, 1.0)[:, None]
        line = (token.to(tl.int64) * H + head) * R
        tl.store(out + line[:, None] + c[None, :], acc.to(out.dtype.element_ty), mask=own[:, None])
    else:
        line = (token.to(tl.int64) * PARTS + part) * H + head
        tl.store(partials + line[:, None] * R + c[None, :], acc, mask=own[:, None])
        tl.store(sums + line * 2, top, mask=own)
        tl.store(sums + line * 2 + 1, total, mask=own)


@triton.jit
def merge_kernel(
    out, partials, sums,
    H: tl.constexpr, R: tl.constexpr, PARTS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (h, t): head h of token t, from its parts in their order. PARTS is a power of two."""
    head, token = tl.program_id(0), tl.program_id(1).to(tl.int64)
    begin(PDL)
    part, c = tl.arange(0, PARTS), tl.arange(0, R)
    line = (token * PARTS + part) * H + head
    tops = tl.load(sums + line * 2)
    top = tl.max(tops, 0)
    weight = tl.exp2(tops - tl.where(top == float("-inf"), 0.0, top))
    total = tl.sum(tl.load(sums + line * 2 + 1) * weight, 0)
    acc = tl.sum(tl.load(partials + line[:, None] * R + c[None, :]) * weight[:, None], 0)
    acc = acc / tl.where(total > 0, total, 1.0)
    tl.store(out + (token * H + head) * R + c, acc.to(out.dtype.element_ty))


class Cut(NamedTuple):
    block_h: int
    block_n: int
    parts: int
    warps: int
    stages: int


def choose_cut(tokens: int, heads: int, k: int, itemsize: int, sms: int) -> Cut:
    """As many heads as share a read, keys in parts until every multiprocessor has work."""
    narrow = support.IS_ROCM or itemsize > 2  # 64 KiB of shared memory; wide values
    block_h = 16 if narrow else max(16, min(64, support.next_power_of_2(heads)))
    programs = tokens * triton.cdiv(heads, block_h)
    parts = min(support.next_power_of_2(triton.cdiv(2 * sms, programs)), MOST_PARTS)
    while parts > 1 and parts * MIN_PART > k:
        parts //= 2
    if narrow:
        return Cut(block_h, 16, parts, 4, 1)
    return Cut(block_h, 32, parts, 8 if block_h > 16 else 4, 2)


def _declines(query: OpQuery) -> str | None:
    rank, rope = query.size("R"), query.size("P")
    if any(n < 16 or n & (n - 1) for n in (rank, rope)) or rank > 512:
        return f"latents of {rank} + {rope}: powers of two, 16 to 512"
    return elementwise.declines(query)


@register("sparse_mla", "triton", _declines)
def sparse_mla(
    q_latent: Tensor,
    q_rope: Tensor,
    cache: Tensor,
    slots: Tensor,
    scale: float,
    cut: Cut | None = None,
) -> Tensor:
    (tokens, heads, rank), rope, k = q_latent.shape, q_rope.shape[2], slots.shape[1]
    device = q_latent.device
    out = torch.empty(tokens, heads, rank, dtype=q_latent.dtype, device=device)
    if tokens == 0:
        return out
    if cut is None:
        sms = support.num_sms(device.index or 0)
        cut = choose_cut(tokens, heads, k, q_latent.element_size(), sms)
    parts = cut.parts if cut.parts > 1 else 0
    pdl = pdl_options(device)
    partials = torch.empty(tokens, parts, heads, rank, dtype=torch.float32, device=device)
    sums = torch.empty(tokens, parts, heads, 2, dtype=torch.float32, device=device)
    sparse_mla_kernel[triton.cdiv(heads, cut.block_h), tokens, cut.parts](
        out, partials, sums, q_latent, q_rope, cache, slots, scale * LOG2_E,
        *q_latent.stride()[:2], *q_rope.stride()[:2], cache.stride(1), slots.stride(0),
        H=heads, R=rank, P=rope, K=k, K_PAD=support.next_power_of_2(k), BLOCK_H=cut.block_h,
        BLOCK_N=cut.block_n, PARTS=cut.parts,
        PRECISION="ieee" if q_latent.element_size() > 2 else "tf32",
        PDL=bool(pdl), num_warps=cut.warps, num_stages=cut.stages, **pdl,
    )  # fmt: skip
    if parts:
        merge_kernel[heads, tokens](
            out, partials, sums, H=heads, R=rank, PARTS=parts, PDL=bool(pdl), num_warps=4, **pdl,
        )  # fmt: skip
    return out
