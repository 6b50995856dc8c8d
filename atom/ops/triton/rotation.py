"""Parts of the attention kernels: per-head norm and rotation in registers, and the cache's type."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rotation(
    cos_sin, D_PAD: tl.constexpr, R: tl.constexpr, INTERLEAVED: tl.constexpr
):  # fmt: skip
    """For every channel the one it is turned with, and what both are multiplied by: [1, D_PAD].
    `cos_sin` points at the position's row."""
    d = tl.arange(0, D_PAD)[None, :]
    if INTERLEAVED:
        other, angle, sign = d ^ 1, d // 2, tl.where(d % 2 == 0, -1.0, 1.0)
    else:  # remainders, of which the compiler knows that neighbours stay neighbours
        other, angle = (d + R // 2) % R, d % (R // 2)
        sign = tl.where(d < R // 2, -1.0, 1.0)
    cos = tl.load(cos_sin + angle, mask=d < R, other=1.0)
    sin = sign * tl.load(cos_sin + R // 2 + angle, mask=d < R, other=0.0)
    return other, cos, sin


@triton.jit
def rotated(
    x, y, weight_x, weight_y, cos, sin, eps, D: tl.constexpr, NORM: tl.constexpr
):  # fmt: skip
    """Heads x [H, D_PAD], and each channel's other one y, normed and rotated: float32, but rounded
    to x's type after each."""
    dtype: tl.constexpr = x.dtype
    x, y = x.to(tl.float32), y.to(tl.float32)
    if NORM:
        factor = tl.rsqrt(tl.sum(x * x, 1) / D + eps)[:, None]
        x = (x * factor * weight_x.to(tl.float32)).to(dtype).to(tl.float32)
        y = (y * factor * weight_y.to(tl.float32)).to(dtype).to(tl.float32)
    return (x * cos + y * sin).to(dtype).to(tl.float32)


@triton.jit
def to_cache(x, scale, dtype: tl.constexpr):
    """x in the type of the cache; float8 holds x / scale."""
    if dtype == tl.float8e4nv:
        x = tl.math.div_rn(x.to(tl.float32), scale)
        return tl.clamp(x, -448.0, 448.0, propagate_nan=tl.PropagateNan.ALL).to(dtype)
    return x.to(dtype)
