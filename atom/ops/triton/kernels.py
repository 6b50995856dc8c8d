"""Backend "triton": importing this module registers its operations.

Every launch is asynchronous and reads nothing back, so all of it can be captured in a graph.
"""

from __future__ import annotations

from atom.ops.triton import (
    attention,
    elementwise,
    embedding,
    linear,
    moe,
    paged_attention,
    reshape_and_cache,
    rotary,
)

__all__ = [
    "attention",
    "elementwise",
    "embedding",
    "linear",
    "moe",
    "paged_attention",
    "reshape_and_cache",
    "rotary",
]
