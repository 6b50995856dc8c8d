"""Many tokens: the experts' products as one grouped matrix product, on the tensor cores.

Rows are pairs in the order of `moe_order.Order`. The first product gathers the tokens' rows and
leaves the activated values in that order; the second weights each row and puts it where its pair
belongs; `combine_kernel` sums a token's rows. Nothing is added with atomics.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from atom.ops.triton.launch import begin, pdl_options
from atom.ops.triton.moe_act import PLAIN, Extras, activate
from atom.ops.triton.moe_config import GroupedConfig, Tile
from atom.ops.triton.moe_order import Order, sort_pairs
from atom.ops.triton.support import next_power_of_2


@triton.jit
def tile_of(program, num_m, num_n, GROUP_M: tl.constexpr):
    """The block of rows and the tile of columns of a program: GROUP_M blocks take turns over the
    columns, so that what they share stays in the cache."""
    per_group = GROUP_M * num_n
    group = program // per_group
    first = group * GROUP_M
    size = tl.minimum(num_m - first, GROUP_M)
    return first + (program % per_group) % size, (program % per_group) // size


@triton.jit
def grouped_gate_up_kernel(
    x,
    w13,
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
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    EVEN: tl.constexpr,
    TMA: tl.constexpr,
    PRECISION: tl.constexpr,
    KIND: tl.constexpr,
    LIMIT: tl.constexpr,
    BIAS: tl.constexpr,
    PDL: tl.constexpr,
):
    """hidden [rows of the order, N] = act(gate, up). A program owns BLOCK_N columns of both.

    TMA: w13 is a tensor descriptor of [E * 2N, K].
    """
    begin(PDL)
    num_m, num_n = tl.load(count), tl.cdiv(N, BLOCK_N)
    if tl.program_id(0) >= num_m * num_n:
        return
    block, tile = tile_of(tl.program_id(0), num_m, num_n, GROUP_M)
    expert = tl.load(experts + block)
    places_here = block.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    pair = tl.load(places + places_here)
    known = pair < num_pairs
    token = tl.where(known, pair // TOP_K, 0).to(tl.int64)
    cols = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    wanted = cols < N
    inner = tl.arange(0, BLOCK_K)
    a = x + token[:, None] * x_stride + inner[None, :]
    first = expert * (2 * N) + tile * BLOCK_N
    if not TMA:
        gates = w13 + expert.to(tl.int64) * (2 * N * K) + inner[:, None]
        gates = gates + tl.where(wanted, cols, 0)[None, :] * K
        ups = gates + N.to(tl.int64) * K
    gate = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    up = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, K, BLOCK_K):
        if EVEN:
            left = tl.load(a + start, mask=known[:, None], other=0.0)
        else:
            inside = inner < K - start
            left = tl.load(a + start, mask=known[:, None] & inside[None, :], other=0.0)
        if TMA:
            middle, right = w13.load([first, start]).T, w13.load([first + N, start]).T
        elif EVEN:
            middle, right = tl.load(gates + start), tl.load(ups + start)
        else:
            middle = tl.load(gates + start, mask=inside[:, None], other=0.0)
            right = tl.load(ups + start, mask=inside[:, None], other=0.0)
        gate = tl.dot(left, middle, gate, input_precision=PRECISION)
        up = tl.dot(left, right, up, input_precision=PRECISION)
    if BIAS:
        bias = b13 + expert.to(tl.int64) * (2 * N) + cols
        gate += tl.load(bias, mask=wanted, other=0.0).to(tl.float32)[None, :]
        up += tl.load(bias + N, mask=wanted, other=0.0).to(tl.float32)[None, :]
    out = activate(gate, up, KIND, LIMIT)
    target = hidden + places_here[:, None] * N + cols[None, :]
    tl.store(target, out.to(hidden.dtype.element_ty), mask=wanted[None, :])


@triton.jit
def grouped_down_kernel(
    hidden,
    w2,
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
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    EVEN: tl.constexpr,
    TMA: tl.constexpr,
    PRECISION: tl.constexpr,
    BIAS: tl.constexpr,
    PDL: tl.constexpr,
):
    """out [pairs, N]: each pair's row times its weight.

    TMA: hidden [rows, K] and w2 [E * N, K] are tensor descriptors.
    """
    begin(PDL)
    num_m, num_n = tl.load(count), tl.cdiv(N, BLOCK_N)
    if tl.program_id(0) >= num_m * num_n:
        return
    block, tile = tile_of(tl.program_id(0), num_m, num_n, GROUP_M)
    expert = tl.load(experts + block)
    places_here = block.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    pair = tl.load(places + places_here)
    known = pair < num_pairs
    cols = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    wanted = cols < N
    inner = tl.arange(0, BLOCK_K)
    if not TMA:
        a = hidden + places_here[:, None] * K + inner[None, :]
        b = w2 + expert.to(tl.int64) * (N * K) + inner[:, None]
        b = b + tl.where(wanted, cols, 0)[None, :] * K
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, K, BLOCK_K):
        if TMA:
            left = hidden.load([block * BLOCK_M, start])
            right = w2.load([expert * N + tile * BLOCK_N, start]).T
        elif EVEN:
            left, right = tl.load(a + start), tl.load(b + start)
        else:
            inside = inner < K - start
            left = tl.load(a + start, mask=inside[None, :], other=0.0)
            right = tl.load(b + start, mask=inside[:, None], other=0.0)
        total = tl.dot(left, right, total, input_precision=PRECISION)
    if BIAS:
        bias = b2 + expert.to(tl.int64) * N + cols
        total += tl.load(bias, mask=wanted, other=0.0).to(tl.float32)[None, :]
    weight = tl.load(weights + pair, mask=known, other=0.0)
    result = total * weight[:, None]
    target = out + pair.to(tl.int64)[:, None] * N + cols[None, :]
    mask = known[:, None] & wanted[None, :]
    tl.store(target, result.to(out.dtype.element_ty), mask=mask)


@triton.jit
def combine_kernel(
    rows, ids, out, N, TOP_K: tl.constexpr, BLOCK_N: tl.constexpr, PDL: tl.constexpr
):
    """out [T, N]: the sum of a token's TOP_K rows, without those of experts elsewhere."""
    token = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    begin(PDL)
    total = tl.zeros((BLOCK_N,), dtype=tl.float32)
    for j in tl.static_range(TOP_K):
        pair = token * TOP_K + j
        mask = (cols < N) & (tl.load(ids + pair) >= 0)
        total += tl.load(rows + pair * N + cols, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + token * N + cols, total.to(out.dtype.element_ty), mask=cols < N)


