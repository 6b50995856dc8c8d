"""Parts of DeepSeek V4's kernels: whose a row is, and the rotation of the last channels."""

from __future__ import annotations

import triton
import triton.language as tl

from atom.ops.registry import OpQuery
from atom.ops.triton import support

_DTYPES = ("bfloat16", "float16", "float32")


def declines(query: OpQuery) -> str | None:
    """What all of them ask: rows that are whole powers of two."""
    if query.dtype not in _DTYPES:
        return f"dtype {query.dtype} is not one of {', '.join(_DTYPES)}"
    for name in ("D", "R"):
        size = query.size(name)
        if size != support.next_power_of_2(size):
            return f"{name}={size} is not a power of two"
    return None


@triton.jit
def owner(cu_seqlens, seq_lens, row, num_seqs, DECODE: tl.constexpr):
    """Row `row` of the step: (its sequence, its position, the position of the sequence's first
    token of the step); position -1 for padding. DECODE: row s is the only one of sequence s."""
    if DECODE:
        position = tl.load(seq_lens + row) - 1
        return row, position, position
    low, high = 0, num_seqs  # the last sequence that begins at the row or before
    while low < high:
        middle = (low + high) // 2
        if tl.load(cu_seqlens + middle) <= row:
            low = middle + 1
        else:
            high = middle
    seq = low - 1
    end = tl.load(cu_seqlens + seq + 1)
    length = tl.load(seq_lens + seq)
    position = tl.where(row < end, length - (end - row), -1)
    return seq, position, length - (end - tl.load(cu_seqlens + seq))


@triton.jit
def turned(x, cos_sin, position, D: tl.constexpr, R: tl.constexpr, BACK: tl.constexpr):
    """x [H, D] float32: its last R channels turned by `position`, or back, in pairs. The table
    `cos_sin` is [positions, R] float32."""
    pair = tl.arange(0, D // 2) - (D - R) // 2
    angles = cos_sin + position.to(tl.int64) * R + pair
    cos = tl.load(angles, mask=pair >= 0, other=1.0)[None, :]
    sin = tl.load(angles + R // 2, mask=pair >= 0, other=0.0)[None, :]
    if BACK:
        sin = -sin
    even, odd = tl.split(tl.reshape(x, (x.shape[0], D // 2, 2)))
    return tl.reshape(tl.join(even * cos - odd * sin, odd * cos + even * sin), (x.shape[0], D))
