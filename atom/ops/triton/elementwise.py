"""RMS norms and the gated activation: one pass over memory each."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from atom.ops.registry import OpQuery, register
from atom.ops.triton import support
from atom.ops.triton.launch import begin, pdl_options

_DTYPES = ("bfloat16", "float16", "float32")
_MAX_NORM = 16384  # channels of a row that one program holds in registers
_TILE = 2048  # elements of a program where rows are short and many


def declines(query: OpQuery) -> str | None:
    if query.dtype not in _DTYPES:
        return f"dtype {query.dtype} is not one of {', '.join(_DTYPES)}"
    return None


def declines_norm(query: OpQuery) -> str | None:
    size = dict(query.shape).get("K", 0)
    if size > _MAX_NORM:
        return f"K={size} is more than {_MAX_NORM}"
    return declines(query)


@triton.jit(do_not_specialize=["num_rows"])
def rms_norm_kernel(
    x,
    weight,
    out,
    num_rows,
    token_stride,
    head_stride,
    eps,
    HEADS: tl.constexpr,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Rows are (token, head) of x; out is dense. A program takes ROWS of them."""
    cols = tl.arange(0, BLOCK)
    inside = cols < K
    scale = tl.load(weight + cols, mask=inside, other=0.0).to(tl.float32)
    begin(PDL)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    start = (row // HEADS) * token_stride + (row % HEADS) * head_stride
    mask = (row < num_rows)[:, None] & inside[None, :]
    values = tl.load(x + start[:, None] + cols[None, :], mask=mask, other=0.0).to(tl.float32)
    norm = tl.rsqrt(tl.sum(values * values, axis=1) / K + eps)
    values = values * norm[:, None] * scale[None, :]
    places = out + row[:, None] * K + cols[None, :]
    tl.store(places, values.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["num_rows"])
def add_rms_norm_kernel(
    x,
    residual,
    weight,
    total,
    out,
    num_rows,
    x_stride,
    residual_stride,
    total_stride,
    eps,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    PDL: tl.constexpr,
):
    """total = residual + x, rounded; out [T, K], dense, is its norm. `total` may be `residual`."""
    cols = tl.arange(0, BLOCK)
    inside = cols < K
    scale = tl.load(weight + cols, mask=inside, other=0.0).to(tl.float32)
    begin(PDL)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    mask = (row < num_rows)[:, None] & inside[None, :]
    col, row = cols[None, :], row[:, None]
    values = tl.load(x + row * x_stride + col, mask=mask, other=0.0).to(tl.float32)
    values += tl.load(residual + row * residual_stride + col, mask=mask, other=0.0).to(tl.float32)
    rounded = values.to(total.dtype.element_ty)
    tl.store(total + row * total_stride + col, rounded, mask=mask)
    values = rounded.to(tl.float32)
    norm = tl.rsqrt(tl.sum(values * values, axis=1) / K + eps)
    values = values * norm[:, None] * scale[None, :]
    tl.store(out + row * K + col, values.to(out.dtype.element_ty), mask=mask)


@triton.jit
def silu_and_mul_kernel(x, out, stride, I: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):  # noqa: E741
    begin(PDL)
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = cols < I
    gate = tl.load(x + row * stride + cols, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x + row * stride + I + cols, mask=inside, other=0.0).to(tl.float32)
    value = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out + row * I + cols, value.to(out.dtype.element_ty), mask=inside)


def _norm_tile(size: int, num_rows: int) -> tuple[int, int, int]:
    """(channels rounded up, rows of a program, warps). Few rows are spread over all SMs."""
    block = support.next_power_of_2(size)
    rows = max(1, _TILE // block) if num_rows > 512 else 1
    return block, rows, min(8, max(1, block * rows // 512))


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [..., K], rows strided as they like up to three dimensions; weight [K] of any float."""
    size = x.shape[-1]
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if x.dim() not in (2, 3):
        x = x.reshape(-1, size)
    heads = x.shape[1] if x.dim() == 3 else 1
    num_rows = x.shape[0] * heads
    if num_rows == 0:
        return out
    block, rows, warps = _norm_tile(size, num_rows)
    pdl = pdl_options(x.device)
    rms_norm_kernel[(-(-num_rows // rows),)](
        x,
        weight,
        out,
        num_rows,
        x.stride(0),
        x.stride(1) if heads > 1 else 0,
        eps,
        HEADS=heads,
        K=size,
        BLOCK=block,
        ROWS=rows,
        PDL=bool(pdl),
        num_warps=warps,
        **pdl,
    )
    return out


def _add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, total: Tensor
) -> tuple[Tensor, Tensor]:
    num_rows, size = x.shape
    out = torch.empty((num_rows, size), dtype=x.dtype, device=x.device)
    if num_rows == 0:
        return out, total
    block, rows, warps = _norm_tile(size, num_rows)
    pdl = pdl_options(x.device)
    add_rms_norm_kernel[(-(-num_rows // rows),)](
        x,
        residual,
        weight,
        total,
        out,
        num_rows,
        x.stride(0),
        residual.stride(0),
        total.stride(0),
        eps,
        K=size,
        BLOCK=block,
        ROWS=rows,
        PDL=bool(pdl),
        num_warps=warps,
        **pdl,
    )
    return out, total


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x, residual [T, K], rows strided as they like; `residual` is written in place."""
    return _add_rms_norm(x, residual, weight, eps, residual)


def add_rms_norm_apart(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """As `add_rms_norm`, into a new residual."""
    total = torch.empty(x.shape, dtype=residual.dtype, device=x.device)
    return _add_rms_norm(x, residual, weight, eps, total)


def silu_and_mul(x: Tensor) -> Tensor:
    """x [T, 2I], rows strided as they like -> [T, I]."""
    num_rows, size = x.shape[0], x.shape[1] // 2
    out = torch.empty((num_rows, size), dtype=x.dtype, device=x.device)
    if num_rows == 0:
        return out
    block = min(1024, support.next_power_of_2(size))
    pdl = pdl_options(x.device)
    silu_and_mul_kernel[(num_rows, -(-size // block))](
        x,
        out,
        x.stride(0),
        I=size,
        BLOCK=block,
        PDL=bool(pdl),
        num_warps=max(1, block // 256),
        **pdl,
    )
    return out


def _dense_like(x: Tensor, *_: object) -> Tensor:
    return x.new_empty(x.shape)


register(
    "rms_norm",
    "triton",
    declines_norm,
    traced=support.define(
        "rms_norm(Tensor x, Tensor weight, float eps) -> Tensor", rms_norm, _dense_like
    ),
)(rms_norm)
register(
    "add_rms_norm",
    "triton",
    declines_norm,
    traced=support.define(
        "add_rms_norm(Tensor x, Tensor residual, Tensor weight, float eps) -> (Tensor, Tensor)",
        add_rms_norm_apart,
        lambda x, residual, weight, eps: (x.new_empty(x.shape), residual.new_empty(x.shape)),
    ),
)(add_rms_norm)
register(
    "silu_and_mul",
    "triton",
    declines,
    traced=support.define(
        "silu_and_mul(Tensor x) -> Tensor",
        silu_and_mul,
        lambda x: x.new_empty((x.shape[0], x.shape[1] // 2)),
    ),
)(silu_and_mul)
