"""DeepSeek V4: heads of 512 channels, 64 of them rotated, blocks of 128 tokens."""

from __future__ import annotations

from typing import Any

from atom.ops.triton import v4_attention, v4_best, v4_choose, v4_compress, v4_hyper, v4_write

Row = tuple[Any, dict[str, str], dict[str, Any], dict[str, Any]]
_HEAD = {"D": 512, "R": 64}
_STEP = {**dict.fromkeys(("cu_seqlens", "seq_lens"), "*i32"), "num_seqs": "i32"}
_ENTRY = dict.fromkeys(("entry_block", "entry_slot", "window_row", "table_row"), "i32")


def _write(dtype: str, kv: str) -> Row:
    return (
        v4_write.v4_write_kernel,
        {
            **dict.fromkeys(("out", "q", "kv", "kv_norm"), f"*{dtype}"),
            **dict.fromkeys(("positions", "slots"), "*i64"),
            "cos_sin": "*fp32", "cache": f"*{kv}", "eps": "fp32",
            **dict.fromkeys(("q_row", "kv_row", "cache_block", "cache_slot"), "i32"),
        },
        {**_HEAD, "H": 64, "BLOCK_SIZE": 128, "HEADS": 8},
        {"num_warps": 4},
    )  # fmt: skip


def _attention(dtype: str, kv: str, heads: int, tile: tuple[int, int], best: int, **of: Any) -> Row:
    """`tile`: heads and keys; `of`: SPLIT and DECODE."""
    return (
        v4_attention.v4_attention_kernel,
        {
            **dict.fromkeys(("out", "q"), f"*{dtype}"),
            **dict.fromkeys(("cache", "entries"), f"*{kv}"),
            **dict.fromkeys(("partials", "sums", "sinks", "cos_sin"), "*fp32"),
            **dict.fromkeys(("chosen", "window_table", "table"), "*i32"),
            **_STEP, **_ENTRY, "scale": "fp32",
            **dict.fromkeys(("cache_block", "cache_slot"), "i32"),
        },
        {
            **_HEAD, "H": heads, "BLOCK_SIZE": 128, "ROWS": 32 if best else 1, "WINDOW": 128,
            "RATIO": 4 if best else 128, "K": best, "BLOCK_H": tile[0], "BLOCK_N": tile[1],
            "PRECISION": "ieee" if dtype == "fp32" else "tf32", **of,
        },
        {"num_warps": 8 if tile[0] == 64 else 4, "num_stages": 2},
    )  # fmt: skip


def _merge(dtype: str) -> Row:
    return (
        v4_attention.v4_merge_kernel,
        {
            "out": f"*{dtype}", **_STEP, "parts": "i32",
            **dict.fromkeys(("partials", "sums", "sinks", "cos_sin"), "*fp32"),
        },
        {**_HEAD, "H": 64, "BLOCK_H": 16, "DECODE": True},
        {"num_warps": 4},
    )  # fmt: skip


