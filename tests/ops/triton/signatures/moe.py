"""Routing, sorting, and the experts' products, with the shapes of Qwen3-30B-A3B."""

from __future__ import annotations

from typing import Any

from atom.ops.triton import moe_grouped, moe_order, moe_pairs, moe_route, moe_routing
from atom.ops.triton.support import next_power_of_2

Row = tuple[Any, dict[str, str], dict[str, Any], dict[str, Any]]

PDL = {"launch_pdl": True}


def _kinds(bf16: str = "", fp32: str = "", i32p: str = "", i32: str = "") -> dict[str, str]:
    return {
        **dict.fromkeys(bf16.split(), "*bf16"),
        **dict.fromkeys(fp32.split(), "*fp32"),
        **dict.fromkeys(i32p.split(), "*i32"),
        **dict.fromkeys(i32.split(), "i32"),
    }


PLAIN = {"KIND": "silu", "LIMIT": 0.0, "BIAS": False, "b13": None}
OSS = {"KIND": "gpt_oss", "LIMIT": 7.0, "BIAS": True}


def gate_up(
    m: int, n: int, k: int, warps: int, stages: int, tma: bool = False, oss: bool = False
) -> Row:
    pointers = "x w13 hidden" + " b13" * oss
    kinds = _kinds(pointers, "", "places experts count", "x_stride num_pairs N K")
    return (
        moe_grouped.grouped_gate_up_kernel,
        kinds | ({"w13": f"tensordesc<bf16[{n},{k}]>"} if tma else {}),
        {"TOP_K": 8, "BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "GROUP_M": 1, "EVEN": True}
        | {"TMA": tma, "PRECISION": "ieee", "PDL": True, **(OSS if oss else PLAIN)},
        {"num_warps": warps, "num_stages": stages, **PDL},
    )


def down(
    m: int, n: int, k: int, warps: int, stages: int, tma: bool = False, bias: bool = False
) -> Row:
    pointers = "hidden w2 out" + " b2" * bias
    kinds = _kinds(pointers, "weights", "places experts count", "num_pairs N K")
    tiles = {"hidden": f"tensordesc<bf16[{m},{k}]>", "w2": f"tensordesc<bf16[{n},{k}]>"}
    return (
        moe_grouped.grouped_down_kernel,
        kinds | (tiles if tma else {}),
        {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "GROUP_M": 1, "EVEN": True, "TMA": tma}
        | {"PRECISION": "ieee", "PDL": True, "BIAS": bias, **({} if bias else {"b2": None})},
        {"num_warps": warps, "num_stages": stages, **PDL},
    )


def pair_gate_up(
    from_logits: bool, n: int, k: int, warps: int, stages: int, oss: bool = False
) -> Row:
    unused = {"ids": None} if from_logits else {"logits": None}
    return (
        moe_pairs.pair_gate_up_kernel,
        _kinds("x w13 hidden" + " b13" * oss, "", "", "x_stride K N E")
        | ({"logits": "*fp32"} if from_logits else {"ids": "*i32"}),
        {"TOP_K": 8, "FROM_LOGITS": from_logits, "BLOCK_E": 128, "BLOCK_N": n, "BLOCK_K": k}
        | {"EVEN": True, "STAGES": stages, "PDL": True, **unused, **(OSS if oss else PLAIN)},
        {"num_warps": warps, **PDL},
    )


def pair_down(
    from_logits: bool, n: int, k: int, warps: int, stages: int, early: int, bias: bool = False
) -> Row:
    unused = {"ids": None, "weights": None} if from_logits else {"logits": None}
    unused |= {} if bias else {"b2": None}
    return (
        moe_pairs.pair_down_kernel,
        _kinds("hidden w2 out" + " b2" * bias, "", "", "K N E")
        | ({"logits": "*fp32"} if from_logits else {"ids": "*i32", "weights": "*fp32"}),
        {"TOP_K": 8, "FROM_LOGITS": from_logits, "RENORMALIZE": from_logits, "BLOCK_E": 128}
        | {"BLOCK_J": 8, "BLOCK_N": n, "BLOCK_K": k, "EVEN": True, "EARLY": early}
        | {"STAGES": stages, "BIAS": bias, "PDL": True, **unused},
        {"num_warps": warps, **PDL},
    )


def router(more: dict[str, str], **constants: int) -> Row:
    return (
        moe_routing.router_kernel,
        {**_kinds("x weight", "logits", "", "x_stride K E"), **more},
        {"BLOCK_M": 16, "BLOCK_E": 16, "BLOCK_K": 256, "PART": 512}
        | {"PRECISION": "ieee", "PDL": True, **constants},
        {"num_stages": 4, **PDL},
    )


def route(per: int, groups: int, scoring: str, block_t: int, bias: bool) -> Row:
    return (
        moe_route.route_kernel,
        _kinds("logits", "weights", "ids", "num_tokens logits_stride")
        | ({"bias": "*fp32"} if bias else {}),
        {"PER": per, "GROUPS": groups, "TOP_K": 8, "TOP_GROUPS": min(4, groups), "TOP2": True}
        | {"SCORING": scoring, "HAS_BIAS": bias, "RENORMALIZE": True, "SCALE": 2.5}
        | {"BLOCK_T": block_t, "PER_PAD": next_power_of_2(per), "G_PAD": next_power_of_2(groups)}
        | {"BLOCK_J": 8, "PDL": True, **({} if bias else {"bias": None})},
        {"num_warps": 1 if block_t == 1 else 4, **PDL},
    )


SIGNATURES: list[Row] = [
    route(32, 8, "sigmoid", 1, True),
    route(20, 8, "softmax", 4, False),
    route(384, 1, "sqrt_softplus", 4, True),
    (
        moe_routing.norm_score_kernel,
        {
            **_kinds("x residual norm_weight router normed total", "logits", "", "K E"),
            **{"x_stride": "i32", "residual_stride": "i32", "eps": "fp32"},
        },
        {"HAS_RESIDUAL": True, "SHARE": 64, "BLOCK_E": 4, "BLOCK_K": 2048, "PDL": True},
        PDL,
    ),
    pair_gate_up(True, 8, 256, 4, 3),
    pair_gate_up(False, 8, 256, 4, 1),
    pair_down(True, 2, 256, 4, 1, 3),
    pair_down(False, 2, 256, 4, 3, 0),
    pair_gate_up(False, 8, 64, 4, 3, oss=True),
    pair_down(False, 2, 64, 2, 3, 4, bias=True),
    gate_up(64, 64, 64, 4, 3, oss=True),
    down(64, 128, 64, 4, 4, bias=True),
    router({"num_tokens": "i32"}),
    router({}, num_tokens=1),
    (
        moe_routing.topk_kernel,
        _kinds("", "logits weights", "ids", "num_tokens logits_stride E"),
        {"PARTS": 4, "TOP_K": 8, "RENORMALIZE": True, "BLOCK_T": 1, "BLOCK_E": 128, "BLOCK_J": 8}
        | {"PDL": True},
        {"num_warps": 1, **PDL},
    ),
    (
        moe_order.sort_kernel,
        _kinds("", "", "ids places experts count", "num_pairs"),
        {"BLOCK_M": 16, "BLOCK_P": 1024, "BLOCK_E": 128, "PDL": True},
        PDL,
    ),
    (
        moe_order.count_kernel,
        _kinds("", "", "ids counts", "num_pairs E"),
        {"CHUNK": 512, "BLOCK_E": 128, "PDL": True},
        PDL,
    ),
    (
        moe_order.place_kernel,
        _kinds("", "", "counts starts places experts count", "num_pairs num_chunks E"),
        {"BLOCK_M": 128, "BLOCK_C": 64, "BLOCK_E": 128, "PDL": True},
        {"num_warps": 8, **PDL},
    ),
    (
        moe_order.scatter_kernel,
        _kinds("", "", "ids starts places", "num_pairs E"),
        {"CHUNK": 512, "BLOCK_P": 128, "BLOCK_E": 128, "PDL": True},
        PDL,
    ),
    gate_up(16, 64, 64, 4, 4),
    down(16, 64, 64, 4, 4),
    gate_up(128, 128, 64, 8, 3),
    gate_up(128, 128, 64, 8, 3, tma=True),
    down(128, 256, 64, 8, 3),
    down(128, 256, 64, 8, 3, tma=True),
    (
        moe_grouped.combine_kernel,
        _kinds("rows out", "", "ids", "N"),
        {"TOP_K": 8, "BLOCK_N": 512, "PDL": True},
        {"num_warps": 2, **PDL},
    ),
]

SLOW_SIGNATURES: list[Row] = [
    gate_up(64, 64, 64, 4, 4),
    down(64, 128, 64, 4, 4),
    pair_down(True, 4, 256, 8, 1, 3),
]
