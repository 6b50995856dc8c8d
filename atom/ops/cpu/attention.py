"""The paged KV cache through the native library: float32 queries, float32 or bfloat16 caches."""

from __future__ import annotations

from struct import Struct

import torch
from torch import Tensor

from atom.ops.contracts import AttentionMetadata
from atom.ops.cpu import native

# Fields as in native/ops.h.
_CACHE = Struct("=2q12q")
_ATTENTION = Struct("=4q14qd2qdq")

_reshape_and_cache = native.op("reshape_and_cache")
_paged_attention = native.op("paged_attention")


def reshape_and_cache(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> None:
    assert k_scale == v_scale == 1.0, "these caches are not float8: they take no scales"
    native.emit(
        _reshape_and_cache,
        _CACHE.pack(
            *native.rows(k.shape[0]),
            k.data_ptr(),
            k.stride(0),
            k.stride(1),
            v.data_ptr(),
            v.stride(0),
            v.stride(1),
            k.shape[1],
            k.shape[2],
            k_cache.data_ptr(),
            v_cache.data_ptr(),
            k_cache.dtype == torch.bfloat16,
            native.address(slot_mapping),
        ),
    )


def paged_attention(
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
) -> Tensor:
    assert k_scale == v_scale == 1.0, "these caches are not float8: they take no scales"
    tokens, q_heads, head_dim = q.shape
    out = native.empty((tokens, q_heads, head_dim))
    table = meta.block_table
    native.emit(
        _paged_attention,
        _ATTENTION.pack(
            *native.rows(tokens),
            *native.rows(meta.num_seqs),
            q.data_ptr(),
            q.stride(0),
            q.stride(1),
            q_heads,
            k_cache.shape[2],
            head_dim,
            k_cache.data_ptr(),
            v_cache.data_ptr(),
            k_cache.dtype == torch.bfloat16,
            k_cache.shape[1],
            native.address(table),
            native.table_stride(table),
            native.address(meta.cu_seqlens_q),
            native.address(meta.seq_lens),
            scale,
            window,
            0 if sinks is None else sinks.data_ptr(),
            soft_cap,
            out.data_ptr(),
        ),
    )
    return out
