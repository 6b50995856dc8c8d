"""Experts in MXFP4, with the shapes of GPT-OSS."""

from __future__ import annotations

from typing import Any

from atom.ops.triton import moe_mxfp4, moe_mxfp4_pairs

Row = tuple[Any, dict[str, str], dict[str, Any], dict[str, Any]]

PDL = {"launch_pdl": True}
OSS = {"KIND": "gpt_oss", "LIMIT": 7.0, "BIAS": True}
BYTES = dict.fromkeys(("data", "scales"), "*u8")
ORDER = dict.fromkeys(("places", "experts", "count"), "*i32")


def gate_up(m: int, n: int, groups: int, warps: int) -> Row:
    return (
        moe_mxfp4.mx_gate_up_kernel,
        dict.fromkeys(("x", "b13", "hidden"), "*bf16")
        | BYTES
        | ORDER
        | dict.fromkeys(("x_stride", "num_pairs", "N", "K"), "i32"),
        {"TOP_K": 4, "BLOCK_M": m, "BLOCK_N": n, "BLOCK_G": groups, "GROUP_M": 8}
        | {"PRECISION": "ieee", "PDL": True, **OSS},
        {"num_warps": warps, "num_stages": 3, **PDL},
    )


def down(m: int, n: int, groups: int, warps: int) -> Row:
    return (
        moe_mxfp4.mx_down_kernel,
        dict.fromkeys(("hidden", "b2", "out"), "*bf16")
        | BYTES
        | ORDER
        | {"weights": "*fp32"}
        | dict.fromkeys(("num_pairs", "N", "K"), "i32"),
        {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_G": groups, "GROUP_M": 8, "BIAS": True}
        | {"PRECISION": "ieee", "PDL": True},
        {"num_warps": warps, "num_stages": 3, **PDL},
    )


SIGNATURES: list[Row] = [
    gate_up(16, 64, 4, 4),
    gate_up(64, 64, 2, 4),
    down(16, 64, 4, 4),
    down(64, 128, 2, 4),
    (
        moe_mxfp4_pairs.mx_pair_gate_up_kernel,
        dict.fromkeys(("x", "b13", "hidden"), "*bf16")
        | BYTES
        | {"ids": "*i32"}
        | dict.fromkeys(("x_stride", "K", "N"), "i32"),
        {"TOP_K": 4, "BLOCK_N": 16, "BLOCK_G": 8, "STAGES": 3, "PDL": True, **OSS},
        {"num_warps": 4, **PDL},
    ),
    (
        moe_mxfp4_pairs.mx_pair_down_kernel,
        dict.fromkeys(("hidden", "b2", "out"), "*bf16")
        | BYTES
        | {"ids": "*i32", "weights": "*fp32", "K": "i32", "N": "i32"},
        {"TOP_K": 4, "BLOCK_N": 4, "BLOCK_G": 8, "STAGES": 3, "BIAS": True, "PDL": True},
        {"num_warps": 4, **PDL},
    ),
]
