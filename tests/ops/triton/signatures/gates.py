"""Gates after attention and after a shared expert."""

from __future__ import annotations

from typing import Any

from atom.ops.triton import gates

Row = tuple[Any, dict[str, str], dict[str, Any], dict[str, Any]]


def _rows(dtype: str, size: int, block: int) -> list[Row]:
    pdl = {"PDL": dtype != "fp32"}
    sigmoid, add = gates.sigmoid_mul_kernel, gates.add_gated_kernel
    return [
        (
            sigmoid,
            {**dict.fromkeys(("out", "x", "gate"), f"*{dtype}"), "x_row": "i32", "gate_row": "i32"},
            {"N": size, "BLOCK": min(block, 1024), **pdl},
            {"num_warps": 4},
        ),
        (
            add,
            {
                **dict.fromkeys(("out", "part", "y", "x", "g"), f"*{dtype}"),
                **dict.fromkeys(("part_row", "y_row", "x_row"), "i32"),
            },
            {"K": size, "BLOCK": block, **pdl},
            {"num_warps": 4},
        ),
    ]


SIGNATURES: list[Row] = [*_rows("bf16", 2048, 2048), *_rows("fp32", 100, 128)]
