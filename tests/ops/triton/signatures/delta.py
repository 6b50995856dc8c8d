"""Gated DeltaNet at the published sizes (16 key heads, 32 value heads, 128 channels) and at tiny
ones; the gates of those models."""

from __future__ import annotations

from typing import Any

from atom.ops.triton import delta_chunks, delta_decode, gates

Row = tuple[Any, dict[str, str], dict[str, Any], dict[str, Any]]
_WHERE = dict.fromkeys(("slots", "cu_seqlens", "seq_lens"), "*i32")
_FLOATS = dict.fromkeys(("rate", "dt_bias", "norm_weight", "norms", "log_g", "beta"), "*fp32")
_PLACES = {"num_seqs": "i32", "x_row": "i32"}


def _rows(dtype: str, sizes: tuple[int, int, int, int], *, pdl: bool) -> list[Row]:
    heads = dict(zip(("HK", "HV", "DK", "DV"), sizes, strict=True))
    dense = dict.fromkeys(("out", "x", "y", "conv_state", "weight", "solve", "scores"), f"*{dtype}")
    known = {**_WHERE, **_FLOATS, **_PLACES, **dense, "state": "*fp32", "eps": "fp32"}
    known |= dict.fromkeys(("num_tokens", "num_rows"), "i32")
    precision = {"PRECISION": "ieee" if dtype == "fp32" else "tf32"}
    taps, l2, dv = {"TAPS": 4}, {"L2": 1e-6}, heads["DV"]
    kernels: list[tuple[Any, dict[str, Any], dict[str, Any]]] = [
        (delta_decode.delta_decode_kernel, taps | l2 | {"DECODE": pdl, "PDL": pdl}, {}),
        (delta_chunks.conv_kernel, taps | l2 | {"D": max(sizes[2:]), "BLOCK": 32}, {}),
        (delta_chunks.solve_kernel, precision | {"C": 64}, {}),
        (
            delta_chunks.scan_kernel,
            taps | precision | {"C": 64, "BV": min(32, dv)},
            {"num_stages": 1 if dtype == "fp32" else 2},
        ),
        (delta_chunks.gated_norm_kernel, {"Z": 8192, "HV": heads["HV"], "DV": dv, "ROWS": 16}, {}),
    ]
    rows: list[Row] = []
    for kernel, constants, options in kernels:
        if dtype == "fp32" and kernel in (delta_chunks.conv_kernel, delta_chunks.gated_norm_kernel):
            continue  # of no other kind in float32
        if kernel is not delta_chunks.gated_norm_kernel:
            constants |= heads
        signature = {name: known[name] for name in kernel.arg_names if name not in constants}
        rows.append((kernel, signature, constants, {"num_warps": 4, **options}))
    return rows


def _gates(dtype: str, size: int, block: int) -> list[Row]:
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


SIGNATURES: list[Row] = [
    *_rows("bf16", (16, 32, 128, 128), pdl=True),
    *_gates("bf16", 2048, 2048),
]
SLOW_SIGNATURES: list[Row] = _rows("fp32", (2, 4, 32, 32), pdl=False)
