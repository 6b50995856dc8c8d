"""The sampler's kernels, log-probabilities and penalties, for a vocabulary of 128256."""

from __future__ import annotations

from typing import Any

from atom.ops.triton import logprobs, penalties
from atom.ops.triton import sampling_filters as filters
from atom.ops.triton import sampling_kernels as kernels

TYPES = {
    **dict.fromkeys(
        ("logits", "least", "pivots", "partials", "found", "floors", "sums", "peaks"), "*fp32"
    ),
    **dict.fromkeys(("stats", "logprobs", "top_logprobs"), "*fp32"),
    **dict.fromkeys(("repetition", "frequency", "presence"), "*fp32"),
    **dict.fromkeys(
        ("settings", "counts", "numbers", "members", "ranks", "top_ids", "pool"), "*i32"
    ),
    **dict.fromkeys(("keys", "out", "rows", "token_ids", "bests"), "*i64"),
    **dict.fromkeys(("indices", "pool_rows", "lengths", "num_prompt"), "*i64"),
    "state": "*fp64",
    **dict.fromkeys(("stride", "size", "num_rows", "num_chunks", "num_top", "pool_stride"), "i32"),
}
CONSTANTS = {
    "CHUNK": 4096,
    "CHUNKS": 32,
    "GROUPS": 64,
    "ALL": 2048,
    "LINE": 64,
    "SMALL": 32,
    "MEMBERS": 256,
    "NARROW": True,
    "SEARCH": True,
    "PIVOTS": 16,
    "CAPACITY": 512,
    "FILTERS": True,
    "HAS_ROWS": True,
    "TOP": 32,
    "GROUP": 64,
    "BLOCK": 1024,
    "PDL": True,
}


def _row(kernel: Any, warps: int, **constants: int) -> tuple[Any, dict[str, str], Any, Any]:
    names = kernel.arg_names
    every = {**CONSTANTS, **constants}
    return (
        kernel,
        {name: TYPES[name] for name in names if name in TYPES},
        {name: every[name] for name in names if name in every},
        {"num_warps": warps},
    )


SIGNATURES = [
    _row(kernels.chunk_stats_kernel, 4),
    _row(filters.bound_kernel, 8),
    _row(filters.narrow_kernel, 4, ROUND=0),
    _row(filters.narrow_kernel, 4, ROUND=1),
    _row(filters.collect_kernel, 4),
    _row(filters.threshold_kernel, 16),
    _row(filters.threshold_kernel, 16, NARROW=False),
    _row(kernels.mass_kernel, 4),
    _row(kernels.draw_kernel, 8),
    _row(logprobs.chunk_logprobs_kernel, 8),
    _row(logprobs.chunk_logprobs_kernel, 8, TOP=0),
    _row(logprobs.join_logprobs_kernel, 8),
    _row(penalties.count_kernel, 4),
    _row(penalties.apply_kernel, 4),
]
