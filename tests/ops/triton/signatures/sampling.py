"""The sampler's kernels, for a vocabulary of 128256."""

from __future__ import annotations

from typing import Any

from atom.ops.triton import sampling_kernels as kernels

TYPES = {
    **dict.fromkeys(("logits", "least", "pivots", "partials", "found", "floors", "sums"), "*fp32"),
    **dict.fromkeys(("settings", "counts"), "*i32"),
    "keys": "*i64",
    "out": "*i64",
    "state": "*fp64",
    **dict.fromkeys(("stride", "size", "num_rows", "num_chunks"), "i32"),
}
CONSTANTS = {
    "CHUNK": 4096,
    "CHUNKS": 32,
    "PIVOTS": 16,
    "CAPACITY": 512,
    "FILTERS": True,
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
    _row(kernels.narrow_kernel, 4, ROUND=0),
    _row(kernels.narrow_kernel, 4, ROUND=1),
    _row(kernels.collect_kernel, 4),
    _row(kernels.threshold_kernel, 16),
    _row(kernels.mass_kernel, 4),
    _row(kernels.draw_kernel, 8),
]
