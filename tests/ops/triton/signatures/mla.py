"""Latent attention: decodes, chunks, what came before a chunk; cache writes."""

from __future__ import annotations

from typing import Any

from atom.ops.triton import mla_cache, mla_kernel, mla_prefill_kernel

Row = tuple[Any, dict[str, str], dict[str, Any], dict[str, Any]]


def _attention(
    dtype: str,
    kv: str,
    heads: int,
    cut: tuple[int, int, int, int, int],
    *,
    parts: int = 1,
    context: bool = False,
    decode: bool = False,
    sizes: tuple[int, int] = (512, 64),
) -> Row:
    """`cut`: tokens and heads of a tile, keys, warps, stages."""
    block_q, tile_heads, keys, warps, stages = cut
    integers = (
        "num_seqs", "num_tokens", "min_part", "out_token", "out_head", "qc_token", "qc_head",
        "qr_token", "qr_head", "cache_block", "cache_slot", "table_row",
    )  # fmt: skip
    return (
        mla_kernel.mla_kernel,
        {
            "out": "*fp32" if parts > 1 else f"*{dtype}",
            "lse": "*fp32" if parts > 1 or context else f"*{dtype}",
            **dict.fromkeys(("q_latent", "q_rope"), f"*{dtype}"),
            "cache": f"*{kv}",
            **dict.fromkeys(("block_table", "cu_seqlens", "seq_lens"), "*i32"),
            **dict.fromkeys(integers, "i32"),
            "scale_log2": "fp32",
        },
        {
            "NUM_HEADS": heads, "HEADS": tile_heads, "R": sizes[0], "R_PAD": sizes[0],
            "P": sizes[1], "P_PAD": sizes[1], "BLOCK_SIZE": 16, "BLOCK_Q": block_q,
            "BLOCK_N": keys, "PARTS": parts, "CONTEXT": context, "LSE": parts > 1 or context,
            "DECODE": decode, "PRECISION": "ieee" if dtype == "fp32" else "tf32",
        },
        {"num_warps": warps, "num_stages": stages},
    )  # fmt: skip


def _merge(heads: int, parts: int) -> Row:
    return (
        mla_kernel.merge_kernel,
        {
            "out": "*bf16",
            **dict.fromkeys(("partial", "lse"), "*fp32"),
            **dict.fromkeys(("num_tokens", "out_token", "out_head"), "i32"),
        },
        {
            "NUM_HEADS": heads, "HEADS": 4, "R": 512, "R_PAD": 512, "PARTS": parts,
            "PARTS_PAD": parts,
        },
        {"num_warps": 4},
    )  # fmt: skip


def _write(dtype: str, kv: str) -> Row:
    strides = ("q_token", "q_head", "kv_token", "cache_block", "cache_slot")
    return (
        mla_cache.mla_cache_kernel,
        {
            **dict.fromkeys(("q_rope", "kv", "norm_weight"), f"*{dtype}"),
            "cache": f"*{kv}",
            **dict.fromkeys(("positions", "slots"), "*i64"),
            "cos_sin": "*fp32",
            "eps": "fp32",
            **dict.fromkeys(strides, "i32"),
        },
        {
            "H": 16, "R": 512, "R_PAD": 512, "P": 64, "HALF": 32, "HEADS": 16, "BLOCK_SIZE": 16,
            "PDL": True,
        },
        {"num_warps": 4, "launch_pdl": True},
    )  # fmt: skip


def _own(dtype: str, block_q: int, keys: int, warps: int, stages: int, lse: bool) -> Row:
    strides = (
        "out_token", "out_head", "q_token", "q_head", "k_head", "k_token", "v_head", "v_token",
        "rope_token", "num_seqs",
    )  # fmt: skip
    return (
        mla_prefill_kernel.own_kernel,
        {
            **dict.fromkeys(("out", "q", "k", "v", "rope"), f"*{dtype}"),
            "lse": "*fp32" if lse else f"*{dtype}",
            "cu_seqlens": "*i32",
            "scale_log2": "fp32",
            **dict.fromkeys(strides, "i32"),
        },
        {
            "NUM_HEADS": 16, "N": 128, "N_PAD": 128, "P": 64, "P_PAD": 64, "V": 128, "V_PAD": 128,
            "BLOCK_Q": block_q, "BLOCK_N": keys, "LSE": lse,
            "PRECISION": "ieee" if dtype == "fp32" else "tf32",
        },
        {"num_warps": warps, "num_stages": stages},
    )  # fmt: skip


def _join() -> Row:
    strides = ("out_token", "out_head", "other_token", "other_head")
    return (
        mla_prefill_kernel.join_kernel,
        {
            **dict.fromkeys(("out", "other"), "*bf16"),
            **dict.fromkeys(("lse", "other_lse"), "*fp32"),
            **dict.fromkeys(strides, "i32"),
        },
        {"NUM_HEADS": 16, "HEADS": 8, "V": 128, "V_PAD": 128},
        {"num_warps": 4},
    )


SIGNATURES: list[Row] = [
    _attention("bf16", "bf16", 16, (1, 16, 64, 8, 2), parts=16, decode=True),
    _attention("bf16", "bf16", 128, (1, 64, 32, 8, 3), context=True),
    _attention("fp32", "fp32", 4, (4, 16, 16, 4, 1), sizes=(64, 16)),
    _merge(16, 16),
    _own("bf16", 128, 64, 8, 2, True),
    _join(),
    _write("bf16", "bf16"),
    _write("bf16", "fp8e4nv"),
]
SLOW_SIGNATURES: list[Row] = [
    _attention("bf16", "fp8e4nv", 16, (1, 16, 32, 8, 3), decode=True),
    # Of 512 channels, this tile's conversions from float8 take gfx942's compiler 35 s.
    _attention("bf16", "fp8e4nv", 128, (1, 64, 32, 8, 3), parts=2, decode=True, sizes=(128, 64)),
    _attention("bf16", "bf16", 16, (4, 16, 32, 8, 3)),
    _own("fp32", 32, 32, 4, 1, False),
    _attention("fp32", "fp32", 16, (1, 16, 16, 8, 1)),
]
