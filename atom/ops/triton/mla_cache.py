"""op `mla_cache` in one launch: norm and rotation of latents, their write, rotation of queries.

A program takes the latent, or some query heads, of one token. Bytes: each is read and written once.
Not measured yet on a GPU.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from atom.ops.registry import register
from atom.ops.triton import support
from atom.ops.triton.launch import begin, pdl_options
from atom.ops.triton.rotation import to_cache

GROUP = 16  # heads of one program


@triton.jit
def _turned(rows, mask, cos, sin, P: tl.constexpr, HALF: tl.constexpr):
    """The P channels at `rows` [H, 1], turned in neighbouring pairs: [H, 2 HALF] of their type."""
    j = tl.arange(0, 2 * HALF)[None, :]
    both = tl.load(rows + j, mask=mask & (j < P), other=0.0)
    a, b = tl.split(tl.reshape(both.to(tl.float32), (rows.shape[0], HALF, 2)))
    turned = tl.join(a * cos - b * sin, b * cos + a * sin)
    return tl.reshape(turned, (rows.shape[0], 2 * HALF)).to(both.dtype)


@triton.jit
def mla_cache_kernel(
    q_rope, kv, positions, norm_weight, cos_sin, cache, slots, eps,
    q_token, q_head, kv_token, cache_block, cache_slot,
    H: tl.constexpr, R: tl.constexpr, R_PAD: tl.constexpr, P: tl.constexpr, HALF: tl.constexpr,
    HEADS: tl.constexpr, BLOCK_SIZE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (t, i): token t; its latent for i = 0, then groups of query heads."""
    token, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    begin(PDL)
    i, j = tl.arange(0, HALF)[None, :], tl.arange(0, 2 * HALF)[None, :]
    angles = cos_sin + tl.load(positions + token) * P
    cos = tl.load(angles + i, mask=i < P // 2, other=1.0)
    sin = tl.load(angles + P // 2 + i, mask=i < P // 2, other=0.0)
    if group > 0:
        head = (group - 1) * HEADS + tl.arange(0, HEADS)[:, None]
        rows = q_rope + token * q_token + head * q_head
        turned = _turned(rows, head < H, cos, sin, P, HALF)
        tl.store(rows + j, turned, mask=(head < H) & (j < P))
    else:
        kind: tl.constexpr = cache.dtype.element_ty
        own: tl.constexpr = kv.dtype.element_ty
        row = kv + token * kv_token + tl.zeros((1, 1), tl.int32)
        d = tl.arange(0, R_PAD)[None, :]
        x = tl.load(row + d, mask=d < R, other=0.0).to(tl.float32)
        weight = tl.load(norm_weight + d, mask=d < R, other=0.0).to(tl.float32)
        factor = tl.rsqrt(tl.sum(x * x, 1) / R + eps)[:, None]
        latent = to_cache((x * factor * weight).to(own), 1.0, kind)
        rope = to_cache(_turned(row + R, True, cos, sin, P, HALF), 1.0, kind)
        tl.store(row + d, latent.to(own), mask=d < R)
        tl.store(row + R + j, rope.to(own), mask=j < P)
        slot = tl.load(slots + token)
        at = cache + slot // BLOCK_SIZE * cache_block + slot % BLOCK_SIZE * cache_slot
        tl.store(at + d, latent, mask=(d < R) & (slot >= 0))
        tl.store(at + R + j, rope, mask=(j < P) & (slot >= 0))


@register("mla_cache", "triton")
def mla_cache(
    q_rope: Tensor,
    kv: Tensor,
    positions: Tensor,
    norm_weight: Tensor,
    eps: float,
    cos_sin: Tensor,
    cache: Tensor,
    slot_mapping: Tensor,
) -> None:
    tokens, heads, rope = q_rope.shape
    rank = norm_weight.shape[0]
    pdl = pdl_options(q_rope.device)
    mla_cache_kernel[tokens, 1 + triton.cdiv(heads, GROUP)](
        q_rope, kv, positions, norm_weight, cos_sin, cache, slot_mapping, eps,
        q_rope.stride(0), q_rope.stride(1), kv.stride(0), cache.stride(0), cache.stride(1),
        H=heads, R=rank, R_PAD=support.next_power_of_2(rank), P=rope,
        HALF=support.next_power_of_2(rope // 2), HEADS=GROUP, BLOCK_SIZE=cache.shape[1],
        PDL=bool(pdl), num_warps=4, **pdl,
    )  # fmt: skip
