"""Experts in MXFP4 (contracts.MXFP4Weight), multiplied from as they are: W4A16.

A group is 32 values of a row: 16 bytes, of which the low halves are the first 16 values and the
high halves the others. So a tile of bytes gives two tiles of weights, each of which meets 16
neighbouring activations of every 32, and nothing has to be shuffled.

Not measured on a GPU. The floor of few tokens is the bytes of the chosen experts (GPT-OSS-120B, one
token: 53 MB a layer, 12 us on an H200, in place of 199 MB in bfloat16), of many the products, where
making bfloat16 of the bytes comes on top.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from atom.ops.contracts import MXFP4Weight
from atom.ops.triton import support
from atom.ops.triton.launch import begin, pdl_options
from atom.ops.triton.moe_act import Extras, activate
from atom.ops.triton.moe_config import Config, GroupedConfig, PairConfig, PairTile, Problem, Tile
from atom.ops.triton.moe_grouped import combine, tile_of
from atom.ops.triton.moe_order import Order, sort_pairs


@triton.jit
def values(codes, scale):
    """uint8 codes, and scales of the same shape or to be broadcast, -> float32.

    The three low bits are those of a float16 between exponent and fraction, 2^14 times too small;
    float16 below its normal range converts exactly.
    """
    wide = codes.to(tl.uint16)
    half = ((wide & 7) << 9) | ((wide & 8) << 12)
    return half.to(tl.float16, bitcast=True).to(tl.float32) * scale


@triton.jit
def scale_of(byte):
    """2^(byte - 127) * 2^14, for `values`: 0 below 2^-126, and 255 makes no number of anything."""
    power = (byte.to(tl.int32) << 23).to(tl.float32, bitcast=True) * 16384.0
    return tl.where(byte == 255, float("nan"), power)


@triton.jit
def both_halves(data, scales, rows, mask_rows, first, groups, BLOCK_G: tl.constexpr):
    """Groups `first`.. of some rows, of `groups` a row: two tiles [R, BLOCK_G, 16] float32.

    `data` and `scales` point to the expert's matrix; other rows, and groups past the end, are 0.
    """
    group = first + tl.arange(0, BLOCK_G)
    place = tl.arange(0, 16)
    mask = mask_rows[:, None] & (group < groups)[None, :]
    at = rows[:, None] * groups + group[None, :]
    byte = tl.load(scales + at, mask=mask, other=0)
    bytes_at = data + at[:, :, None] * 16 + place[None, None, :]
    codes = tl.load(bytes_at, mask=mask[:, :, None], other=0)
    scale = scale_of(byte)[:, :, None]
    return values(codes & 15, scale), values(codes >> 4, scale)


@triton.jit
def flat(tile, dtype: tl.constexpr):
    """[R, G, 16] -> [R, 16 G]."""
    return tl.reshape(tile.to(dtype), (tile.shape[0], tile.shape[1] * tile.shape[2]))


@triton.jit
def mx_gate_up_kernel(
    x,
    data,
    scales,
    b13,
    hidden,
    places,
    experts,
    count,
    x_stride,
    num_pairs,
    N,
    K,
    TOP_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_G: tl.constexpr,
    GROUP_M: tl.constexpr,
    PRECISION: tl.constexpr,
    KIND: tl.constexpr,
    LIMIT: tl.constexpr,
    BIAS: tl.constexpr,
    PDL: tl.constexpr,
):
    """As moe_grouped.grouped_gate_up_kernel. Products are [N, M]: weights, which are made in
    registers, go into the tensor cores from there."""
    begin(PDL)
    num_m, num_n = tl.load(count), tl.cdiv(N, BLOCK_N)
    if tl.program_id(0) >= num_m * num_n:
        return
    block, tile = tile_of(tl.program_id(0), num_m, num_n, GROUP_M)
    expert = tl.load(experts + block).to(tl.int64)
    places_here = block.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    pair = tl.load(places + places_here)
    known = pair < num_pairs
    token = tl.where(known, pair // TOP_K, 0).to(tl.int64)
    cols = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    wanted = cols < N
    groups = K // 32
    data += expert * (2 * N * groups * 16)
    scales += expert * (2 * N * groups)
    dtype: tl.constexpr = x.dtype.element_ty
    inner = tl.arange(0, 16 * BLOCK_G)
    left = inner // 16 * 32 + inner % 16
    a = x + token[None, :] * x_stride + left[:, None]
    gate = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    up = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    for first in range(0, groups, BLOCK_G):
        inside = known[None, :] & (left < (groups - first) * 32)[:, None]
        low_x = tl.load(a + first * 32, mask=inside, other=0.0)
        high_x = tl.load(a + first * 32 + 16, mask=inside, other=0.0)
        low, high = both_halves(data, scales, cols, wanted, first, groups, BLOCK_G)
        gate = tl.dot(flat(low, dtype), low_x, gate, input_precision=PRECISION)
        gate = tl.dot(flat(high, dtype), high_x, gate, input_precision=PRECISION)
        low, high = both_halves(data, scales, cols + N, wanted, first, groups, BLOCK_G)
        up = tl.dot(flat(low, dtype), low_x, up, input_precision=PRECISION)
        up = tl.dot(flat(high, dtype), high_x, up, input_precision=PRECISION)
    if BIAS:
        bias = b13 + expert * (2 * N) + cols
        gate += tl.load(bias, mask=wanted, other=0.0).to(tl.float32)[:, None]
        up += tl.load(bias + N, mask=wanted, other=0.0).to(tl.float32)[:, None]
    out = tl.trans(activate(gate, up, KIND, LIMIT))
    target = hidden + places_here[:, None] * N + cols[None, :]
    tl.store(target, out.to(hidden.dtype.element_ty), mask=wanted[None, :])


@triton.jit
def mx_down_kernel(
    hidden,
    data,
    scales,
    b2,
    out,
    places,
    experts,
    count,
    weights,
    num_pairs,
    N,
    K,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_G: tl.constexpr,
    GROUP_M: tl.constexpr,
    PRECISION: tl.constexpr,
    BIAS: tl.constexpr,
    PDL: tl.constexpr,
):
    """As moe_grouped.grouped_down_kernel."""
    begin(PDL)
    num_m, num_n = tl.load(count), tl.cdiv(N, BLOCK_N)
    if tl.program_id(0) >= num_m * num_n:
        return
    block, tile = tile_of(tl.program_id(0), num_m, num_n, GROUP_M)
    expert = tl.load(experts + block).to(tl.int64)
    places_here = block.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    pair = tl.load(places + places_here)
    known = pair < num_pairs
    cols = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    wanted = cols < N
    groups = K // 32
    data += expert * (N * groups * 16)
    scales += expert * (N * groups)
    dtype: tl.constexpr = hidden.dtype.element_ty
    inner = tl.arange(0, 16 * BLOCK_G)
    left = inner // 16 * 32 + inner % 16
    a = hidden + places_here[None, :] * K + left[:, None]
    total = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    for first in range(0, groups, BLOCK_G):
        inside = (left < (groups - first) * 32)[:, None]
        low_x = tl.load(a + first * 32, mask=inside, other=0.0)
        high_x = tl.load(a + first * 32 + 16, mask=inside, other=0.0)
        low, high = both_halves(data, scales, cols, wanted, first, groups, BLOCK_G)
        total = tl.dot(flat(low, dtype), low_x, total, input_precision=PRECISION)
        total = tl.dot(flat(high, dtype), high_x, total, input_precision=PRECISION)
    if BIAS:
        bias = b2 + expert * N + cols
        total += tl.load(bias, mask=wanted, other=0.0).to(tl.float32)[:, None]
    weight = tl.load(weights + pair, mask=known, other=0.0)
    result = tl.trans(total * weight[None, :])
    target = out + pair.to(tl.int64)[:, None] * N + cols[None, :]
    mask = known[:, None] & wanted[None, :]
    tl.store(target, result.to(out.dtype.element_ty), mask=mask)


def choose(problem: Problem, num_tokens: int, itemsize: int) -> Config:
    """A rule: nobody has measured. `block_k` counts values, 32 to a group."""
    pairs = num_tokens * problem.top_k
    if pairs <= min(32, problem.num_experts):
        rows = max(1, 16 // support.next_power_of_2(problem.top_k))
        return PairConfig(
            PairTile(16, 256, num_stages=3), PairTile(max(4, rows), 256, num_stages=3)
        )
    narrow = 32 if itemsize > 2 else 64
    if pairs / problem.num_experts <= 12:
        return GroupedConfig(16, Tile(64, 128, 1, 4, 3), Tile(64, 128, 1, 4, 3))
    return GroupedConfig(64, Tile(narrow, 64, 8, 4, 3), Tile(2 * narrow, 64, 8, 4, 3))


def _options(tile: Tile, device: torch.device) -> dict[str, Any]:
    options = pdl_options(device)
    return {
        "BLOCK_N": tile.block_n,
        "BLOCK_G": tile.block_k // 32,
        "GROUP_M": tile.group_m,
        "PRECISION": "ieee",
        "PDL": bool(options),
        "num_warps": tile.num_warps,
        "num_stages": tile.num_stages,
        **options,
    }


def gate_up(
    x: Tensor, w13: MXFP4Weight, order: Order, top_k: int, tile: Tile, extras: Extras
) -> Tensor:
    """As of moe_grouped."""
    size, wide = x.shape[1], w13.shape[1] // 2
    hidden = torch.empty(order.max_blocks * order.block_m, wide, dtype=x.dtype, device=x.device)
    mx_gate_up_kernel[(order.max_blocks * triton.cdiv(wide, tile.block_n),)](
        x,
        w13.data,
        w13.scales,
        extras.b13,
        hidden,
        order.places,
        order.experts,
        order.num_blocks,
        x.stride(0),
        order.num_pairs,
        wide,
        size,
        TOP_K=top_k,
        BLOCK_M=order.block_m,
        **extras.constants(),
        **_options(tile, x.device),
    )
    return hidden


def down(
    hidden: Tensor, w2: MXFP4Weight, order: Order, weights: Tensor, tile: Tile, extras: Extras
) -> Tensor:
    """As of moe_grouped."""
    _, size, wide = w2.shape
    rows = torch.empty(order.num_pairs, size, dtype=hidden.dtype, device=hidden.device)
    mx_down_kernel[(order.max_blocks * triton.cdiv(size, tile.block_n),)](
        hidden,
        w2.data,
        w2.scales,
        extras.b2,
        rows,
        order.places,
        order.experts,
        order.num_blocks,
        weights,
        order.num_pairs,
        size,
        wide,
        BLOCK_M=order.block_m,
        BIAS=extras.b2 is not None,
        **_options(tile, hidden.device),
    )
    return rows


def experts_grouped(
    x: Tensor,
    w13: MXFP4Weight,
    w2: MXFP4Weight,
    weights: Tensor,
    ids: Tensor,
    config: GroupedConfig,
    extras: Extras,
) -> Tensor:
    """Of contracts.FusedExperts; weights and ids are contiguous."""
    order = sort_pairs(ids, w13.shape[0], config.block_m)
    hidden = gate_up(x, w13, order, ids.shape[1], config.gate_up, extras)
    return combine(down(hidden, w2, order, weights, config.down, extras), ids)
