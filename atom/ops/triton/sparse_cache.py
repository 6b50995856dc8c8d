"""op `index_cache`: index keys normed, rotated and cached, index queries rotated, in one launch."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from atom.ops.contracts_sparse import IndexNorm
from atom.ops.registry import register
from atom.ops.triton import elementwise, support
from atom.ops.triton.launch import begin, pdl_options
from atom.ops.triton.rope_cache import load_pairs, store_pairs

HEADS = 16  # query heads of a program


@triton.jit
def _norm_weights(weights, R: tl.constexpr, HALF: tl.constexpr, INTERLEAVED: tl.constexpr):
    """A vector's rotated channels as of `load_pairs`, [1, HALF] each."""
    return load_pairs(weights + tl.zeros((1, 1), tl.int32), True, R, HALF, INTERLEAVED)


@triton.jit
def index_cache_kernel(
    q, k, cache, positions, slots, cos_sin, weight, bias, eps,
    q_row, k_row, cache_block, cache_slot,
    HQ: tl.constexpr, D: tl.constexpr, R: tl.constexpr, HALF: tl.constexpr, REST: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, HEADS: tl.constexpr, INTERLEAVED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (t, i): token t; its key, or the i-th group of its query heads, from i = 1 on."""
    token, group = tl.program_id(0), tl.program_id(1)
    begin(PDL)
    kind: tl.constexpr = k.dtype.element_ty
    to: tl.constexpr = cache.dtype.element_ty
    i = tl.arange(0, HALF)[None, :]
    j = tl.arange(0, REST)[None, :]
    angles = cos_sin + tl.load(positions + token) * R
    cos = tl.load(angles + i, mask=i < R // 2, other=1.0)
    sin = tl.load(angles + R // 2 + i, mask=i < R // 2, other=0.0)
    if group > 0:
        head = (group - 1) * HEADS + tl.arange(0, HEADS)[:, None]
        rows = q + token.to(tl.int64) * q_row + head * D
        a, b = load_pairs(rows, head < HQ, R, HALF, INTERLEAVED)
        new_a, new_b = (a * cos - b * sin).to(kind), (b * cos + a * sin).to(kind)
        store_pairs(rows, new_a, new_b, head < HQ, R, HALF, INTERLEAVED)
    else:
        slot = tl.load(slots + token)
        if slot >= 0:
            here = tl.full((1, 1), True, tl.int1)
            in_pair, in_rest = i < R // 2, j < D - R
            row = k + token.to(tl.int64) * k_row + tl.zeros((1, 1), tl.int32)
            a, b = load_pairs(row, here, R, HALF, INTERLEAVED)
            rest = tl.load(row + R + j, mask=in_rest, other=0.0).to(tl.float32)
            mean = (tl.sum(a, 1) + tl.sum(b, 1) + tl.sum(rest, 1)) / D
            a = tl.where(in_pair, a - mean[:, None], 0.0)
            b = tl.where(in_pair, b - mean[:, None], 0.0)
            rest = tl.where(in_rest, rest - mean[:, None], 0.0)
            total = tl.sum(a * a, 1) + tl.sum(b * b, 1) + tl.sum(rest * rest, 1)
            factor = tl.rsqrt(total / D + eps)[:, None]
            weight_a, weight_b = _norm_weights(weight, R, HALF, INTERLEAVED)
            bias_a, bias_b = _norm_weights(bias, R, HALF, INTERLEAVED)
            weight_c = tl.load(weight + R + j, mask=in_rest, other=0.0).to(tl.float32)
            bias_c = tl.load(bias + R + j, mask=in_rest, other=0.0).to(tl.float32)
            # Rounded after the norm and after the rotation, as operations of their own would.
            a = (a * factor * weight_a + bias_a).to(kind).to(tl.float32)
            b = (b * factor * weight_b + bias_b).to(kind).to(tl.float32)
            rest = (rest * factor * weight_c + bias_c).to(kind)
            target = cache + slot // BLOCK_SIZE * cache_block + slot % BLOCK_SIZE * cache_slot
            target += tl.zeros((1, 1), tl.int32)
            new_a, new_b = (a * cos - b * sin).to(kind).to(to), (b * cos + a * sin).to(kind).to(to)
            store_pairs(target, new_a, new_b, here, R, HALF, INTERLEAVED)
            tl.store(target + R + j, rest.to(to), mask=in_rest)


@register("index_cache", "triton", elementwise.declines)
def index_cache(
    q: Tensor | None,
    k: Tensor,
    norm: IndexNorm,
    positions: Tensor,
    cache: Tensor,
    slot_mapping: Tensor,
) -> None:
    (tokens, dim), rotated = k.shape, norm.cos_sin.shape[1]
    heads = 0 if q is None else q.shape[1]
    if tokens == 0:
        return
    pdl = pdl_options(k.device)
    index_cache_kernel[tokens, 1 + triton.cdiv(heads, HEADS)](
        k if q is None else q, k, cache, positions, slot_mapping, norm.cos_sin, norm.weight,
        norm.bias, norm.eps,
        0 if q is None else q.stride(0), k.stride(0), *cache.stride()[:2],
        HQ=heads, D=dim, R=rotated, HALF=support.next_power_of_2(rotated // 2),
        REST=support.next_power_of_2(max(dim - rotated, 1)), BLOCK_SIZE=cache.shape[1],
        HEADS=HEADS, INTERLEAVED=norm.interleaved, PDL=bool(pdl), num_warps=2, **pdl,
    )  # fmt: skip
