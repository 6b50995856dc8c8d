"""From the QKV projection to attention in one launch: per-head norms, rotation, cache write.

Queries are rotated where they stand, in the projection; keys and values go to the cache only. Each
head is read once and written once. A program takes the query heads, or the key and value heads, of
HEADS heads of one token.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from atom.ops.contracts import AttentionMetadata, AttentionParams
from atom.ops.triton import support
from atom.ops.triton.launch import begin, pdl_options
from atom.ops.triton.rotation import to_cache


@triton.jit
def load_pairs(rows, mask, R: tl.constexpr, HALF: tl.constexpr, INTERLEAVED: tl.constexpr):
    """The R rotated channels of the heads at `rows` [H, 1] as two of [H, HALF] float32."""
    i = tl.arange(0, HALF)[None, :]
    if INTERLEAVED:
        j = tl.arange(0, 2 * HALF)[None, :]
        both = tl.load(rows + j, mask=mask & (j < R), other=0.0)
        a, b = tl.split(tl.reshape(both, (rows.shape[0], HALF, 2)))
    else:
        a = tl.load(rows + i, mask=mask & (i < R // 2), other=0.0)
        b = tl.load(rows + R // 2 + i, mask=mask & (i < R // 2), other=0.0)
    return a.to(tl.float32), b.to(tl.float32)


@triton.jit
def store_pairs(
    rows, a, b, mask, R: tl.constexpr, HALF: tl.constexpr, INTERLEAVED: tl.constexpr
):  # fmt: skip
    i = tl.arange(0, HALF)[None, :]
    if INTERLEAVED:
        j = tl.arange(0, 2 * HALF)[None, :]
        both = tl.reshape(tl.join(a, b), (a.shape[0], 2 * HALF))
        tl.store(rows + j, both, mask=mask & (j < R))
    else:
        tl.store(rows + i, a, mask=mask & (i < R // 2))
        tl.store(rows + R // 2 + i, b, mask=mask & (i < R // 2))


@triton.jit
def _rotate(
    source, target, mask, norm, cos, sin, eps, scale,
    D: tl.constexpr, R: tl.constexpr, HALF: tl.constexpr, REST: tl.constexpr,
    INTERLEAVED: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """Heads at `source` [H, 1], normed and rotated, to `target` [H, 1]. As operations one after the
    other would, rounds to the type of `source` after the norm."""
    dtype = source.dtype.element_ty
    to_type = target.dtype.element_ty
    j = tl.arange(0, REST)[None, :] if REST > 0 else 0
    a, b = load_pairs(source, mask, R, HALF, INTERLEAVED)
    if REST > 0:
        in_rest = mask & (j < D - R)
        rest = tl.load(source + R + j, mask=in_rest, other=0.0).to(tl.float32)
    if NORM:
        total = tl.sum(a * a, 1) + tl.sum(b * b, 1)
        if REST > 0:
            total += tl.sum(rest * rest, 1)
        factor = tl.rsqrt(total / D + eps)[:, None]
        weights = norm + tl.zeros((1, 1), tl.int32)
        weight_a, weight_b = load_pairs(weights, True, R, HALF, INTERLEAVED)
        a = (a * factor * weight_a).to(dtype).to(tl.float32)
        b = (b * factor * weight_b).to(dtype).to(tl.float32)
        if REST > 0:
            weight = tl.load(norm + R + j, mask=j < D - R, other=0.0).to(tl.float32)
            rest = (rest * factor * weight).to(dtype).to(tl.float32)
    new_a = to_cache((a * cos - b * sin).to(dtype), scale, to_type)
    new_b = to_cache((b * cos + a * sin).to(dtype), scale, to_type)
    store_pairs(target, new_a, new_b, mask, R, HALF, INTERLEAVED)
    if REST > 0:
        tl.store(target + R + j, to_cache(rest.to(dtype), scale, to_type), mask=in_rest)


@triton.jit
def rope_cache_kernel(
    qkv, k_cache, v_cache, positions, slots, cos_sin, q_norm, k_norm,
    k_scale, v_scale, eps, row, cache_block, cache_slot, cache_head,
    HQ: tl.constexpr, HK: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, R: tl.constexpr,
    HALF: tl.constexpr, REST: tl.constexpr, BLOCK_SIZE: tl.constexpr, HEADS: tl.constexpr,
    INTERLEAVED: tl.constexpr, NORM: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (t, i): token t; the i-th group of query heads, then of key and value heads."""
    token, group = tl.program_id(0), tl.program_id(1)
    begin(PDL)
    i = tl.arange(0, HALF)[None, :]
    angles = cos_sin + tl.load(positions + token) * R
    cos = tl.load(angles + i, mask=i < R // 2, other=1.0)
    sin = tl.load(angles + R // 2 + i, mask=i < R // 2, other=0.0)
    qkv += token.to(tl.int64) * row
    QUERY_GROUPS: tl.constexpr = triton.cdiv(HQ, HEADS)
    head = tl.arange(0, HEADS)[:, None]
    if group < QUERY_GROUPS:
        head += group * HEADS
        rows = qkv + head * D
        _rotate(
            rows, rows, head < HQ, q_norm, cos, sin, eps, 1.0, D, R, HALF, REST, INTERLEAVED, NORM
        )
    else:
        slot = tl.load(slots + token)
        if slot >= 0:
            head += (group - QUERY_GROUPS) * HEADS
            at = slot // BLOCK_SIZE * cache_block + slot % BLOCK_SIZE * cache_slot
            rows, mask = qkv + (HQ + head) * D, head < HK
            d = tl.arange(0, D_PAD)[None, :]
            mask_v = mask & (d < D)
            value = tl.load(rows + HK * D + d, mask=mask_v, other=0.0)
            target = k_cache + at + head * cache_head
            _rotate(
                rows, target, mask, k_norm, cos, sin, eps, k_scale, D, R, HALF, REST, INTERLEAVED,
                NORM,
            )  # fmt: skip
            value = to_cache(value, v_scale, v_cache.dtype.element_ty)
            tl.store(v_cache + at + head * cache_head + d, value, mask=mask_v)


def rope_cache(
    qkv: Tensor,
    positions: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    meta: AttentionMetadata,
    params: AttentionParams,
    heads: int = 0,
    warps: int = 0,
) -> Tensor:
    """qkv [T, Hq + 2 Hk, D] in place; returns its queries [T, Hq, D]. Tokens without a slot are not
    cached. `heads`: of one program; like `warps` chosen here if 0."""
    if not heads:
        # H200, 48 heads of 128 (floor 94.7 us at T = 16384): 108 us so, 111 with 8 heads and 4
        # warps, which take 1.0 us at T = 1 and 1.9 us at T = 128.
        heads, warps = (16, 2) if qkv.shape[0] >= 1024 else (8, 4)
    hq, hk, dim = params.num_heads, params.num_kv_heads, params.head_dim
    norm, rotated = params.q_norm is not None, params.cos_sin.shape[1]
    pdl = pdl_options(qkv.device)
    groups = triton.cdiv(hq, heads) + triton.cdiv(hk, heads)
    rope_cache_kernel[qkv.shape[0], groups](
        qkv,
        k_cache,
        v_cache,
        positions,
        meta.slot_mapping,
        params.cos_sin,
        params.q_norm if norm else params.cos_sin,
        params.k_norm if norm else params.cos_sin,
        params.k_scale,
        params.v_scale,
        params.norm_eps,
        qkv.stride(0),
        *k_cache.stride()[:3],
        HQ=hq,
        HK=hk,
        D=dim,
        D_PAD=support.next_power_of_2(dim),
        R=rotated,
        HALF=support.next_power_of_2(rotated // 2),
        REST=support.next_power_of_2(dim - rotated) if rotated < dim else 0,
        BLOCK_SIZE=k_cache.shape[1],
        HEADS=heads,
        INTERLEAVED=params.interleaved,
        NORM=norm,
        PDL=bool(pdl),
        num_warps=warps,
        **pdl,
    )
    return qkv[:, :hq]
