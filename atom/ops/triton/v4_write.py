"""op `v4_write`: queries normed and rotated, keys too, and written to the window's cache.

One launch; a program takes some query heads of a token, or its key. Bytes are the floor: queries
are read and written once. Not measured on a GPU yet.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from atom.ops.registry import register
from atom.ops.triton.rotation import to_cache
from atom.ops.triton.v4_common import declines, turned

HEADS = 8  # query heads of a program


@triton.jit
def v4_write_kernel(
    out, q, kv, kv_norm, positions, cos_sin, cache, slots, eps,
    q_row, kv_row, cache_block, cache_slot,
    H: tl.constexpr, D: tl.constexpr, R: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    HEADS: tl.constexpr,
):  # fmt: skip
    token, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    position = tl.load(positions + token)
    d = tl.arange(0, D)[None, :]
    if part * HEADS < H:
        head = part * HEADS + tl.arange(0, HEADS)[:, None]
        x = tl.load(q + token * q_row + head * D + d, mask=head < H, other=0.0).to(tl.float32)
        x *= tl.rsqrt(tl.sum(x * x, 1) / D + eps)[:, None]
        x = turned(x, cos_sin, position, D, R, False)
        tl.store(out + (token * H + head) * D + d, x.to(out.dtype.element_ty), mask=head < H)
    else:
        slot = tl.load(slots + token)
        if slot >= 0:
            x = tl.load(kv + token * kv_row + d).to(tl.float32)
            x *= tl.rsqrt(tl.sum(x * x, 1) / D + eps)[:, None]
            x *= tl.load(kv_norm + d).to(tl.float32)
            x = turned(x, cos_sin, position, D, R, False).to(kv.dtype.element_ty)
            place = slot // BLOCK_SIZE * cache_block + slot % BLOCK_SIZE * cache_slot
            tl.store(cache + place + d, to_cache(x, 1.0, cache.dtype.element_ty))


@register("v4_write", "triton", declines)
def v4_write(
    q: Tensor,
    kv: Tensor,
    kv_norm: Tensor,
    eps: float,
    positions: Tensor,
    cos_sin: Tensor,
    cache: Tensor,
    slot_mapping: Tensor,
) -> Tensor:
    tokens, heads, dim = q.shape
    out = torch.empty((tokens, heads, dim), dtype=q.dtype, device=q.device)
    if tokens == 0:
        return out
    v4_write_kernel[tokens, triton.cdiv(heads, HEADS) + 1](
        out, q, kv, kv_norm, positions, cos_sin, cache, slot_mapping, eps,
        q.stride(0), kv.stride(0), cache.stride(0), cache.stride(1),
        H=heads, D=dim, R=cos_sin.shape[1], BLOCK_SIZE=cache.shape[1], HEADS=HEADS, num_warps=4,
    )  # fmt: skip
    return out
