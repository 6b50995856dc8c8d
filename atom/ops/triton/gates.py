"""Gates after attention and after a shared expert: one launch each, one pass over memory."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from atom.ops.registry import register
from atom.ops.triton import support
from atom.ops.triton.elementwise import declines, declines_norm
from atom.ops.triton.launch import begin, pdl_options


@triton.jit
def sigmoid_mul_kernel(
    out, x, gate, x_row, gate_row, N: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    begin(PDL)
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = cols < N
    value = tl.load(x + row * x_row + cols, mask=inside, other=0.0).to(tl.float32)
    by = tl.load(gate + row * gate_row + cols, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * N + cols, (value * tl.sigmoid(by)).to(out.dtype.element_ty), mask=inside)


@triton.jit
def add_gated_kernel(
    out, part, y, x, g, part_row, y_row, x_row,
    K: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A program has a token."""
    cols = tl.arange(0, BLOCK)
    inside = cols < K
    weight = tl.load(g + cols, mask=inside, other=0.0).to(tl.float32)
    begin(PDL)
    row = tl.program_id(0).to(tl.int64)
    value = tl.load(part + row * part_row + cols, mask=inside, other=0.0).to(tl.float32)
    shared = tl.load(y + row * y_row + cols, mask=inside, other=0.0).to(tl.float32)
    given = tl.load(x + row * x_row + cols, mask=inside, other=0.0).to(tl.float32)
    value += shared * tl.sigmoid(tl.sum(given * weight, 0))
    tl.store(out + row * K + cols, value.to(out.dtype.element_ty), mask=inside)


def sigmoid_mul(x: Tensor, gate: Tensor) -> Tensor:
    """Rows strided as they like."""
    rows, size = x.shape
    out = torch.empty((rows, size), dtype=x.dtype, device=x.device)
    if rows == 0:
        return out
    block = min(1024, support.next_power_of_2(size))
    pdl = pdl_options(x.device)
    sigmoid_mul_kernel[(rows, -(-size // block))](
        out, x, gate, x.stride(0), gate.stride(0),
        N=size, BLOCK=block, PDL=bool(pdl), num_warps=max(1, block // 256), **pdl,
    )  # fmt: skip
    return out


def add_gated(part: Tensor, y: Tensor, x: Tensor, g: Tensor) -> Tensor:
    """Rows strided as they like."""
    rows, size = part.shape
    out = torch.empty((rows, size), dtype=part.dtype, device=part.device)
    if rows == 0:
        return out
    block = support.next_power_of_2(size)
    pdl = pdl_options(x.device)
    add_gated_kernel[(rows,)](
        out, part, y, x, g, part.stride(0), y.stride(0), x.stride(0),
        K=size, BLOCK=block, PDL=bool(pdl), num_warps=min(8, max(1, block // 512)), **pdl,
    )  # fmt: skip
    return out


def _dense_like(x: Tensor, *_: Tensor) -> Tensor:
    return x.new_empty(x.shape)


register(
    "sigmoid_mul",
    "triton",
    declines,
    traced=support.define("sigmoid_mul(Tensor x, Tensor gate) -> Tensor", sigmoid_mul, _dense_like),
)(sigmoid_mul)
register(
    "add_gated",
    "triton",
    declines_norm,
    traced=support.define(
        "add_gated(Tensor part, Tensor y, Tensor x, Tensor g) -> Tensor", add_gated, _dense_like
    ),
)(add_gated)
