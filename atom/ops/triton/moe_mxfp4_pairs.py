"""Few tokens with experts in MXFP4: every pair by itself, as matrix-vector products.

As `moe_pairs`, on the bytes of `moe_mxfp4`. Not measured on a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from atom.ops.contracts import MXFP4Weight
from atom.ops.triton.launch import begin, pdl_options
from atom.ops.triton.moe_act import Extras, activate
from atom.ops.triton.moe_config import PairConfig, PairTile
from atom.ops.triton.moe_mxfp4 import both_halves


@triton.jit
def _vector(at, first, groups, BLOCK_G: tl.constexpr):
    """Groups `first`.. of a vector as `both_halves` gives those of a matrix: [BLOCK_G, 16] each."""
    group = first + tl.arange(0, BLOCK_G)
    at += group[:, None] * 32 + tl.arange(0, 16)[None, :]
    inside = (group < groups)[:, None]
    low = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    high = tl.load(at + 16, mask=inside, other=0.0).to(tl.float32)
    return low, high


@triton.jit
def mx_pair_gate_up_kernel(
    x,
    data,
    scales,
    b13,
    ids,
    hidden,
    x_stride,
    K,
    N,
    TOP_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_G: tl.constexpr,
    STAGES: tl.constexpr,
    KIND: tl.constexpr,
    LIMIT: tl.constexpr,
    BIAS: tl.constexpr,
    PDL: tl.constexpr,
):
    """hidden [pairs, N] = act(gate, up), of one pair and BLOCK_N columns."""
    pair = tl.program_id(0)
    rows = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    begin(PDL)
    expert = tl.load(ids + pair)
    known = (rows < N) & (expert >= 0)
    expert = tl.maximum(expert, 0).to(tl.int64)
    groups = K // 32
    data += expert * (2 * N * groups * 16)
    scales += expert * (2 * N * groups)
    source = x + (pair // TOP_K).to(tl.int64) * x_stride
    gate = tl.zeros((BLOCK_N, BLOCK_G, 16), dtype=tl.float32)
    up = tl.zeros((BLOCK_N, BLOCK_G, 16), dtype=tl.float32)
    for first in tl.range(0, groups, BLOCK_G, num_stages=STAGES):
        low_x, high_x = _vector(source, first, groups, BLOCK_G)
        low, high = both_halves(data, scales, rows, known, first, groups, BLOCK_G)
        gate += low * low_x[None, :, :] + high * high_x[None, :, :]
        low, high = both_halves(data, scales, rows + N, known, first, groups, BLOCK_G)
        up += low * low_x[None, :, :] + high * high_x[None, :, :]
    gate_sum, up_sum = tl.sum(tl.sum(gate, axis=2), axis=1), tl.sum(tl.sum(up, axis=2), axis=1)
    if BIAS:
        bias = b13 + expert * (2 * N) + rows
        gate_sum += tl.load(bias, mask=known, other=0.0).to(tl.float32)
        up_sum += tl.load(bias + N, mask=known, other=0.0).to(tl.float32)
    out = activate(gate_sum, up_sum, KIND, LIMIT)
    places = hidden + pair.to(tl.int64) * N + rows
    tl.store(places, out.to(hidden.dtype.element_ty), mask=rows < N)


@triton.jit
def mx_pair_down_kernel(
    hidden,
    data,
    scales,
    b2,
    ids,
    weights,
    out,
    K,
    N,
    TOP_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_G: tl.constexpr,
    STAGES: tl.constexpr,
    BIAS: tl.constexpr,
    PDL: tl.constexpr,
):
    """out [T, N] of one token and BLOCK_N columns: the weighted sum over its experts, one after
    the other."""
    token = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    groups = K // 32
    total = tl.zeros((BLOCK_N,), dtype=tl.float32)
    begin(PDL)
    for j in range(TOP_K):
        pair = token * TOP_K + j
        expert = tl.load(ids + pair)
        known = (cols < N) & (expert >= 0)
        share = tl.where(expert >= 0, tl.load(weights + pair), 0.0)
        expert = tl.maximum(expert, 0).to(tl.int64)
        matrix, powers = data + expert * (N * groups * 16), scales + expert * (N * groups)
        sums = tl.zeros((BLOCK_N, BLOCK_G, 16), dtype=tl.float32)
        for first in tl.range(0, groups, BLOCK_G, num_stages=STAGES):
            low_x, high_x = _vector(hidden + pair * K, first, groups, BLOCK_G)
            low, high = both_halves(matrix, powers, cols, known, first, groups, BLOCK_G)
            sums += low * low_x[None, :, :] + high * high_x[None, :, :]
        product = tl.sum(tl.sum(sums, axis=2), axis=1)
        if BIAS:
            product += tl.load(b2 + expert * N + cols, mask=known, other=0.0).to(tl.float32)
        total += product * share
    tl.store(out + token * N + cols, total.to(out.dtype.element_ty), mask=cols < N)


def gate_up(x: Tensor, w13: MXFP4Weight, ids: Tensor, tile: PairTile, extras: Extras) -> Tensor:
    """x [T, K], ids [T, k] -> [pairs, I]."""
    wide = w13.shape[1] // 2
    hidden = torch.empty(ids.numel(), wide, dtype=x.dtype, device=x.device)
    options = pdl_options(x.device)
    mx_pair_gate_up_kernel[(ids.numel(), triton.cdiv(wide, tile.block_n))](
        x,
        w13.data,
        w13.scales,
        extras.b13,
        ids,
        hidden,
        x.stride(0),
        x.shape[1],
        wide,
        TOP_K=ids.shape[1],
        BLOCK_N=tile.block_n,
        BLOCK_G=tile.block_k // 32,
        STAGES=tile.num_stages,
        **extras.constants(),
        PDL=bool(options),
        num_warps=tile.num_warps,
        **options,
    )
    return hidden


def down(
    hidden: Tensor, w2: MXFP4Weight, weights: Tensor, ids: Tensor, tile: PairTile, extras: Extras
) -> Tensor:
    """hidden [pairs, I] -> [T, K], summed over a token's pairs."""
    (num_tokens, top_k), (_, size, wide) = ids.shape, w2.shape
    out = torch.empty(num_tokens, size, dtype=hidden.dtype, device=hidden.device)
    options = pdl_options(hidden.device)
    mx_pair_down_kernel[(num_tokens, triton.cdiv(size, tile.block_n))](
        hidden,
        w2.data,
        w2.scales,
        extras.b2,
        ids,
        weights,
        out,
        wide,
        size,
        TOP_K=top_k,
        BLOCK_N=tile.block_n,
        BLOCK_G=tile.block_k // 32,
        STAGES=tile.num_stages,
        BIAS=extras.b2 is not None,
        PDL=bool(options),
        num_warps=tile.num_warps,
        **options,
    )
    return out


def experts_by_pair(
    x: Tensor,
    w13: MXFP4Weight,
    w2: MXFP4Weight,
    weights: Tensor,
    ids: Tensor,
    config: PairConfig,
    extras: Extras,
) -> Tensor:
    """Of contracts.FusedExperts; weights and ids are contiguous."""
    hidden = gate_up(x, w13, ids, config.gate_up, extras)
    return down(hidden, w2, weights, ids, config.down, extras)
