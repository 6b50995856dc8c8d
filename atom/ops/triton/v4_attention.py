"""op `v4_attention`: one key head over recent tokens and entries, for any step.

Keys are values, and all query heads of a token read the same ones: a program takes one token and up
to 64 heads, so that tensor cores multiply whole tiles even in decode, and a key is read once per
token. Entries are gathered by number. Few tokens cut their keys into parts, merged by a second
launch: the floor of a decode is the bytes of its keys, (window + entries) * D * itemsize a token.
Not measured on a GPU yet: the cut follows what decode attention of other models wants.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from atom.ops.contracts import AttentionMetadata
from atom.ops.registry import OpQuery, register
from atom.ops.triton import support
from atom.ops.triton.v4_common import declines, owner, turned

LOG2_E = 1.4426950408889634
MAX_HEAD_DIM = 512
MERGED = 16  # heads of a program that merges parts


@triton.jit
def _finish(
    out, m, total, acc, sinks, cos_sin, position, head, H: tl.constexpr, D: tl.constexpr,
    R: tl.constexpr,
):  # fmt: skip
    """Sinks join the denominator, and the rotation of the values is undone. `out`: the token's."""
    sink = tl.load(sinks + head, mask=head < H, other=0.0) * 1.4426950408889634
    top = tl.maximum(m, sink)
    factor = tl.exp2(m - top)
    acc = acc * (factor / (total * factor + tl.exp2(sink - top)))[:, None]
    acc = turned(acc, cos_sin, tl.maximum(position, 0), D, R, True)
    d = tl.arange(0, D)
    at = out + head[:, None] * D + d[None, :]
    tl.store(at, acc.to(out.dtype.element_ty), mask=(head < H)[:, None])