def _compress(dtype: str, kv: str, dim: int, ratio: int, decode: bool) -> Row:
    span = 2 * ratio if ratio == 4 else ratio
    return (
        v4_compress.v4_compress_kernel,
        {
            **dict.fromkeys(("x", "norm", "ring"), f"*{dtype}"), "entries": f"*{kv}",
            **dict.fromkeys(("bias", "cos_sin"), "*fp32"), "eps": "fp32",
            **dict.fromkeys(("window_table", "table"), "*i32"), **_STEP, **_ENTRY,
            **dict.fromkeys(("x_row", "ring_block", "ring_slot"), "i32"),
        },
        {
            "D": dim, "R": 64, "RATIO": ratio, "SPAN": span, "W2_PAD": 2 * dim * (span // ratio),
            "RING": min(128, 2 * span), "BLOCK_SIZE": 128, "TOKENS": min(span, 16),
            "DECODE": decode,
        },
        {"num_warps": 4},
    )  # fmt: skip


def _keep(dtype: str) -> Row:
    return (
        v4_compress.v4_keep_kernel,
        {
            **dict.fromkeys(("x", "ring"), f"*{dtype}"), "window_table": "*i32", **_STEP,
            **dict.fromkeys(("x_row", "ring_block", "ring_slot", "window_row"), "i32"),
        },
        {"W2": 2048, "W2_PAD": 2048, "RING": 16, "BLOCK_SIZE": 128},
        {"num_warps": 4},
    )  # fmt: skip


def _scores(dtype: str, kv: str, decode: bool) -> Row:
    return (
        v4_choose.v4_scores_kernel,
        {
            **dict.fromkeys(("scores", "cos_sin"), "*fp32"), "table": "*i32", "keys": f"*{kv}",
            **dict.fromkeys(("q", "weights"), f"*{dtype}"), **_STEP,
            **dict.fromkeys(("first", "width", "q_row", "weight_row"), "i32"),
            **dict.fromkeys(("key_block", "key_slot", "table_row"), "i32"),
        },
        {
            "H": 64, "D": 128, "R": 64, "RATIO": 4, "ROWS": 32, "BLOCK_H": 64,
            "BLOCK_N": 16 if dtype == "fp32" else 64, "DECODE": decode,
            "PRECISION": "ieee" if dtype == "fp32" else "tf32",
        },
        {"num_warps": 4},
    )  # fmt: skip


def _best(first: bool, segment: int) -> Row:
    return (
        v4_best.v4_best_kernel,
        {
            **dict.fromkeys(("out_scores", "scores"), "*fp32"), **_STEP,
            **dict.fromkeys(("chosen", "out_entries", "entries"), "*i32"),
            **dict.fromkeys(("stage", "first", "in_width", "out_width"), "i32"),
        },
        {
            "K": 512, "K_PAD": 512, "FIRST": first, "SEGMENT": segment, "RATIO": 4,
            "DECODE": True,
        },
        {"num_warps": min(16, segment // 512)},
    )  # fmt: skip


def _mix(dtype: str, count: int, pending: bool) -> Row:
    return (
        v4_hyper.hyper_mix_kernel,
        {
            **dict.fromkeys(("mixed", "streams", "out"), f"*{dtype}"), "tokens": "i32",
            **dict.fromkeys(("products", "squares", "post", "comb", "fn"), "*fp32"),
            "out_row": "i32",
        },
        {
            "N": 4, "H": 4096, "M": count, "M_PAD": max(16, 8 * -(-count // 8) + 8 * (count > 16)),
            "PENDING": pending, "BLOCK_T": 16, "BLOCK_C": 64, "TF32X3": True,
        },
        {"num_warps": 4},
    )  # fmt: skip


def _collapse(dtype: str, count: int) -> Row:
    return (
        v4_hyper.hyper_collapse_kernel,
        {
            **dict.fromkeys(("x", "streams", "norm"), f"*{dtype}"),
            **dict.fromkeys(("post", "comb", "products", "squares", "base", "scale"), "*fp32"),
            **dict.fromkeys(("eps", "hyper_eps"), "fp32"),
        },
        {
            "N": 4, "H": 4096, "M": count, "PARTS": 64, "PARTS_PAD": 64, "ITERATIONS": 20,
            "BLOCK": 4096,
        },
        {"num_warps": 8},
    )  # fmt: skip


SIGNATURES: list[Row] = [
    _write("bf16", "fp8e4nv"),
    _attention("bf16", "bf16", 64, (64, 32), 512, SPLIT=False, DECODE=False),
    _attention("bf16", "fp8e4nv", 8, (16, 32), 512, SPLIT=True, DECODE=True),
    _attention("fp32", "fp32", 64, (16, 16), 0, SPLIT=True, DECODE=True),
    _merge("bf16"),
    _compress("bf16", "fp8e4nv", 512, 4, True),
    _compress("bf16", "bf16", 512, 128, False),
    _keep("bf16"),
    _scores("bf16", "bf16", True),
    _best(True, 8192),
    _mix("bf16", 24, True),
    _collapse("bf16", 24),
    (
        v4_hyper.swiglu_clamp_kernel,
        {"x": "*bf16", "out": "*bf16", "stride": "i32", "limit": "fp32"},
        {"I": 2048, "BLOCK": 1024},
        {"num_warps": 4},
    ),
]
SLOW_SIGNATURES: list[Row] = [
    _write("fp32", "fp32"),
    _attention("bf16", "bf16", 64, (64, 32), 0, SPLIT=True, DECODE=True),
    _attention("fp16", "fp16", 16, (16, 32), 512, SPLIT=False, DECODE=True),
    _merge("fp32"),
    _compress("fp32", "fp32", 128, 4, False),
    _compress("bf16", "bf16", 512, 128, True),
    _keep("fp32"),
    _scores("fp32", "fp32", False),
    _best(False, 8192),
    _best(True, 4096),
    _mix("fp32", 4, False),
    _collapse("fp32", 4),
]