def described(matrices: Tensor, rows: int, cols: int) -> Any:
    """All rows of `matrices` [..., K], for the tensor copy engine to fetch tiles of."""
    return TensorDescriptor.from_tensor(matrices.view(-1, matrices.shape[-1]), [rows, cols])


def gate_up(
    x: Tensor, w13: Tensor, order: Order, top_k: int, tile: Tile, extras: Extras = PLAIN
) -> Tensor:
    """[rows of the order, I]; rows that fill a block up hold numbers that mean nothing."""
    size, wide = x.shape[1], w13.shape[1] // 2
    hidden = torch.empty(order.max_blocks * order.block_m, wide, dtype=x.dtype, device=x.device)
    options = pdl_options(x.device)
    grouped_gate_up_kernel[(order.max_blocks * triton.cdiv(wide, tile.block_n),)](
        x,
        described(w13, tile.block_n, tile.block_k) if tile.tma else w13,
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
        BLOCK_N=tile.block_n,
        BLOCK_K=tile.block_k,
        GROUP_M=tile.group_m,
        EVEN=size % tile.block_k == 0,
        TMA=tile.tma,
        PRECISION="ieee",
        **extras.constants(),
        PDL=bool(options),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        **options,
    )
    return hidden


def down(
    hidden: Tensor, w2: Tensor, order: Order, weights: Tensor, tile: Tile, extras: Extras = PLAIN
) -> Tensor:
    """[pairs, K], weighted; rows of pairs that are not in the order are not written."""
    _, size, wide = w2.shape
    rows = torch.empty(order.num_pairs, size, dtype=hidden.dtype, device=hidden.device)
    options = pdl_options(hidden.device)
    grouped_down_kernel[(order.max_blocks * triton.cdiv(size, tile.block_n),)](
        described(hidden, order.block_m, tile.block_k) if tile.tma else hidden,
        described(w2, tile.block_n, tile.block_k) if tile.tma else w2,
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
        BLOCK_N=tile.block_n,
        BLOCK_K=tile.block_k,
        GROUP_M=tile.group_m,
        EVEN=wide % tile.block_k == 0,
        TMA=tile.tma,
        PRECISION="ieee",
        BIAS=extras.b2 is not None,
        PDL=bool(options),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        **options,
    )
    return rows


def combine(rows: Tensor, ids: Tensor) -> Tensor:
    """rows [pairs, K], ids [T, k] -> [T, K]."""
    num_tokens, top_k = ids.shape
    size = rows.shape[1]
    out = torch.empty(num_tokens, size, dtype=rows.dtype, device=rows.device)
    block = min(next_power_of_2(size), 512 if num_tokens <= 256 else 2048)
    options = pdl_options(rows.device)
    combine_kernel[(num_tokens, triton.cdiv(size, block))](
        rows,
        ids,
        out,
        size,
        TOP_K=top_k,
        BLOCK_N=block,
        PDL=bool(options),
        num_warps=2 if block <= 512 else 4,
        **options,
    )
    return out


def experts_grouped(
    x: Tensor,
    w13: Tensor,
    w2: Tensor,
    weights: Tensor,
    ids: Tensor,
    config: GroupedConfig,
    extras: Extras = PLAIN,
) -> Tensor:
    """Of contracts.FusedExperts; weights and ids are contiguous."""
    order = sort_pairs(ids, w13.shape[0], config.block_m)
    hidden = gate_up(x, w13, order, ids.shape[1], config.gate_up, extras)
    return combine(down(hidden, w2, order, weights, config.down, extras), ids)
