"""The largest entry of each row, whatever the shape: few long rows are shared out over programs."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from atom.ops.triton import support
from atom.ops.triton.launch import begin, pdl_options

_BLOCK = 4096  # entries that a program looks at together
_WARPS = 8
_MAX_PARTS = 128
_PROGRAMS = 32  # wanted for each multiprocessor, so that few rows are one block per program


@triton.jit
def order_key(value):
    """int32 in the order of float32 `value`; NaN comes below all numbers, and -0.0 equals 0.0."""
    bits = value.to(tl.int32, bitcast=True)
    key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    key = tl.where(value == 0.0, 0, key)
    return tl.where(value == value, key, -0x80000000)


@triton.jit
def argmax_part_kernel(
    logits,
    best_keys,
    out,
    stride,
    size,
    part_size,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program per row and part of it. With one part the answer, else a key per part."""
    begin(PDL)
    row, part = tl.program_id(0), tl.program_id(1)
    line = logits + row.to(tl.int64) * stride
    first = part * part_size
    stop = tl.minimum(first + part_size, size)
    best = tl.full((BLOCK,), -0x80000000, tl.int32)
    index = first + tl.arange(0, BLOCK)
    for start in range(first, stop, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        value = tl.load(line + cols, mask=cols < stop, other=float("nan")).to(tl.float32)
        key = order_key(value)
        better = key > best
        best = tl.where(better, key, best)
        index = tl.where(better, cols, index)
    # Of equal keys the greatest is the first: the index counts down in the low half.
    packed = tl.max((best.to(tl.int64) << 32) | (0x7FFFFFFF - index).to(tl.int64), axis=0)
    if PARTS == 1:
        tl.store(out + row, 0x7FFFFFFF - (packed & 0x7FFFFFFF))
    else:
        tl.store(best_keys + row * PARTS + part, packed)


@triton.jit
def best_key(best_keys, row, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    """The token that the keys of `row`'s parts say is best."""
    part = tl.arange(0, BLOCK)
    keys = tl.load(best_keys + row * PARTS + part, mask=part < PARTS, other=-0x8000000000000000)
    return 0x7FFFFFFF - (tl.max(keys, axis=0) & 0x7FFFFFFF)


@triton.jit
def argmax_join_kernel(best_keys, out, PARTS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    begin(PDL)
    row = tl.program_id(0)
    tl.store(out + row, best_key(best_keys, row, PARTS, BLOCK))


def parts_of(num_rows: int, size: int, device: torch.device) -> int:
    """Programs per row: enough to fill the GPU, each with a block of work."""
    wanted = -(-_PROGRAMS * support.num_sms(device.index or 0) // num_rows)
    return int(max(1, min(wanted, _MAX_PARTS, -(-size // _BLOCK))))


def argmax(logits: Tensor, out: Tensor | None = None) -> Tensor:
    """[S] int64 from logits [S, V] of any float, rows strided as they like; into `out` if given.

    The first of equals. NaN is not chosen while there is a number; a row of NaN gives 0.
    """
    num_rows = len(logits)
    if out is None:
        out = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    if num_rows == 0:
        return out
    keys, parts = best_of_parts(logits, out)
    if parts > 1:
        pdl = pdl_options(logits.device)
        block = support.next_power_of_2(parts)
        argmax_join_kernel[(num_rows,)](
            keys, out, PARTS=parts, BLOCK=block, PDL=bool(pdl), num_warps=1, **pdl
        )
    return out


def best_of_parts(logits: Tensor, out: Tensor) -> tuple[Tensor, int]:
    """The first half of `argmax`: (keys [S, parts] int64 for `best_key`, parts). With one part the
    keys are `out` [S] int64, the tokens themselves."""
    num_rows, size = logits.shape
    parts = parts_of(num_rows, size, logits.device)
    part_size = -(-size // (parts * _BLOCK)) * _BLOCK
    parts = -(-size // part_size)
    keys = out
    if parts > 1:
        keys = torch.empty((num_rows, parts), dtype=torch.int64, device=logits.device)
    pdl = pdl_options(logits.device)
    argmax_part_kernel[(num_rows, parts)](
        logits,
        keys,
        out,
        logits.stride(0),
        size,
        part_size,
        PARTS=parts,
        BLOCK=_BLOCK,
        PDL=bool(pdl),
        num_warps=_WARPS,
        **pdl,
    )
    return keys, parts
