"""Rotary embedding as an operation of its own; `rope_cache` fuses it with the cache write."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from atom.ops.registry import register
from atom.ops.triton import support
from atom.ops.triton.elementwise import declines
from atom.ops.triton.launch import begin, pdl_options


@triton.jit
def _rotate(
    line, head_stride, cos, sin, HEADS: tl.constexpr, H_BLOCK: tl.constexpr, HALF: tl.constexpr,
    BLOCK: tl.constexpr, INTERLEAVED: tl.constexpr,
):  # fmt: skip
    """HEADS heads that start at `line`, in place; cos and sin [BLOCK], of which HALF count."""
    head = tl.arange(0, H_BLOCK)
    start = line + head[:, None] * head_stride
    inside = (head < HEADS)[:, None]
    if INTERLEAVED:
        col = tl.arange(0, 2 * BLOCK)
        places, mask = start + col[None, :], inside & (col < 2 * HALF)[None, :]
        both = tl.load(places, mask=mask, other=0.0).to(tl.float32)
        first, second = tl.split(tl.reshape(both, (H_BLOCK, BLOCK, 2)))
    else:
        col = tl.arange(0, BLOCK)
        places, mask = start + col[None, :], inside & (col < HALF)[None, :]
        first = tl.load(places, mask=mask, other=0.0).to(tl.float32)
        second = tl.load(places + HALF, mask=mask, other=0.0).to(tl.float32)
    kind: tl.constexpr = line.dtype.element_ty
    turned = (first * cos - second * sin).to(kind)
    other = (second * cos + first * sin).to(kind)
    if INTERLEAVED:
        tl.store(places, tl.reshape(tl.join(turned, other), (H_BLOCK, 2 * BLOCK)), mask=mask)
    else:
        tl.store(places, turned, mask=mask)
        tl.store(places + HALF, other, mask=mask)


@triton.jit
def rotary_kernel(
    q,
    k,
    positions,
    cos_sin,
    q_stride,
    q_head_stride,
    k_stride,
    k_head_stride,
    HQ: tl.constexpr,
    HK: tl.constexpr,
    HQ_BLOCK: tl.constexpr,
    HK_BLOCK: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program per token."""
    begin(PDL)
    token = tl.program_id(0).to(tl.int64)
    col = tl.arange(0, BLOCK)
    angles = cos_sin + tl.load(positions + token).to(tl.int64) * (2 * HALF) + col
    cos = tl.load(angles, mask=col < HALF, other=0.0)[None, :]
    sin = tl.load(angles + HALF, mask=col < HALF, other=0.0)[None, :]
    _rotate(q + token * q_stride, q_head_stride, cos, sin, HQ, HQ_BLOCK, HALF, BLOCK, INTERLEAVED)
    _rotate(k + token * k_stride, k_head_stride, cos, sin, HK, HK_BLOCK, HALF, BLOCK, INTERLEAVED)


def rotary(
    q: Tensor, k: Tensor, positions: Tensor, cos_sin: Tensor, interleaved: bool
) -> tuple[Tensor, Tensor]:
    """In place; q [T, Hq, D] and k [T, Hk, D] may be slices of one projection."""
    (tokens, heads, _), kv_heads = q.shape, k.shape[1]
    if tokens == 0:
        return q, k
    half = cos_sin.shape[1] // 2
    pdl = pdl_options(q.device)
    rotary_kernel[(tokens,)](
        q,
        k,
        positions,
        cos_sin,
        q.stride(0),
        q.stride(1),
        k.stride(0),
        k.stride(1),
        HQ=heads,
        HK=kv_heads,
        HQ_BLOCK=support.next_power_of_2(heads),
        HK_BLOCK=support.next_power_of_2(kv_heads),
        HALF=half,
        BLOCK=support.next_power_of_2(half),
        INTERLEAVED=interleaved,
        PDL=bool(pdl),
        num_warps=4,
        **pdl,
    )
    return q, k


def _rotary_apart(
    q: Tensor, k: Tensor, positions: Tensor, cos_sin: Tensor, interleaved: bool
) -> tuple[Tensor, Tensor]:
    # clone() keeps the strides of a dense tensor only; a slice becomes dense.
    return rotary(q.contiguous().clone(), k.contiguous().clone(), positions, cos_sin, interleaved)


register(
    "rotary",
    "triton",
    declines,
    traced=support.define(
        "rotary(Tensor q, Tensor k, Tensor positions, Tensor cos_sin, bool interleaved)"
        " -> (Tensor, Tensor)",
        _rotary_apart,
        lambda q, k, *_: (q.new_empty(q.shape), k.new_empty(k.shape)),
    ),
)(rotary)
