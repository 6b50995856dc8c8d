"""Decode attention: how `decode_kernel` is cut up and launched.

A launch is PARTS x sequences x KV heads programs. The cut depends on what the host knows, so that a
launch can be captured: the number of sequences, of heads, and the longest length possible.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from atom.ops.contracts import AttentionMetadata, AttentionParams
from atom.ops.triton import support
from atom.ops.triton.decode_kernel import decode_kernel
from atom.ops.triton.launch import pdl_options

FP8 = torch.float8_e4m3fn
# Elements of the float32 workspace that partial results go through.
WORKSPACE = 4 << 20


class Cut(NamedTuple):
    """How a launch is cut up. `parts` of the keys at most, none shorter than `min_part`."""

    block_n: int
    parts: int
    min_part: int
    warps: int
    ahead: bool
    stages: int = 1
    packed: bool = False


class Workspace(NamedTuple):
    partials: Tensor  # float32
    counters: Tensor  # int32, zero between launches


@functools.cache
def workspace(device: torch.device) -> Workspace:
    """One per device, for its one stream. Its address is recorded in graphs: it never moves."""
    assert device.type == "cpu" or not torch.cuda.is_current_stream_capturing()
    partials = torch.empty(WORKSPACE, dtype=torch.float32, device=device)
    return Workspace(partials, torch.zeros(1 << 16, dtype=torch.int32, device=device))


@functools.lru_cache(maxsize=4096)
def choose_cut(
    num_seqs: int, num_kv_heads: int, group: int, head_dim: int, itemsize: int, max_len: int,
    sms: int,
) -> Cut:  # fmt: skip
    """By measurement on an H200 (benchmarks/gpu_decode_attention.py): where programs are many, one
    warp each, so that no thread waits for another; where they are few, more warps on more keys."""
    programs = num_seqs * num_kv_heads
    packed = itemsize == 1 and not (support.IS_ROCM or support.INTERPRETED)
    if head_dim > 128 or itemsize > 2:
        cut = Cut(32, 1, 128, 4, True)
    elif programs >= 3 * sms and itemsize == 1:
        cut = Cut(16, 1, 128, 1, False, 5)
    elif programs >= 6 * sms:
        cut = Cut(16, 1, 128, 1, False, 3)
    elif programs >= 3 * sms:
        cut = Cut(32, 1, 128, 2, True)
    else:
        cut = Cut(64, 1, 256, 4, True)
    cut = cut._replace(packed=packed and head_dim >= 64)
    if programs >= sms:
        return cut
    # A part that is worth its merging; no more programs than run at the same time.
    parts = support.next_power_of_2(2 * sms // programs)
    parts = min(parts, support.next_power_of_2(triton.cdiv(max_len, cut.min_part)), 64)
    while parts > 1 and _partial_size(programs * parts, group, head_dim) > WORKSPACE:
        parts //= 2
    return cut._replace(parts=parts)


def _partial_size(programs: int, group: int, head_dim: int) -> int:
    """Elements of the workspace: per head an output, its maximum and its denominator."""
    return programs * group * (head_dim + 2)


def launch(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    meta: AttentionMetadata,
    params: AttentionParams,
    out: Tensor,
    positions: Tensor | None = None,
    cut: Cut | None = None,
    dependent: bool = True,
) -> Tensor:
    """q [S, Hq, D], or with `positions` [S] int64 the projection [S, Hq + 2 Hk, D], to be normed
    and rotated, its keys and values to be cached -> `out` [S, Hq, D]."""
    device = q.device
    num_seqs = meta.num_seqs
    hk, dim = k_cache.shape[2], k_cache.shape[3]
    group = params.num_heads // hk
    if cut is None:
        longest = min(meta.max_seq_len, params.window or meta.max_seq_len)
        cut = choose_cut(
            num_seqs, hk, group, dim, k_cache.element_size(), longest,
            support.num_sms(device.index or 0),
        )  # fmt: skip
    partials, counters = workspace(device)
    if cut.parts > 1:
        assert _partial_size(num_seqs * hk * cut.parts, group, dim) <= WORKSPACE, cut
        assert cut.min_part >= cut.block_n, cut
    block_size = k_cache.shape[1]
    packed = cut.packed and q.dtype != torch.float32
    if packed:
        k_cache, v_cache = k_cache.view(torch.int32), v_cache.view(torch.int32)
    fused = positions is not None
    norm = fused and params.q_norm is not None
    cos_sin = params.cos_sin
    dim_pad = support.next_power_of_2(dim)
    # Partial results merged at a time: as many as fit some registers of each thread.
    step = max(1, min(16, 1024 * max(cut.warps, 2) // (dim_pad * support.next_power_of_2(group))))
    pdl = pdl_options(device) if dependent else {}
    decode_kernel[hk, num_seqs, cut.parts](
        out,
        q,
        k_cache,
        v_cache,
        meta.block_table,
        meta.seq_lens,
        partials if params.sinks is None else params.sinks,
        partials,
        counters,
        positions if fused else meta.slot_mapping,
        meta.slot_mapping,
        cos_sin,
        params.q_norm if norm else cos_sin,
        params.k_norm if norm else cos_sin,
        params.scale,
        params.soft_cap,
        params.k_scale,
        params.v_scale,
        params.norm_eps,
        out.stride(0),
        q.stride(0),
        meta.block_table.stride(0),
        *k_cache.stride()[:3],
        cut.min_part,
        HK=hk,
        G=group,
        D=dim,
        D_PAD=dim_pad,
        R=cos_sin.shape[1] if fused else 0,
        BLOCK_SIZE=block_size,
        WINDOW=params.window,
        CAPPED=params.soft_cap > 0,
        SINKS=params.sinks is not None,
        FUSED=fused,
        INTERLEAVED=params.interleaved,
        NORM=norm,
        ONE_PAGE=params.window == 0 and block_size % cut.block_n == 0,
        BLOCK_N=cut.block_n,
        SPLIT=cut.parts > 1,
        AHEAD=cut.ahead,
        STAGES=cut.stages,
        PACKED=packed,
        STEP=step,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        PDL=bool(pdl),
        num_warps=cut.warps,
        **pdl,
    )
    return out


def decode_attention(
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
    """Op `paged_attention` where each sequence has one query: row s of q [T, Hq, D] is that of
    sequence s."""
    if out is None:
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    params = AttentionParams(
        num_heads=q.shape[1],
        num_kv_heads=k_cache.shape[2],
        head_dim=q.shape[2],
        scale=scale,
        cos_sin=workspace(q.device).partials,
        window=window,
        sinks=sinks,
        soft_cap=soft_cap,
        k_scale=k_scale,
        v_scale=v_scale,
    )
    return launch(q, k_cache, v_cache, meta, params, out)
