"""Decode steps over paged caches that are NaN wherever no key is, for the tests of attention."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from harness import make_metadata, poison
from torch import Tensor

from atom.ops.contracts import AttentionMetadata, AttentionParams
from atom.ops.reference.attention import paged_attention, reshape_and_cache
from atom.ops.reference.elementwise import rms_norm, rotary

FP8 = torch.float8_e4m3fn


@dataclass
class Cached:
    """Sequences of which the last `new` tokens of each are not in the cache yet."""

    k_cache: Tensor
    v_cache: Tensor
    meta: AttentionMetadata

    def copy(self) -> Cached:
        return Cached(self.k_cache.clone(), self.v_cache.clone(), self.meta)


def make_cached(
    lengths: list[int],
    kv_heads: int,
    dim: int,
    block_size: int,
    dtype: torch.dtype,
    kv_dtype: torch.dtype,
    device: str,
    *,
    new: list[int] | None = None,
    filled: bool = False,
    scales: tuple[float, float] = (1.0, 1.0),
    num_padding: int = 0,
) -> Cached:
    """Sequences of `lengths` tokens, of which `new` (1 each) are the step's; `filled`: those are in
    the cache too. A length of 0 is a padding sequence of a captured graph."""
    new = [min(n, 1) for n in lengths] if new is None else new
    counts = [-(-n // block_size) for n in lengths]
    order = torch.randperm(sum(counts) + 3).tolist()
    k_cache = torch.empty(sum(counts) + 3, block_size, kv_heads, dim, dtype=kv_dtype, device=device)
    k_cache, v_cache = poison(k_cache), poison(torch.empty_like(k_cache))
    chunks = []
    for length, count, added in zip(lengths, counts, new, strict=True):
        blocks = [order.pop() for _ in range(count)]
        chunks.append((blocks, length - added, added))
        old = length if filled else length - added
        if old:
            slots = make_metadata([(blocks, 0, old)], block_size, 0, device).slot_mapping
            k, v = torch.randn(2, old, kv_heads, dim).to(device, dtype)
            reshape_and_cache(k, v, k_cache, v_cache, slots, *scales)
    meta = make_metadata(chunks, block_size, num_padding, device)
    if 0 in lengths:  # a row for each sequence, padding or not
        slots = iter(meta.slot_mapping.tolist())
        rows = [next(slots) if length else -1 for length in lengths]
        meta.slot_mapping = torch.tensor(rows, dtype=torch.int64, device=device)
        meta.num_tokens = len(lengths)
    return Cached(k_cache, v_cache, meta)


def relative_error(out: Tensor, expected: Tensor) -> float:
    """NaN where either holds one."""
    out, expected = out.double(), expected.double()
    return float((out - expected).norm() / expected.norm())


def make_params(
    heads: int,
    kv_heads: int,
    dim: int,
    rotated: int,
    dtype: torch.dtype,
    device: str,
    *,
    norms: bool = False,
    **extra: Any,
) -> AttentionParams:
    angles = torch.rand(64, rotated // 2) * 6.3
    weights = (1 + torch.rand(2, dim)).to(device, dtype)
    return AttentionParams(
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=dim,
        scale=dim**-0.5,
        cos_sin=torch.cat((angles.cos(), angles.sin()), 1).to(device),
        q_norm=weights[0] if norms else None,
        k_norm=weights[1] if norms else None,
        norm_eps=1e-5 if norms else 0.0,
        **extra,
    )


def compose(
    qkv: Tensor, positions: Tensor, cached: Cached, params: AttentionParams
) -> tuple[Tensor, Tensor]:
    """The reference's operations one after the other: attention's output and the rotated queries.
    Writes `cached`."""
    q, k, v = qkv.split((params.num_heads, params.num_kv_heads, params.num_kv_heads), 1)
    if params.q_norm is not None and params.k_norm is not None:
        q = rms_norm(q, params.q_norm, params.norm_eps)
        k = rms_norm(k, params.k_norm, params.norm_eps)
    q, k = rotary(q, k, positions, params.cos_sin, params.interleaved)
    meta, scales = cached.meta, (params.k_scale, params.v_scale)
    reshape_and_cache(k, v, cached.k_cache, cached.v_cache, meta.slot_mapping, *scales)
    return attend(q, cached, params), q


def attend(q: Tensor, cached: Cached, params: AttentionParams) -> Tensor:
    """The reference's attention. It knows no padding among the sequences of a decode step, so that
    those are taken out for it."""
    meta = cached.meta
    rows = meta.slot_mapping[: meta.num_seqs] >= 0
    if meta.is_decode:
        queries = q[rows]
        count = len(queries)
        meta = replace(
            meta,
            num_tokens=count,
            num_seqs=count,
            block_table=meta.block_table[rows],
            seq_lens=meta.seq_lens[rows],
            cu_seqlens_q=torch.arange(count + 1, dtype=torch.int32, device=q.device),
        )
    else:
        queries = q
    result = paged_attention(
        queries, cached.k_cache, cached.v_cache, meta, params.scale, params.window, params.sinks,
        params.soft_cap, params.k_scale, params.v_scale,
    )  # fmt: skip
    if not meta.is_decode:
        return result
    out = q.new_zeros(q.shape)
    out[rows] = result
    return out
