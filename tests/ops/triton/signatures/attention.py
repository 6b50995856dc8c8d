"""Decode attention, and norms, rotation and cache write in one launch."""

from __future__ import annotations

from typing import Any

from atom.ops.triton import decode_kernel, rope_cache

Row = tuple[Any, dict[str, str], dict[str, Any], dict[str, Any]]
_SCALARS = dict.fromkeys(("k_scale", "v_scale", "eps"), "fp32")
_CACHE = dict.fromkeys(("cache_block", "cache_slot", "cache_head"), "i32")


def _decode(
    dtype: str,
    kv: str,
    head: tuple[int, int, int],
    cut: tuple[int, bool, int],
    *,
    fused: bool = True,
    ahead: bool = True,
    extras: bool = False,
    pdl: bool = True,
) -> Row:
    """`head`: group, head size, padded; `cut`: keys of a tile, split, warps. `kv` i32: float8 in
    words of four."""
    group, dim, dim_pad = head
    block_n, split, warps = cut
    return (
        decode_kernel.decode_kernel,
        {
            **dict.fromkeys(("out", "q", "q_norm", "k_norm"), f"*{dtype}"),
            **dict.fromkeys(("k_cache", "v_cache"), f"*{kv}"),
            **dict.fromkeys(("block_table", "seq_lens", "counters"), "*i32"),
            **dict.fromkeys(("sinks", "partials", "cos_sin"), "*fp32"),
            **dict.fromkeys(("positions", "slots"), "*i64"),
            **dict.fromkeys(("scale", "cap"), "fp32"),
            **_SCALARS,
            **dict.fromkeys(("out_row", "q_row", "table_row", "min_part"), "i32"),
            **_CACHE,
        },
        {
            "HK": 8, "G": group, "D": dim, "D_PAD": dim_pad, "R": dim if fused else 0,
            "BLOCK_SIZE": 16, "WINDOW": 128 if extras else 0, "CAPPED": extras, "SINKS": extras,
            "FUSED": fused, "INTERLEAVED": extras, "NORM": fused, "ONE_PAGE": block_n == 16,
            "BLOCK_N": block_n,
            "SPLIT": split, "AHEAD": ahead, "STAGES": 1 if ahead else 3, "PACKED": kv == "i32",
            "STEP": 4,
            "PRECISION": "ieee" if dtype == "fp32" else "tf32", "PDL": pdl,
        },
        {"num_warps": warps},
    )  # fmt: skip


def _rope(dtype: str, kv: str, dim: int, rotated: int, interleaved: bool = False) -> Row:
    return (
        rope_cache.rope_cache_kernel,
        {
            **dict.fromkeys(("qkv", "q_norm", "k_norm"), f"*{dtype}"),
            **dict.fromkeys(("k_cache", "v_cache"), f"*{kv}"),
            **dict.fromkeys(("positions", "slots"), "*i64"),
            "cos_sin": "*fp32",
            **_SCALARS,
            "row": "i32",
            **_CACHE,
        },
        {
            "HQ": 32, "HK": 8, "D": dim, "D_PAD": 128, "R": rotated, "HALF": rotated // 2,
            "REST": 64 if rotated < dim else 0, "BLOCK_SIZE": 16, "HEADS": 8,
            "INTERLEAVED": interleaved, "NORM": True, "PDL": True,
        },
        {"num_warps": 4},
    )  # fmt: skip


SIGNATURES: list[Row] = [
    _decode("bf16", "bf16", (4, 128, 128), (64, True, 4)),
    _decode("bf16", "bf16", (4, 128, 128), (16, False, 1), ahead=False),
    _decode("bf16", "fp8e4nv", (2, 128, 128), (32, False, 4)),
    _decode("bf16", "i32", (4, 128, 128), (64, True, 4), ahead=False),
    _decode("fp16", "fp16", (7, 80, 128), (64, True, 4), extras=True),
    _decode("fp32", "fp32", (1, 64, 64), (32, True, 4), pdl=False),
    _decode("bf16", "bf16", (8, 256, 256), (32, True, 4), fused=False, ahead=False),
    _rope("bf16", "bf16", 128, 128),
    _rope("bf16", "fp8e4nv", 80, 32),
    _rope("fp32", "fp32", 128, 128, interleaved=True),
]
