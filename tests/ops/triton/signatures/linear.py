"""Products with a dense weight."""

from __future__ import annotations

from typing import Any

from atom.ops.triton import linear_kernels as kernels

Row = tuple[Any, dict[str, str], dict[str, Any], dict[str, Any]]

_TENSORS = ("x", "residual", "gamma", "weight", "bias", "out", "new_residual")
_PLAIN = {"ADD": False, "NORM": False, "GATED": False, "BIAS": True, "PDL": True}
_GATED = {"ADD": True, "NORM": True, "GATED": True, "BIAS": False, "PDL": True}


def _row(kernel: Any, sizes: dict[str, Any], flags: dict[str, bool], **options: int) -> Row:
    constants = {**sizes, **flags}
    signature = dict.fromkeys(_TENSORS, "*bf16")
    signature |= {"N": "i32", "eps": "fp32"}
    if kernel is kernels.skinny:
        signature |= {"partial": "*fp32", "arrivals": "*i32"}
        signature |= dict.fromkeys(("M", "stride_x", "stride_r"), "i32")
    return kernel, signature, constants, dict(options)


def _skinny(swap: bool, split: int, flags: dict[str, bool], **options: int) -> Row:
    sizes = {"BLOCK_M": 16, "BLOCK_N": 64 if swap else 32, "BLOCK_K": 64}
    sizes |= {"AHEAD": 512, "SPAN": 256, "WAYS": 4}
    return _row(
        kernels.skinny, {"K": 4096, **sizes, "SPLIT": split, "SWAP": swap}, flags, **options
    )


_ROWS = {"K": 2048, "BLOCK_N": 2, "BLOCK_K": 2048, "PREFETCH": 1}
_COLUMNS = {"K": 14336, "BLOCK_N": 4, "BLOCK_K": 1024, "STAGES": 2, "PREFETCH": 1024}

SIGNATURES: list[Row] = [
    _row(kernels.gemv_rows, _ROWS, _PLAIN, num_warps=4),
    _row(kernels.gemv_rows, _ROWS, _GATED, num_warps=4),
    _row(kernels.gemv_columns, _COLUMNS, _PLAIN, num_warps=8),
    _row(kernels.gemv_columns, _COLUMNS, _GATED, num_warps=8),
    _skinny(False, 1, _GATED, num_warps=4, num_stages=3),
    _skinny(True, 1, _GATED, num_warps=4, num_stages=3),
    _skinny(False, 4, _PLAIN, num_warps=4, num_stages=3),
    _skinny(True, 4, _PLAIN, num_warps=4, num_stages=3),
]
