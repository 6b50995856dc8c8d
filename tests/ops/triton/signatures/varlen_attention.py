"""Attention of prefill and mixed steps, and cache writes."""

from __future__ import annotations

from typing import Any

from atom.ops.triton import reshape_and_cache, varlen_attention, varlen_hopper

Row = tuple[Any, dict[str, str], dict[str, Any], dict[str, Any]]


def _attention(
    dtype: str,
    kv: str,
    head: tuple[int, int, int, int],
    tile: tuple[int, int, int, int],
    *,
    window: int = 0,
    extras: bool = False,
    split: bool = True,
) -> Row:
    """`head`: group, padded group, head size, padded; `tile`: rows, keys, warps, stages."""
    group, group_pad, dim, dim_pad = head
    rows, keys, warps, stages = tile
    integers = (
        "num_seqs", "out_token", "out_head", "q_token", "q_head", "k_block", "k_slot", "k_head",
        "v_block", "v_slot", "v_head", "table_row",
    )  # fmt: skip
    return (
        varlen_attention.varlen_attention_kernel,
        {
            **dict.fromkeys(("out", "q"), f"*{dtype}"),
            **dict.fromkeys(("k_cache", "v_cache"), f"*{kv}"),
            **dict.fromkeys(("block_table", "cu_seqlens", "seq_lens"), "*i32"),
            "sinks": "*fp32",
            **dict.fromkeys(integers, "i32"),
            **dict.fromkeys(("scale_log2", "cap", "cap_log2", "v_scale"), "fp32"),
        },
        {
            "GROUP": group, "GROUP_PAD": group_pad, "D": dim, "D_PAD": dim_pad, "BLOCK_SIZE": 16,
            "BLOCK_Q": rows // group_pad, "BLOCK_N": keys, "WINDOW": window, "CAPPED": extras,
            "SINKS": extras, "SPLIT": split, "PRECISION": "ieee" if dtype == "fp32" else "tf32",
        },
        {"num_warps": warps, "num_stages": stages},
    )  # fmt: skip


def _hopper(dim: int, group: int, keys: int, stages: int, window: int = 0, kv: str = "bf16") -> Row:
    integers = (
        "num_seqs", "num_tiles", "out_token", "out_head", "q_token", "q_head", "cache_block",
        "cache_slot", "cache_head", "table_row",
    )  # fmt: skip
    return (
        varlen_hopper.varlen_hopper_kernel,
        {
            **dict.fromkeys(("out", "q"), "*bf16"),
            **dict.fromkeys(("k_cache", "v_cache"), f"*{kv}"),
            **dict.fromkeys(("block_table", "cu_seqlens", "seq_lens"), "*i32"),
            "sinks": "*fp32",
            "schedule": "*i32",
            **dict.fromkeys(integers, "i32"),
            **dict.fromkeys(("scale_log2", "v_scale"), "fp32"),
        },
        {
            "HEADS": 8, "GROUP": group, "GROUP_PAD": group, "D": dim, "BLOCK_SIZE": 16,
            "BLOCK_Q": 128 // group, "BLOCK_N": keys, "WINDOW": window, "SINKS": window > 0,
            "STAGES": stages, "REGISTERS": 208,
        },
        {"num_warps": 4},
    )  # fmt: skip


def _write(dtype: str, kv: str) -> Row:
    strides = [f"{x}_{part}" for x in "kv" for part in ("token", "row", "block", "slot", "head")]
    return (
        reshape_and_cache.reshape_and_cache_kernel,
        {
            **dict.fromkeys(("k", "v"), f"*{dtype}"),
            **dict.fromkeys(("k_cache", "v_cache"), f"*{kv}"),
            "slot_mapping": "*i64",
            **dict.fromkeys(("k_scale", "v_scale"), "fp32"),
            **dict.fromkeys(strides, "i32"),
        },
        {"BLOCK_SIZE": 16, "HEADS": 8, "D": 128, "BLOCK": 1024, "PDL": False},
        {"num_warps": 2},
    )


SIGNATURES: list[Row] = [
    _attention("bf16", "bf16", (4, 4, 128, 128), (128, 64, 4, 1)),
    _attention("bf16", "fp8e4nv", (7, 8, 80, 128), (128, 64, 4, 1), window=128, extras=True),
    _attention("fp32", "fp32", (1, 1, 64, 64), (32, 32, 4, 1)),
    _attention("fp16", "fp16", (8, 8, 256, 256), (128, 32, 4, 1)),
    _hopper(128, 4, 128, 2),
    _hopper(64, 1, 128, 2, window=128),
    _hopper(128, 8, 128, 2, kv="fp8e4nv"),
    _write("bf16", "bf16"),
    _write("fp32", "fp8e4nv"),
]