# Sizes that change from step to step must not lead to new compilations.
@triton.jit(do_not_specialize=["num_seqs", "table_row", "window_row"])
def v4_attention_kernel(
    out, partials, sums, q, cache, entries, chosen, window_table, table, cu_seqlens, seq_lens,
    sinks, cos_sin, num_seqs, scale,
    cache_block, cache_slot, entry_block, entry_slot, window_row, table_row,
    H: tl.constexpr, D: tl.constexpr, R: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    ROWS: tl.constexpr, WINDOW: tl.constexpr, RATIO: tl.constexpr, K: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_N: tl.constexpr, SPLIT: tl.constexpr, DECODE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Program (t, h, i): token t, block h of heads, part i of the keys, whose tiles are dealt out
    in turn: those of the window first. K > 0: entries are those in `chosen` [T, K]. ROWS: entries
    of a block. `scale` is in powers of two."""
    token, part, parts = tl.program_id(0), tl.program_id(2), tl.num_programs(2)
    seq, position, _ = owner(cu_seqlens, seq_lens, token, num_seqs, DECODE)
    head, d = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H), tl.arange(0, D)
    row = (token.to(tl.int64) * H + head)[:, None] * D + d[None, :]
    x = tl.load(q + row, mask=(head < H)[:, None], other=0.0)
    lowest = tl.maximum(position - WINDOW + 1, 0)
    recent = tl.cdiv(position + 1 - lowest, BLOCK_N)  # tiles
    tiles = recent
    if RATIO > 0:
        count = (position + 1) // RATIO
        if K > 0:
            count = tl.minimum(count, K)
        tiles += tl.cdiv(count, BLOCK_N)
    seq = seq.to(tl.int64)
    m = tl.full([BLOCK_H], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_H], tl.float32)
    acc = tl.zeros([BLOCK_H, D], tl.float32)
    for tile in range(part, tiles, parts):
        n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        key = lowest + n
        live = (tile < recent) & (key <= position)
        page = tl.load(window_table + seq * window_row + key // BLOCK_SIZE, mask=live, other=0)
        at = cache + page.to(tl.int64) * cache_block + key % BLOCK_SIZE * cache_slot
        if RATIO > 0:
            entry = n - recent * BLOCK_N
            there = (tile >= recent) & (entry < count)
            if K > 0:
                entry = tl.load(chosen + token.to(tl.int64) * K + entry, mask=there, other=-1)
                there = there & (entry >= 0)
            page = tl.load(table + seq * table_row + entry // ROWS, mask=there, other=0)
            other = entries + page.to(tl.int64) * entry_block + entry % ROWS * entry_slot
            at = tl.where(there, other, at)
            live = live | there
        k = tl.load(at[:, None] + d[None, :], mask=live[:, None], other=0.0).to(x.dtype)
        s = tl.dot(x, tl.trans(k), input_precision=PRECISION) * scale
        s = tl.where(live[None, :], s, float("-inf"))
        new_m = tl.maximum(m, tl.max(s, 1))
        base = tl.where(new_m == float("-inf"), 0.0, new_m)
        p = tl.exp2(s - base[:, None])
        alpha = tl.exp2(m - base)
        total = total * alpha + tl.sum(p, 1)
        acc = tl.dot(p.to(x.dtype), k, acc * alpha[:, None], input_precision=PRECISION)
        m = new_m
    if SPLIT:
        group = (token.to(tl.int64) * parts + part) * H + head
        inside = head < H
        tl.store(sums + group * 2, m, mask=inside)
        tl.store(sums + group * 2 + 1, total, mask=inside)
        tl.store(partials + group[:, None] * D + d[None, :], acc, mask=inside[:, None])
    else:
        out += token.to(tl.int64) * (H * D)
        _finish(out, m, total, acc, sinks, cos_sin, position, head, H, D, R)


@triton.jit(do_not_specialize=["num_seqs", "parts"])
def v4_merge_kernel(
    out, partials, sums, cu_seqlens, seq_lens, sinks, cos_sin, num_seqs, parts,
    H: tl.constexpr, D: tl.constexpr, R: tl.constexpr, BLOCK_H: tl.constexpr,
    DECODE: tl.constexpr,
):  # fmt: skip
    """Program (t, h): the parts of a token and block of heads, in their order."""
    token = tl.program_id(0)
    _, position, _ = owner(cu_seqlens, seq_lens, token, num_seqs, DECODE)
    head, d = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H), tl.arange(0, D)
    inside = head < H
    m = tl.full([BLOCK_H], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_H], tl.float32)
    acc = tl.zeros([BLOCK_H, D], tl.float32)
    for part in range(0, parts):
        group = (token.to(tl.int64) * parts + part) * H + head
        part_m = tl.load(sums + group * 2, mask=inside, other=float("-inf"))
        part_total = tl.load(sums + group * 2 + 1, mask=inside, other=0.0)
        at = partials + group[:, None] * D + d[None, :]
        part_acc = tl.load(at, mask=inside[:, None], other=0.0)
        new_m = tl.maximum(m, part_m)
        base = tl.where(new_m == float("-inf"), 0.0, new_m)
        alpha, weight = tl.exp2(m - base), tl.exp2(part_m - base)
        total = total * alpha + part_total * weight
        acc = acc * alpha[:, None] + part_acc * weight[:, None]
        m = new_m
    out += token.to(tl.int64) * (H * D)
    _finish(out, m, total, acc, sinks, cos_sin, position, head, H, D, R)


class Cut(NamedTuple):
    """How a launch is cut up: heads and keys of a tile, parts of the keys."""

    heads: int
    keys: int
    parts: int
    warps: int


def choose_cut(tokens: int, heads: int, dtype: torch.dtype, max_keys: int, sms: int) -> Cut:
    """`max_keys`: the most that a token may see."""
    block_h = min(max(support.next_power_of_2(heads), 16), 64)
    keys, warps = 32, 8 if block_h == 64 else 4
    if dtype == torch.float32 or support.IS_ROCM:  # registers; 64 KiB of shared memory
        block_h, keys, warps = 16, 16, 4
    programs = tokens * triton.cdiv(heads, block_h)
    parts = 1
    # No more programs than run at the same time, and no part below a few tiles.
    while programs * parts * 2 <= 2 * sms and parts * 4 * keys < max_keys:
        parts *= 2
    return Cut(block_h, keys, parts, warps)


def _declines(query: OpQuery) -> str | None:
    if query.size("D") > MAX_HEAD_DIM:
        return f"heads of at most {MAX_HEAD_DIM}"
    return declines(query)


@register("v4_attention", "triton", _declines)
def v4_attention(
    q: Tensor,
    cache: Tensor,
    entries: Tensor | None,
    chosen: Tensor | None,
    positions: Tensor,
    cos_sin: Tensor,
    meta: AttentionMetadata,
    window: int,
    ratio: int,
    sinks: Tensor,
    cut: Cut | None = None,
) -> Tensor:
    """q [T, Hq, D], dense. `cut` is for tests."""
    assert meta.window is not None, "a model with window caches"
    tokens, heads, dim = q.shape
    out = torch.empty_like(q)
    if tokens == 0:
        return out
    held = cache if entries is None else entries
    best = 0 if chosen is None else chosen.shape[1]
    if cut is None:
        most = meta.max_seq_len // ratio if ratio else 0
        sms = support.num_sms(q.device.index or 0)
        cut = choose_cut(tokens, heads, q.dtype, window + min(most, best or most), sms)
    sums = partials = out
    if cut.parts > 1:
        shape = (tokens, cut.parts, heads)
        partials = torch.empty((*shape, dim), dtype=torch.float32, device=q.device)
        sums = torch.empty((*shape, 2), dtype=torch.float32, device=q.device)
    blocks = triton.cdiv(heads, cut.heads)
    shared = {"H": heads, "D": dim, "R": cos_sin.shape[1], "DECODE": meta.is_decode}
    v4_attention_kernel[tokens, blocks, cut.parts](
        out, partials, sums, q, cache, held, meta.seq_lens if chosen is None else chosen,
        meta.window.block_table, meta.block_table, meta.cu_seqlens_q, meta.seq_lens,
        sinks, cos_sin, meta.num_seqs, dim**-0.5 * LOG2_E,
        cache.stride(0), cache.stride(1), held.stride(0), held.stride(1),
        meta.window.block_table.stride(0), meta.block_table.stride(0),
        BLOCK_SIZE=cache.shape[1], ROWS=held.shape[1], WINDOW=window, RATIO=ratio, K=best,
        BLOCK_H=cut.heads, BLOCK_N=cut.keys, SPLIT=cut.parts > 1,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        num_warps=cut.warps, num_stages=2, **shared,
    )  # fmt: skip
    if cut.parts > 1:
        v4_merge_kernel[tokens, triton.cdiv(heads, MERGED)](
            out, partials, sums, meta.cu_seqlens_q, meta.seq_lens, sinks, cos_sin,
            meta.num_seqs, cut.parts, BLOCK_H=MERGED, num_warps=4, **shared,
        )  # fmt: skip
    return out
