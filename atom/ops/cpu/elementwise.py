"""Norms, rotary embedding and SiLU through the native library. All float32."""

from __future__ import annotations

from struct import Struct

import torch
from torch import Tensor

from atom.ops.cpu import native

# Fields as in native/ops.h; q: integers and addresses, d: doubles.
_RMS_NORM = Struct("=2q6qdq")
_ADD_RMS_NORM = Struct("=2q6qdq")
_ROTARY = Struct("=2q4q4q4q")
_SILU = Struct("=2q4q")
_GATHER = Struct("=2q5q")
_ARGMAX = Struct("=2q4q")

_rms_norm = native.op("rms_norm")
_add_rms_norm = native.op("add_rms_norm")
_rotary = native.op("rotary")
_silu_and_mul = native.op("silu_and_mul")
_gather_rows = native.op("gather_rows")
_argmax = native.op("argmax")


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    shape = x.shape
    if len(shape) == 2:
        heads, head_stride = 1, 0
    else:
        assert len(shape) == 3
        heads, head_stride = shape[1], x.stride(1)
    out = native.empty(tuple(shape))
    native.emit(
        _rms_norm,
        _RMS_NORM.pack(
            *native.rows(shape[0]),
            x.data_ptr(),
            x.stride(0),
            heads,
            head_stride,
            shape[-1],
            weight.data_ptr(),
            eps,
            out.data_ptr(),
        ),
    )
    return out


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    rows, width = x.shape
    out = native.empty((rows, width))
    native.emit(
        _add_rms_norm,
        _ADD_RMS_NORM.pack(
            *native.rows(rows),
            x.data_ptr(),
            x.stride(0),
            width,
            residual.data_ptr(),
            residual.stride(0),
            weight.data_ptr(),
            eps,
            out.data_ptr(),
        ),
    )
    return out, residual


def rotary(
    q: Tensor, k: Tensor, positions: Tensor, cos_sin: Tensor, interleaved: bool
) -> tuple[Tensor, Tensor]:
    native.emit(
        _rotary,
        _ROTARY.pack(
            *native.rows(q.shape[0]),
            q.data_ptr(),
            q.stride(0),
            q.shape[1],
            q.stride(1),
            k.data_ptr(),
            k.stride(0),
            k.shape[1],
            k.stride(1),
            native.address(positions),
            cos_sin.data_ptr(),
            cos_sin.shape[1],
            int(interleaved),
        ),
    )
    return q, k


def silu_and_mul(x: Tensor) -> Tensor:
    rows, double = x.shape
    out = native.empty((rows, double // 2))
    native.emit(
        _silu_and_mul,
        _SILU.pack(*native.rows(rows), x.data_ptr(), x.stride(0), double // 2, out.data_ptr()),
    )
    return out


def gather_rows(x: Tensor, ids: Tensor) -> Tensor:
    """Rows `ids` [L] int64 of x [T, K] -> [L, K]."""
    count, width = ids.shape[0], x.shape[1]
    out = native.empty((count, width))
    native.emit(
        _gather_rows,
        _GATHER.pack(
            *native.rows(count),
            native.address(ids),
            x.data_ptr(),
            x.stride(0),
            width,
            out.data_ptr(),
        ),
    )
    return out


def argmax(x: Tensor) -> Tensor:
    """[L, V] float32 -> [L] int64, the first of the largest."""
    count, width = x.shape
    out = native.empty((count,), torch.int64)
    native.emit(
        _argmax,
        _ARGMAX.pack(*native.rows(count), x.data_ptr(), x.stride(0), width, out.data_ptr()),
    )
    return out
