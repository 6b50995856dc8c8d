"""Ops `projection_norm` and `projection_sums`: RMS norms over all heads of a projection, in place.

A program holds a token's queries and keys in registers: one read, one write. Not measured on a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from atom.ops.registry import OpQuery, register
from atom.ops.triton import support
from atom.ops.triton.launch import begin, pdl_options

MAX_SIZE = 32768  # values of a token that one program holds


@triton.jit
def projection_kernel(
    qkv,
    weight,
    sums,
    row_stride,
    q_count,
    k_count,
    eps,
    Q: tl.constexpr,
    K: tl.constexpr,
    Q_PAD: tl.constexpr,
    K_PAD: tl.constexpr,
    SUMS: tl.constexpr,
    PDL: tl.constexpr,
):
    """SUMS: "none": both at once; "write": only leave them; "read": they are there."""
    token = tl.program_id(0).to(tl.int64)
    row = qkv + token * row_stride
    i, j = tl.arange(0, Q_PAD), tl.arange(0, K_PAD)
    if SUMS != "write":
        weight_q = tl.load(weight + i, mask=i < Q, other=0.0)
        weight_k = tl.load(weight + Q + j, mask=j < K, other=0.0)
    begin(PDL)
    q = tl.load(row + i, mask=i < Q, other=0.0).to(tl.float32)
    k = tl.load(row + Q + j, mask=j < K, other=0.0).to(tl.float32)
    if SUMS == "read":
        sum_q, sum_k = tl.load(sums + token * 2), tl.load(sums + token * 2 + 1)
    else:
        sum_q, sum_k = tl.sum(q * q, axis=0), tl.sum(k * k, axis=0)
    if SUMS == "write":
        tl.store(sums + token * 2, sum_q)
        tl.store(sums + token * 2 + 1, sum_k)
    else:
        q = q * tl.rsqrt(sum_q / q_count + eps) * weight_q
        k = k * tl.rsqrt(sum_k / k_count + eps) * weight_k
        tl.store(row + i, q.to(qkv.dtype.element_ty), mask=i < Q)
        tl.store(row + Q + j, k.to(qkv.dtype.element_ty), mask=j < K)


def _launch(
    qkv: Tensor,
    sizes: tuple[int, int],
    weight: Tensor | None,
    sums: Tensor | None,
    counts: tuple[float, float],
    eps: float,
    mode: str,
) -> None:
    if qkv.shape[0] == 0:
        return
    options = pdl_options(qkv.device)
    q_pad = support.next_power_of_2(sizes[0])
    projection_kernel[(qkv.shape[0],)](
        qkv,
        weight,
        sums,
        qkv.stride(0),
        *counts,
        eps,
        Q=sizes[0],
        K=sizes[1],
        Q_PAD=q_pad,
        K_PAD=support.next_power_of_2(sizes[1]),
        SUMS=mode,
        PDL=bool(options),
        num_warps=4 if q_pad <= 4096 else 8,
        **options,
    )


def _declines(query: OpQuery) -> str | None:
    if query.traceable:
        return "a compiler fuses the plain form itself"
    if query.size("q") > MAX_SIZE:
        return f"q={query.size('q')} is more than {MAX_SIZE}"
    return None


@register("projection_sums", "triton", _declines)
def projection_sums(qkv: Tensor, q_size: int, k_size: int) -> Tensor:
    sums = torch.empty(qkv.shape[0], 2, dtype=torch.float32, device=qkv.device)
    _launch(qkv, (q_size, k_size), None, sums, (1.0, 1.0), 0.0, "write")
    return sums


@register("projection_norm", "triton", _declines)
def projection_norm(
    qkv: Tensor,
    q_size: int,
    k_size: int,
    weight: Tensor,
    eps: float,
    sums: Tensor | None,
    counts: tuple[float, float],
) -> Tensor:
    mode = "none" if sums is None else "read"
    _launch(qkv, (q_size, k_size), weight, sums, counts, eps, mode)
    return qkv
