"""Few tokens: every pair of token and expert by itself, as matrix-vector products.

Three launches. The router's kernel normalises too; the first product finds its expert in the logits
itself, which is cheaper than a launch for it; the second one sums over a token's experts.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from atom.ops.triton.launch import begin, pdl_options
from atom.ops.triton.moe_config import PairConfig, PairTile
from atom.ops.triton.support import next_power_of_2


class Routed(NamedTuple):
    """What the first kernel makes of x and the residual: all [T, ...]."""

    normed: Tensor  # [T, K]
    residual: Tensor  # [T, K]
    logits: Tensor  # [T, E] float32


@triton.jit
def norm_router_kernel(
    x,
    residual,
    norm_weight,
    router,
    normed,
    total,
    logits,
    eps,
    x_stride,
    residual_stride,
    K,
    E,
    HAS_RESIDUAL: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):
    """Some experts' logits of one token. Each program norms the whole row for itself, and writes
    its part of it."""
    experts = tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)
    token = tl.program_id(1).to(tl.int64)
    cols = tl.arange(0, BLOCK_K)
    inside = cols < K
    scale = tl.load(norm_weight + cols, mask=inside, other=0.0).to(tl.float32)
    wanted = experts < E
    tile = router + experts[:, None] * K + cols[None, :]
    matrix = tl.load(tile, mask=wanted[:, None] & inside[None, :], other=0.0)
    begin(PDL)
    row = tl.load(x + token * x_stride + cols, mask=inside, other=0.0)
    if HAS_RESIDUAL:
        before = tl.load(residual + token * residual_stride + cols, mask=inside, other=0.0)
        row = (row.to(tl.float32) + before.to(tl.float32)).to(row.dtype)
    wide = row.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(wide * wide, axis=0) / K + eps)
    out = (wide * inverse * scale).to(row.dtype)
    share = tl.cdiv(K, tl.num_programs(0))
    start = tl.program_id(0) * share
    own = (cols >= start) & (cols < start + share) & inside
    tl.store(normed + token * K + cols, out, mask=own)
    tl.store(total + token * K + cols, row, mask=own)
    scores = tl.sum(matrix.to(tl.float32) * out.to(tl.float32)[None, :], axis=1)
    tl.store(logits + token * E + experts, scores, mask=wanted)


def norm_and_route(
    x: Tensor, residual: Tensor | None, norm_weight: Tensor, eps: float, router: Tensor
) -> Routed:
    """x, residual [T, K]; norm_weight [K]; router [E, K]."""
    (num_tokens, size), experts = x.shape, router.shape[0]
    normed, total = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for _ in range(2))
    logits = torch.empty(num_tokens, experts, dtype=torch.float32, device=x.device)
    block_k = next_power_of_2(size)
    block_e = max(1, min(4, 8192 // block_k))
    options = pdl_options(x.device)
    norm_router_kernel[(triton.cdiv(experts, block_e), num_tokens)](
        x,
        x if residual is None else residual,
        norm_weight,
        router,
        normed,
        total,
        logits,
        eps,
        x.stride(0),
        0 if residual is None else residual.stride(0),
        size,
        experts,
        HAS_RESIDUAL=residual is not None,
        BLOCK_E=block_e,
        BLOCK_K=block_k,
        PDL=bool(options),
        num_warps=4,
        **options,
    )
    return Routed(normed, total, logits)


@triton.jit
def pair_gate_up_kernel(
    x,
    w13,
    logits,
    ids,
    weights,
    hidden,
    x_stride,
    K,
    N,
    E,
    TOP_K: tl.constexpr,
    FROM_LOGITS: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN: tl.constexpr,
    STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    """hidden [pairs, N] = silu(gate) * up, of one pair and BLOCK_N columns.

    FROM_LOGITS: the pair's expert is the one of its rank among the token's logits; the first
    program of the pair also writes it down, with its softmax. Else `ids` says it, -1: none.
    """
    pair = tl.program_id(0)
    token = (pair // TOP_K).to(tl.int64)
    rows = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    cols = tl.arange(0, BLOCK_K)
    begin(PDL)
    if FROM_LOGITS:
        experts = tl.arange(0, BLOCK_E)
        scores = tl.load(logits + token * E + experts, mask=experts < E, other=float("-inf"))
        rest = scores
        for _ in range(pair % TOP_K):
            rest = tl.where(experts == tl.argmax(rest, axis=0), float("-inf"), rest)
        expert = tl.minimum(tl.argmax(rest, axis=0), E - 1)
        if tl.program_id(1) == 0:
            largest = tl.max(scores, axis=0)
            share = tl.exp(tl.max(rest, axis=0) - largest) / tl.sum(tl.exp(scores - largest))
            tl.store(weights + pair, share)
            tl.store(ids + pair, expert)
    else:
        expert = tl.load(ids + pair)
    known = (rows < N) & (expert >= 0)
    gates = w13 + tl.maximum(expert, 0).to(tl.int64) * (2 * N * K)
    gates = gates + rows[:, None] * K + cols[None, :]
    ups = gates + N.to(tl.int64) * K
    gate = tl.zeros((BLOCK_N, BLOCK_K), dtype=tl.float32)
    up = tl.zeros((BLOCK_N, BLOCK_K), dtype=tl.float32)
    for start in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        if EVEN:
            mask = known[:, None]
            value = tl.load(x + token * x_stride + start + cols)
        else:
            inside = cols < K - start
            mask = known[:, None] & inside[None, :]
            value = tl.load(x + token * x_stride + start + cols, mask=inside, other=0.0)
        value = value.to(tl.float32)[None, :]
        gate += tl.load(gates + start, mask=mask, other=0.0).to(tl.float32) * value
        up += tl.load(ups + start, mask=mask, other=0.0).to(tl.float32) * value
    g = tl.sum(gate, axis=1)
    out = g * tl.sigmoid(g) * tl.sum(up, axis=1)
    places = hidden + pair.to(tl.int64) * N + rows
    tl.store(places, out.to(hidden.dtype.element_ty), mask=rows < N)


@triton.jit
def pair_down_kernel(
    hidden,
    w2,
    ids,
    weights,
    out,
    K,
    N,
    TOP_K: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN: tl.constexpr,
    STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    """out [T, N] of one token and BLOCK_N columns: the weighted sum over its experts."""
    token = tl.program_id(0).to(tl.int64)
    rows = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    cols = tl.arange(0, BLOCK_K)
    begin(PDL)
    total = tl.zeros((BLOCK_N, BLOCK_K), dtype=tl.float32)
    for j in tl.static_range(TOP_K):
        expert = tl.load(ids + token * TOP_K + j)
        weight = tl.where(expert >= 0, tl.load(weights + token * TOP_K + j), 0.0)
        known = (rows < N) & (expert >= 0)
        tile = w2 + tl.maximum(expert, 0).to(tl.int64) * (N * K)
        tile = tile + rows[:, None] * K + cols[None, :]
        source = hidden + (token * TOP_K + j) * K + cols
        for start in tl.range(0, K, BLOCK_K, num_stages=STAGES):
            if EVEN:
                mask = known[:, None]
                value = tl.load(source + start)
            else:
                inside = cols < K - start
                mask = known[:, None] & inside[None, :]
                value = tl.load(source + start, mask=inside, other=0.0)
            value = (value.to(tl.float32) * weight)[None, :]
            total += tl.load(tile + start, mask=mask, other=0.0).to(tl.float32) * value
    result = tl.sum(total, axis=1)
    if RENORMALIZE:
        choices = tl.arange(0, BLOCK_J)
        shares = tl.load(weights + token * TOP_K + choices, mask=choices < TOP_K, other=0.0)
        result = result / tl.sum(shares, axis=0)
    tl.store(out + token * N + rows, result.to(out.dtype.element_ty), mask=rows < N)


class Choice(NamedTuple):
    """The experts of the tokens [T, k]; with `logits`, to be filled in by the first product."""

    ids: Tensor
    weights: Tensor
    logits: Tensor | None
    renormalize: bool


def gate_up(x: Tensor, w13: Tensor, choice: Choice, tile: PairTile) -> Tensor:
    """x [T, K] -> [pairs, I]."""
    (num_tokens, size), top_k = x.shape, choice.ids.shape[1]
    experts, wide, pairs = w13.shape[0], w13.shape[1] // 2, num_tokens * top_k
    hidden = torch.empty(pairs, wide, dtype=x.dtype, device=x.device)
    options = pdl_options(x.device)
    pair_gate_up_kernel[(pairs, triton.cdiv(wide, tile.block_n))](
        x,
        w13,
        choice.weights if choice.logits is None else choice.logits,
        choice.ids,
        choice.weights,
        hidden,
        x.stride(0),
        size,
        wide,
        experts,
        TOP_K=top_k,
        FROM_LOGITS=choice.logits is not None,
        BLOCK_E=next_power_of_2(experts),
        BLOCK_N=tile.block_n,
        BLOCK_K=tile.block_k,
        EVEN=size % tile.block_k == 0,
        STAGES=tile.num_stages,
        PDL=bool(options),
        num_warps=tile.num_warps,
        **options,
    )
    return hidden


def down(hidden: Tensor, w2: Tensor, choice: Choice, tile: PairTile) -> Tensor:
    """hidden [pairs, I] -> [T, K], summed over a token's pairs."""
    (num_tokens, top_k), (_, size, wide) = choice.ids.shape, w2.shape
    out = torch.empty(num_tokens, size, dtype=hidden.dtype, device=hidden.device)
    options = pdl_options(hidden.device)
    pair_down_kernel[(num_tokens, triton.cdiv(size, tile.block_n))](
        hidden,
        w2,
        choice.ids,
        choice.weights,
        out,
        wide,
        size,
        TOP_K=top_k,
        RENORMALIZE=choice.renormalize,
        BLOCK_J=next_power_of_2(top_k),
        BLOCK_N=tile.block_n,
        BLOCK_K=tile.block_k,
        EVEN=wide % tile.block_k == 0,
        STAGES=tile.num_stages,
        PDL=bool(options),
        num_warps=tile.num_warps,
        **options,
    )
    return out


def experts_by_pair(
    x: Tensor, w13: Tensor, w2: Tensor, choice: Choice, config: PairConfig
) -> Tensor:
    """Of contracts.FusedExperts."""
    return down(gate_up(x, w13, choice, config.gate_up), w2, choice, config.down)
