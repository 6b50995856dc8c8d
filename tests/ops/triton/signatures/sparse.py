"""Sparse attention: the indexer's cache, scores and choice, attention over the chosen."""

from __future__ import annotations

from typing import Any

from atom.ops.triton import sparse_cache, sparse_mla, sparse_scores, sparse_topk

Row = tuple[Any, dict[str, str], dict[str, Any], dict[str, Any]]
_STEP = dict.fromkeys(("block_table", "cu_seqlens", "seq_lens"), "*i32")


def _cache(dtype: str, interleaved: bool) -> Row:
    return (
        sparse_cache.index_cache_kernel,
        {
            **dict.fromkeys(("q", "k", "cache", "weight", "bias"), f"*{dtype}"),
            **dict.fromkeys(("positions", "slots"), "*i64"),
            "cos_sin": "*fp32", "eps": "fp32",
            **dict.fromkeys(("q_row", "k_row", "cache_block", "cache_slot"), "i32"),
        },
        {
            "HQ": 64, "D": 128, "R": 64, "HALF": 32, "REST": 64, "BLOCK_SIZE": 16, "HEADS": 16,
            "INTERLEAVED": interleaved, "PDL": True,
        },
        {"num_warps": 2},
    )  # fmt: skip


def _scores(dtype: str, heads: int, block_q: int, block_n: int) -> Row:
    numbers = ("first_tile", "num_seqs", "q_row", "weight_row", "cache_block", "cache_slot")
    return (
        sparse_scores.index_scores_kernel,
        {
            **dict.fromkeys(("q", "weights", "cache"), f"*{dtype}"), "scores": "*fp32", **_STEP,
            **dict.fromkeys((*numbers, "table_row", "width"), "i32"),
        },
        {
            "HEADS": heads, "HEADS_PAD": heads, "D": 128, "D_PAD": 128, "TOP_K": 2048,
            "BLOCK_SIZE": 16, "BLOCK_Q": block_q, "BLOCK_N": block_n,
            "PRECISION": "ieee" if dtype == "fp32" else "tf32", "PDL": True,
        },
        {"num_warps": 4, "num_stages": 3 if block_q == 1 else 2},
    )  # fmt: skip


def _keep(first: bool, block_q: int, segment: int) -> Row:
    numbers = ("stage", "first_tile", "num_seqs", "table_row", "in_width", "out_width")
    return (
        sparse_topk.keep_best_kernel,
        {
            **dict.fromkeys(("slots", "out_positions", "positions"), "*i32"), **_STEP,
            **dict.fromkeys(("scores", "out_scores"), "*fp32"), **dict.fromkeys(numbers, "i32"),
        },
        {
            "K": 2048, "FIRST": first, "SEGMENT": segment, "BLOCK_SIZE": 16, "BLOCK_Q": block_q,
            "K_PAD": 2048, "PDL": True,
        },
        {"num_warps": 16},
    )  # fmt: skip


def _attend(dtype: str, kv: str, cut: sparse_mla.Cut) -> Row:
    rows = ("latent_token", "latent_head", "rope_token", "rope_head", "cache_row", "slots_row")
    return (
        sparse_mla.sparse_mla_kernel,
        {
            **dict.fromkeys(("out", "q_latent", "q_rope"), f"*{dtype}"), "cache": f"*{kv}",
            **dict.fromkeys(("partials", "sums"), "*fp32"), "slots": "*i32",
            "scale_log2": "fp32", **dict.fromkeys(rows, "i32"),
        },
        {
            "H": 128 if cut.block_h > 16 else 16, "R": 512, "P": 64, "K": 2048, "K_PAD": 2048,
            "BLOCK_H": cut.block_h, "BLOCK_N": cut.block_n, "PARTS": cut.parts,
            "PRECISION": "ieee" if dtype == "fp32" else "tf32", "PDL": True,
        },
        {"num_warps": cut.warps, "num_stages": cut.stages},
    )  # fmt: skip


_MERGE: Row = (
    sparse_mla.merge_kernel,
    {"out": "*bf16", "partials": "*fp32", "sums": "*fp32"},
    {"H": 16, "R": 512, "PARTS": 8, "PDL": True},
    {"num_warps": 4},
)

SIGNATURES: list[Row] = [
    _cache("bf16", False),
    _scores("bf16", 64, 1, 128),
    _scores("bf16", 32, 8, 128),
    _keep(True, 8, 16384),
    _attend("bf16", "bf16", sparse_mla.Cut(16, 16, 8, 4, 1)),
    _attend("bf16", "fp8e4nv", sparse_mla.Cut(64, 32, 1, 8, 2)),
    _MERGE,
]

SLOW_SIGNATURES: list[Row] = [
    _cache("bf16", True),
    _cache("fp32", False),
    _keep(False, 1, 16384),
    _scores("fp32", 64, 8, 32),
    _keep(False, 8, 8192),
    _attend("bf16", "bf16", sparse_mla.Cut(64, 32, 1, 8, 2)),
    _attend("fp32", "fp32", sparse_mla.Cut(16, 16, 1, 4, 1)),
]
