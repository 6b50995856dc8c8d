"""Attention of many queries over the paged cache: prefill chunks, decodes, any mixture of them.

A tile of the kernel is BLOCK_Q query tokens of one sequence times the query heads that share one
KV head, so that keys and values are read once for the whole group. A tile finds its sequence by a
binary search on the device: the grid depends on counts that the host knows, and can be captured.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from atom.ops.contracts import AttentionMetadata
from atom.ops.triton import support
from atom.ops.triton.varlen_hopper import varlen_hopper_kernel

LOG2_E = 1.4426950408889634


@triton.jit
def find_sequence(cu_seqlens, tile, num_seqs, BLOCK_Q: tl.constexpr):
    """The sequence that owns query tile `tile`, where s begins at cu_seqlens[s] // BLOCK_Q + s."""
    low, high = 0, num_seqs
    while low < high:
        middle = (low + high) // 2
        if tl.load(cu_seqlens + middle) // BLOCK_Q + middle <= tile:
            low = middle + 1
        else:
            high = middle
    return low - 1


@triton.jit
def _tanh(x):
    return 1.0 - 2.0 / (tl.exp2(x * 2.8853900817779268) + 1.0)


# Sizes that change from step to step must not lead to new compilations.
@triton.jit(do_not_specialize=["num_seqs", "table_row"])
def varlen_attention_kernel(
    out, q, k_cache, v_cache, block_table, cu_seqlens, seq_lens, sinks,
    num_seqs, scale_log2, cap, cap_log2, v_scale,
    out_token, out_head, q_token, q_head, k_block, k_slot, k_head, v_block, v_slot, v_head,
    table_row,
    GROUP: tl.constexpr, GROUP_PAD: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_N: tl.constexpr, WINDOW: tl.constexpr,
    CAPPED: tl.constexpr, SINKS: tl.constexpr, SPLIT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Program (h, t): KV head h and query tile t. Scores are kept in powers of two.

    SPLIT: key blocks that every row sees in full have a loop of their own, without masks.
    """
    head, tile = tl.program_id(0), tl.program_id(1)
    seq = find_sequence(cu_seqlens, tile, num_seqs, BLOCK_Q)
    start = tl.load(cu_seqlens + seq)
    q_len = tl.load(cu_seqlens + seq + 1) - start
    tiles = (q_len + BLOCK_Q - 1) // BLOCK_Q
    local = tile - (start // BLOCK_Q + seq)
    if local >= tiles:
        return
    # The last tile of a sequence has the most keys: heavy work starts first.
    first = (tiles - 1 - local) * BLOCK_Q
    context = tl.load(seq_lens + seq) - q_len
    lowest = context + first  # positions of the tile's queries: lowest .. end - 1
    end = tl.minimum(lowest + BLOCK_Q, context + q_len)

    row = tl.arange(0, BLOCK_Q * GROUP_PAD)
    token, member = row // GROUP_PAD, row % GROUP_PAD
    alive = (lowest + token < end) & (member < GROUP)
    query = tl.minimum(lowest + token, end - 1)
    d = tl.arange(0, D_PAD)
    in_head = d < D
    q_heads = head * GROUP + member
    q_at = q + (start + first + token).to(tl.int64) * q_token + q_heads * q_head
    x = tl.load(q_at[:, None] + d[None, :], mask=alive[:, None] & in_head[None, :], other=0.0)
    acc = tl.zeros([BLOCK_Q * GROUP_PAD, D_PAD], tl.float32)
    if SINKS:
        top = tl.load(sinks + q_heads, mask=member < GROUP, other=0.0) * 1.4426950408889634
        total = tl.full([BLOCK_Q * GROUP_PAD], 1.0, tl.float32)
    else:
        top = tl.full([BLOCK_Q * GROUP_PAD], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_Q * GROUP_PAD], tl.float32)

    table = block_table + seq.to(tl.int64) * table_row
    k_base, v_base = k_cache + head * k_head, v_cache + head * v_head
    begin = tl.maximum(lowest - WINDOW + 1, 0) // BLOCK_N * BLOCK_N if WINDOW > 0 else 0
    middle, tail = begin, begin
    if SPLIT:
        # Blocks from `middle` to `tail` are seen in full by every query of the tile.
        tail = tl.maximum((lowest + 1) // BLOCK_N * BLOCK_N, begin)
        if WINDOW > 0:
            seen = tl.maximum(end - WINDOW, 0)
            middle = tl.minimum((seen + BLOCK_N - 1) // BLOCK_N * BLOCK_N, tail)
            middle = tl.maximum(middle, begin)
    for PHASE in tl.static_range(0 if WINDOW > 0 and SPLIT else 1 if SPLIT else 2, 3):
        low = begin if PHASE == 0 else middle if PHASE == 1 else tail
        high = middle if PHASE == 0 else tail if PHASE == 1 else end
        for at in range(low, high, BLOCK_N):
            key = at + tl.arange(0, BLOCK_N)
            live = key < end
            if PHASE == 2:
                page = tl.load(table + key // BLOCK_SIZE, mask=live, other=0).to(tl.int64)
            else:
                page = tl.load(table + key // BLOCK_SIZE).to(tl.int64)
            k_at = k_base + page * k_block + (key % BLOCK_SIZE) * k_slot
            v_at = v_base + page * v_block + (key % BLOCK_SIZE) * v_slot
            if D < D_PAD:
                k = tl.load(k_at[:, None] + d[None, :], mask=in_head[None, :], other=0.0)
            else:
                k = tl.load(k_at[:, None] + d[None, :])
            # A slot without a key may hold NaN: the mask hides it in k's scores, zeros do in v.
            if PHASE == 2:
                v_mask = live[:, None] & in_head[None, :] if D < D_PAD else live[:, None]
                v = tl.load(v_at[:, None] + d[None, :], mask=v_mask, other=0.0)
            elif D < D_PAD:
                v = tl.load(v_at[:, None] + d[None, :], mask=in_head[None, :], other=0.0)
            else:
                v = tl.load(v_at[:, None] + d[None, :])
            s = tl.dot(x, tl.trans(k.to(x.dtype)), input_precision=PRECISION)
            if CAPPED:
                s = _tanh(s * cap) * cap_log2
            if PHASE == 2 and (SPLIT or at + BLOCK_N > lowest):
                s = tl.where(key[None, :] <= query[:, None], s, float("-inf"))
            if WINDOW > 0 and PHASE != 1:
                s = tl.where(key[None, :] > query[:, None] - WINDOW, s, float("-inf"))
            block_top = tl.max(s, 1) if CAPPED else tl.max(s, 1) * scale_log2
            new_top = tl.maximum(top, block_top)
            # A row that has seen no key yet: its weights are 0, not NaN.
            base = tl.where(new_top == float("-inf"), 0.0, new_top) if WINDOW > 0 else new_top
            s = s if CAPPED else s * scale_log2
            p = tl.exp2(s - base[:, None])
            alpha = tl.exp2(top - base)
            total = total * alpha + tl.sum(p, 1)
            acc = acc * alpha[:, None]
            acc = tl.dot(p.to(x.dtype), v.to(x.dtype), acc, input_precision=PRECISION)
            top = new_top
    # Padding sequences of a captured step have no keys: zeros.
    acc = acc * tl.where(total > 0, v_scale / total, 0.0)[:, None]
    out_at = out + (start + first + token).to(tl.int64) * out_token + q_heads * out_head
    mask = alive[:, None] & in_head[None, :]
    tl.store(out_at[:, None] + d[None, :], acc.to(out.dtype.element_ty), mask=mask)


class Tile(NamedTuple):
    """How the work is cut: rows of a tile (query tokens times heads), keys of a step."""

    rows: int
    keys: int
    warps: int
    stages: int
    split: bool = True  # a loop of its own for the key blocks that need no mask


def choose_tile(dtype: torch.dtype, head_dim: int) -> Tile:
    """`head_dim` is the padded one."""
    if dtype == torch.float32:
        return Tile(32, 32, 4, 1)
    if support.IS_ROCM:  # 64 KiB of shared memory
        return Tile(128, 32 if head_dim > 128 else 64, 4, 1)
    if head_dim > 128:
        return Tile(128, 64, 8, 2)
    return Tile(128, 32, 4, 3)


class Shape(NamedTuple):
    """Query heads of a KV head and head size, and both as powers of two."""

    group: int
    group_pad: int
    dim_pad: int
    dim: int


def _for_hopper(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, out: Tensor, group_pad: int, soft_cap: float
) -> bool:
    """Whether the kernel written for Hopper can serve: half precision, or a float8 cache, and rows
    that copies of 16 bytes reach."""
    return (
        support.is_hopper(q.device)
        and q.dtype != torch.float32
        and k_cache.dtype in (q.dtype, torch.float8_e4m3fn)
        and q.shape[2] in (64, 128)
        and group_pad <= 128
        and not soft_cap
        and k_cache.stride() == v_cache.stride()
        and all(n % 16 == 0 for n in (*k_cache.stride()[:3], *q.stride()[:2], *out.stride()[:2]))
    )


@functools.cache
def _schedule(device: torch.device) -> Tensor:
    """Counters that blocks take their tiles from; every launch leaves them at zero, and launches
    follow one another on one stream."""
    return torch.zeros(2, dtype=torch.int32, device=device)


def _launch_hopper(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    meta: AttentionMetadata,
    scale: float,
    window: int,
    sinks: Tensor | None,
    v_scale: float,
    out: Tensor,
    shape: Shape,
) -> None:
    heads = k_cache.shape[2]
    block_q = 128 // shape.group_pad
    tiles = (meta.num_tokens // block_q + meta.num_seqs) * heads
    varlen_hopper_kernel[(min(support.num_sms(q.device.index or 0), tiles),)](
        out, _schedule(q.device), q, k_cache, v_cache, meta.block_table, meta.cu_seqlens_q,
        meta.seq_lens, meta.seq_lens if sinks is None else sinks, meta.num_seqs, tiles,
        scale * LOG2_E, v_scale,
        out.stride(0), out.stride(1), q.stride(0), q.stride(1), *k_cache.stride()[:3],
        meta.block_table.stride(0),
        HEADS=heads, GROUP=shape.group, GROUP_PAD=shape.group_pad, D=shape.dim,
        BLOCK_SIZE=k_cache.shape[1], BLOCK_Q=block_q, BLOCK_N=128, WINDOW=window,
        SINKS=sinks is not None, STAGES=2, REGISTERS=208, num_warps=4,
    )  # fmt: skip


def varlen_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    meta: AttentionMetadata,
    scale: float,
    window: int = 0,
    sinks: Tensor | None = None,
    soft_cap: float = 0.0,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    out: Tensor | None = None,
) -> Tensor:
    """op `paged_attention` for any step. q [T, Hq, D], caches [B, bs, Hk, D] -> [T, Hq, D]."""
    if out is None:
        out = torch.empty_like(q)
    scale *= k_scale
    group = q.shape[1] // k_cache.shape[2]
    group_pad, d_pad = (support.next_power_of_2(n) for n in (group, q.shape[2]))
    shape = Shape(group, group_pad, d_pad, q.shape[2])
    if _for_hopper(q, k_cache, v_cache, out, group_pad, soft_cap):
        _launch_hopper(q, k_cache, v_cache, meta, scale, window, sinks, v_scale, out, shape)
        return out
    tile = choose_tile(q.dtype, d_pad)
    block_q = max(tile.rows // group_pad, 1)
    grid = (k_cache.shape[2], meta.num_tokens // block_q + meta.num_seqs)
    varlen_attention_kernel[grid](
        out, q, k_cache, v_cache, meta.block_table, meta.cu_seqlens_q, meta.seq_lens, sinks,
        meta.num_seqs, scale * LOG2_E, scale / (soft_cap or 1.0), soft_cap * LOG2_E, v_scale,
        out.stride(0), out.stride(1), q.stride(0), q.stride(1), *k_cache.stride()[:3],
        *v_cache.stride()[:3], meta.block_table.stride(0),
        GROUP=group, GROUP_PAD=group_pad, D=shape.dim, D_PAD=d_pad, BLOCK_SIZE=k_cache.shape[1],
        BLOCK_Q=block_q, BLOCK_N=tile.keys, WINDOW=window, CAPPED=soft_cap > 0,
        SINKS=sinks is not None, SPLIT=tile.split,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return out
