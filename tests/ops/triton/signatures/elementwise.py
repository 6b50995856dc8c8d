"""Norms, activation, rotary embedding, lookup, step inputs and argmax."""

from __future__ import annotations

from typing import Any

from atom.ops.triton import argmax, elementwise, projection_norm, step_inputs

Row = tuple[Any, dict[str, str], dict[str, Any], dict[str, Any]]


def _norm(dtype: str, size: int, block: int, rows: int, warps: int) -> Row:
    return (
        elementwise.rms_norm_kernel,
        {
            **dict.fromkeys(("x", "weight", "out"), f"*{dtype}"),
            **dict.fromkeys(("num_rows", "token_stride", "head_stride"), "i32"),
            "eps": "fp32",
        },
        {"HEADS": 8 if size == 128 else 1, "K": size, "BLOCK": block, "ROWS": rows, "PDL": True},
        {"num_warps": warps},
    )


def _projection(mode: str) -> Row:
    absent = "weight" if mode == "write" else "sums" if mode == "none" else ""
    pointers = {"qkv": "*bf16", "weight": "*fp32", "sums": "*fp32", "row_stride": "i32"}
    pointers.pop(absent, None)
    return (
        projection_norm.projection_kernel,
        pointers | dict.fromkeys(("q_count", "k_count", "eps"), "fp32"),
        {"Q": 6144, "K": 1024, "Q_PAD": 8192, "K_PAD": 1024, "SUMS": mode, "PDL": True}
        | ({absent: None} if absent else {}),
        {"num_warps": 8, "launch_pdl": True},
    )


SIGNATURES: list[Row] = [
    *map(_projection, ("none", "write", "read")),
    _norm("bf16", 4096, 4096, 1, 8),
    _norm("fp16", 128, 128, 16, 4),
    (
        elementwise.add_rms_norm_kernel,
        {
            **dict.fromkeys(("x", "residual", "weight", "total", "out"), "*bf16"),
            **dict.fromkeys(("num_rows", "x_stride", "residual_stride", "total_stride"), "i32"),
            "eps": "fp32",
        },
        {"K": 4096, "BLOCK": 4096, "ROWS": 1, "PDL": True},
        {"num_warps": 8},
    ),
    (
        elementwise.silu_and_mul_kernel,
        {"x": "*bf16", "out": "*bf16", "stride": "i32"},
        {"I": 14336, "BLOCK": 1024, "PDL": True},
        {"num_warps": 4},
    ),
    (
        argmax.argmax_part_kernel,
        {
            "logits": "*fp32",
            **dict.fromkeys(("best_keys", "out"), "*i64"),
            **dict.fromkeys(("stride", "size", "part_size"), "i32"),
        },
        {"PARTS": 32, "BLOCK": 4096, "PDL": True},
        {"num_warps": 8},
    ),
    (
        argmax.argmax_join_kernel,
        dict.fromkeys(("best_keys", "out"), "*i64"),
        {"PARTS": 63, "BLOCK": 64, "PDL": True},
        {"num_warps": 1},
    ),
    (
        step_inputs.prepare_decode_kernel,
        {
            **dict.fromkeys(("rows", "computed", "new_blocks"), "*i32"),
            **dict.fromkeys(("token_pool", "block_table"), "*i32"),
            **dict.fromkeys(("pool_stride", "table_stride", "block_size", "step_stride"), "i32"),
            **dict.fromkeys(("input_ids", "positions", "slot_mapping"), "*i64"),
            **dict.fromkeys(("seq_lens", "step_table"), "*i32"),
        },
        {"EDITS": True, "BLOCK": 1024, "PDL": True},
        {"num_warps": 4},
    ),
    (
        step_inputs.finish_decode_kernel,
        {
            **dict.fromkeys(("best_keys", "slot", "landing"), "*i64"),
            **dict.fromkeys(("rows", "computed", "token_pool"), "*i32"),
            **dict.fromkeys(("pool_stride", "landing_stride"), "i32"),
        },
        {"PARTS": 63, "BLOCK": 64, "PDL": True},
        {"num_warps": 1},
    ),
    (
        step_inputs.put_tokens_kernel,
        {
            "tokens": "*i64",
            **dict.fromkeys(("rows", "computed", "token_pool"), "*i32"),
            **dict.fromkeys(("pool_stride", "count"), "i32"),
        },
        {"BLOCK": 128, "PDL": True},
        {"num_warps": 4},
    ),
]
