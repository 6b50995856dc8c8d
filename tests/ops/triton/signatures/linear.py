"""Products with a dense weight."""

from __future__ import annotations

from typing import Any

from atom.ops.triton import linear_kernels as kernels

Row = tuple[Any, dict[str, str], dict[str, Any], dict[str, Any]]

_TENSORS = ("x", "residual", "gamma", "weight", "bias", "out", "new_residual")
_PLAIN = {"ADD": False, "NORM": False, "GATED": False, "BIAS": True, "PDL": True}
_GATED = {"ADD": True, "NORM": True, "GATED": True, "BIAS": False, "PDL": True}


def _one(kernel: Any, sizes: dict[str, Any], flags: dict[str, bool], num_warps: int) -> Row:
    signature = dict.fromkeys(_TENSORS, "*bf16") | {"N": "i32", "eps": "fp32"}
    return kernel, signature, {**sizes, **flags}, {"num_warps": num_warps}


def _few(block_m: int, block_n: int, *, swap: bool = False, split: int = 1, gated: bool) -> Row:
    sizes = {"K": 4096, "BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": 64, "SPLIT": split}
    flags = {"SWAP": swap, "TMA": False, "GATED": gated, "BIAS": not gated, "PDL": True}
    signature = dict.fromkeys(("x", "weight", "bias", "out"), "*bf16")
    signature |= {"partial": "*fp32", "arrivals": "*i32"}
    signature |= dict.fromkeys(("M", "N", "stride_x"), "i32")
    constants = {**sizes, **flags, "PREFETCH": 512, "tiles": None}
    return kernels.skinny, signature, constants, {"num_warps": 4, "num_stages": 3}


_ROWS = {"K": 2048, "BLOCK_N": 2, "BLOCK_K": 2048, "PREFETCH": 1}
_COLUMNS = {"K": 14336, "BLOCK_N": 4, "BLOCK_K": 1024, "STAGES": 2, "PREFETCH": 1024}

SIGNATURES: list[Row] = [
    _one(kernels.gemv_rows, _ROWS, _PLAIN, 4),
    _one(kernels.gemv_rows, _ROWS, _GATED, 4),
    _one(kernels.gemv_columns, _COLUMNS, _PLAIN, 8),
    _one(kernels.gemv_columns, _COLUMNS, _GATED, 8),
    _few(16, 32, gated=False),
    _few(64, 32, gated=True),
    _few(16, 64, swap=True, gated=True),
    _few(16, 64, swap=True, split=4, gated=False),
]
