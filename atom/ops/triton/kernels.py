"""Backend "triton": importing this module registers its operations.

Every launch is asynchronous and reads nothing back, so all of it can be captured in a graph.
"""

from __future__ import annotations

from atom.ops.triton import (
    attention,
    delta,
    elementwise,
    embedding,
    gates,
    linear,
    mla_attention,
    mla_cache,
    mla_prefill,
    moe,
    paged_attention,
    projection_norm,
    reshape_and_cache,
    rotary,
    sparse_cache,
    sparse_mla,
    sparse_topk,
    v4_attention,
    v4_choose,
    v4_compress,
    v4_hyper,
    v4_write,
)

__all__ = [
    "attention",
    "delta",
    "elementwise",
    "embedding",
    "gates",
    "linear",
    "mla_attention",
    "mla_cache",
    "mla_prefill",
    "moe",
    "paged_attention",
    "projection_norm",
    "reshape_and_cache",
    "rotary",
    "sparse_cache",
    "sparse_mla",
    "sparse_topk",
    "v4_attention",
    "v4_choose",
    "v4_compress",
    "v4_hyper",
    "v4_write",
]
