"""op `v4_compress`: tokens that complete an entry pool it, norm it, rotate it and write it.

A program a token; those that complete nothing end at once. In a decode step a program also keeps
its token's row in the ring; else a second launch does, for the first one reads what it overwrites.
Reads 2 span W itemsize a finished entry. Not measured on a GPU yet.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from atom.ops.contracts import AttentionMetadata
from atom.ops.contracts_v4 import Compressor
from atom.ops.registry import register
from atom.ops.triton.rotation import to_cache
from atom.ops.triton.v4_common import declines, owner, turned


@triton.jit
def _keep(
    x, ring, window_table, row, seq, position, end, x_row, ring_block, ring_slot, window_row,
    W2: tl.constexpr, W2_PAD: tl.constexpr, RING: tl.constexpr, BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    """Row `row` of x into the ring of its block, unless a later token of the step comes there."""
    block = position // BLOCK_SIZE
    if position + RING >= tl.minimum(end, (block + 1) * BLOCK_SIZE):
        c = tl.arange(0, W2_PAD)
        page = tl.load(window_table + seq.to(tl.int64) * window_row + block).to(tl.int64)
        to = ring + page * ring_block + position % BLOCK_SIZE % RING * ring_slot
        values = tl.load(x + row.to(tl.int64) * x_row + c, mask=c < W2, other=0.0)
        tl.store(to + c, values, mask=c < W2)


@triton.jit(do_not_specialize=["num_seqs", "window_row"])
def v4_keep_kernel(
    x, ring, window_table, cu_seqlens, seq_lens, num_seqs, x_row, ring_block, ring_slot,
    window_row,
    W2: tl.constexpr, W2_PAD: tl.constexpr, RING: tl.constexpr, BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    seq, position, _ = owner(cu_seqlens, seq_lens, row, num_seqs, False)
    if position >= 0:
        end = tl.load(seq_lens + seq)
        _keep(
            x, ring, window_table, row, seq, position, end, x_row, ring_block, ring_slot,
            window_row, W2, W2_PAD, RING, BLOCK_SIZE,
        )  # fmt: skip


@triton.jit(do_not_specialize=["num_seqs", "table_row", "window_row"])
def v4_compress_kernel(
    x, bias, norm, cos_sin, ring, entries, window_table, table, cu_seqlens, seq_lens,
    num_seqs, eps, x_row, ring_block, ring_slot, entry_block, entry_slot, window_row, table_row,
    D: tl.constexpr, R: tl.constexpr, RATIO: tl.constexpr, SPAN: tl.constexpr,
    W2_PAD: tl.constexpr, RING: tl.constexpr, BLOCK_SIZE: tl.constexpr, TOKENS: tl.constexpr,
    DECODE: tl.constexpr,
):  # fmt: skip
    """TOKENS of a span at a time."""
    W: tl.constexpr = D * (SPAN // RATIO)
    row = tl.program_id(0)
    seq, position, begin = owner(cu_seqlens, seq_lens, row, num_seqs, DECODE)
    if DECODE:  # noqa: SIM102 (known when compiled)
        if position >= 0:
            _keep(
                x, ring, window_table, row, seq, position, position + 1, x_row, ring_block,
                ring_slot, window_row, 2 * W, W2_PAD, RING, BLOCK_SIZE,
            )  # fmt: skip
    if (position < 0) | ((position + 1) % RATIO != 0):
        return
    seq = seq.to(tl.int64)
    d = tl.arange(0, D)[None, :]
    m = tl.full([D], float("-inf"), tl.float32)
    total = tl.zeros([D], tl.float32)
    acc = tl.zeros([D], tl.float32)
    for j in range(0, SPAN, TOKENS):
        at = j + tl.arange(0, TOKENS)
        token = position - SPAN + 1 + at
        live = token >= 0
        fresh = token >= begin
        page = tl.load(
            window_table + seq * window_row + token // BLOCK_SIZE, mask=live & (token < begin),
            other=0,
        ).to(tl.int64)  # fmt: skip
        old = ring + page * ring_block + token % BLOCK_SIZE % RING * ring_slot
        # Of the entry before, its own half of the channels.
        half = tl.where(at >= SPAN - RATIO, W - D, 0)
        source = tl.where(fresh, x + (row - position + token).to(tl.int64) * x_row, old) + half
        value = tl.load(source[:, None] + d, mask=live[:, None], other=0.0).to(tl.float32)
        gate = tl.load(source[:, None] + W + d, mask=live[:, None], other=0.0).to(tl.float32)
        gate += tl.load(bias + (at % RATIO * W + half)[:, None] + d)
        gate = tl.where(live[:, None], gate, float("-inf"))
        new_m = tl.maximum(m, tl.max(gate, 0))
        base = tl.where(new_m == float("-inf"), 0.0, new_m)
        p = tl.exp(gate - base[None, :])
        alpha = tl.exp(m - base)
        total = total * alpha + tl.sum(p, 0)
        acc = acc * alpha + tl.sum(p * value, 0)
        m = new_m
    made = (acc / total)[None, :]
    made = made * tl.rsqrt(tl.sum(made * made, 1) / D + eps)[:, None]
    made = made * tl.load(norm + d).to(tl.float32)
    entry = position // RATIO
    made = turned(made, cos_sin, entry * RATIO, D, R, False).to(x.dtype.element_ty)
    ROWS: tl.constexpr = BLOCK_SIZE // RATIO
    page = tl.load(table + seq * table_row + entry // ROWS).to(tl.int64)
    to = entries + page * entry_block + entry % ROWS * entry_slot
    tl.store(to + d, to_cache(made, 1.0, entries.dtype.element_ty))


@register("v4_compress", "triton", declines)
def v4_compress(
    x: Tensor, compressor: Compressor, ring: Tensor, entries: Tensor, meta: AttentionMetadata
) -> None:
    assert meta.window is not None, "a model with window caches"
    tokens, dim = len(x), entries.shape[2]
    if tokens == 0:
        return
    assert ring.shape[2] == x.shape[1], (ring.shape, x.shape)
    block_size = entries.shape[1] * compressor.ratio
    wide = triton.next_power_of_2(x.shape[1])
    window, strides = meta.window.block_table, (x.stride(0), ring.stride(0), ring.stride(1))
    v4_compress_kernel[(tokens,)](
        x, compressor.bias, compressor.norm, compressor.cos_sin, ring, entries, window,
        meta.block_table, meta.cu_seqlens_q, meta.seq_lens, meta.num_seqs, compressor.eps,
        *strides, entries.stride(0), entries.stride(1), window.stride(0),
        meta.block_table.stride(0),
        D=dim, R=compressor.cos_sin.shape[1], RATIO=compressor.ratio, SPAN=compressor.span,
        W2_PAD=wide, RING=ring.shape[1], BLOCK_SIZE=block_size,
        TOKENS=min(compressor.span, 16), DECODE=meta.is_decode, num_warps=4,
    )  # fmt: skip
    if not meta.is_decode:
        v4_keep_kernel[(tokens,)](
            x, ring, window, meta.cu_seqlens_q, meta.seq_lens, meta.num_seqs, *strides,
            window.stride(0), W2=x.shape[1], W2_PAD=wide, RING=ring.shape[1],
            BLOCK_SIZE=block_size, num_warps=4,
        )  # fmt: skip
