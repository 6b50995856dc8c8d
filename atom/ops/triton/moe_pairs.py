"""Few tokens: every pair of token and expert by itself, as matrix-vector products.

Two launches after `moe_routing.norm_and_score`. The first product finds its expert in the logits
itself, which is cheaper than a launch for it; the second one sums over a token's experts.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from atom.ops.triton.launch import pdl_options
from atom.ops.triton.moe_act import PLAIN, Extras, activate
from atom.ops.triton.moe_config import PairConfig, PairTile
from atom.ops.triton.support import next_power_of_2


@triton.jit
def pair_gate_up_kernel(
    x,
    w13,
    b13,
    logits,
    ids,
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
    KIND: tl.constexpr,
    LIMIT: tl.constexpr,
    BIAS: tl.constexpr,
    PDL: tl.constexpr,
):
    """hidden [pairs, N] = act(gate, up), of one pair and BLOCK_N columns.

    FROM_LOGITS: the pair's expert is the one of its rank among the token's logits. Else `ids` says
    it, -1: none.
    """
    pair = tl.program_id(0)
    token = (pair // TOP_K).to(tl.int64)
    rows = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    cols = tl.arange(0, BLOCK_K)
    if PDL:  # in this order: see pair_down_kernel
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    if FROM_LOGITS:
        experts = tl.arange(0, BLOCK_E)
        rest = tl.load(logits + token * E + experts, mask=experts < E, other=float("-inf"))
        for _ in range(pair % TOP_K):
            rest = tl.where(experts == tl.argmax(rest, axis=0), float("-inf"), rest)
        expert = tl.minimum(tl.argmax(rest, axis=0), E - 1)
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
    gate_sum, up_sum = tl.sum(gate, axis=1), tl.sum(up, axis=1)
    if BIAS:
        bias = b13 + tl.maximum(expert, 0).to(tl.int64) * (2 * N) + rows
        gate_sum += tl.load(bias, mask=known, other=0.0).to(tl.float32)
        up_sum += tl.load(bias + N, mask=known, other=0.0).to(tl.float32)
    out = activate(gate_sum, up_sum, KIND, LIMIT)
    places = hidden + pair.to(tl.int64) * N + rows
    tl.store(places, out.to(hidden.dtype.element_ty), mask=rows < N)


@triton.jit
def pair_down_kernel(
    hidden,
    w2,
    b2,
    logits,
    ids,
    weights,
    out,
    K,
    N,
    E,
    TOP_K: tl.constexpr,
    FROM_LOGITS: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN: tl.constexpr,
    EARLY: tl.constexpr,
    STAGES: tl.constexpr,
    BIAS: tl.constexpr,
    PDL: tl.constexpr,
):
    """out [T, N] of one token and BLOCK_N columns: the weighted sum over its experts.

    Before it waits for the hidden values it finds the experts and begins to read their weights,
    EARLY tiles of them. It may: the kernel before lets it start only after having waited for the
    one that chose.
    """
    token = tl.program_id(0).to(tl.int64)
    choices = tl.arange(0, BLOCK_J)
    if FROM_LOGITS:
        experts = tl.arange(0, BLOCK_E)
        rest = tl.load(logits + token * E + experts, mask=experts < E, other=float("-inf"))
        largest = tl.max(rest, axis=0)
        total = tl.sum(tl.exp(rest - largest), axis=0)
        chosen = tl.full((BLOCK_J,), -1, tl.int32)
        shares = tl.zeros((BLOCK_J,), dtype=tl.float32)
        for j in tl.static_range(TOP_K):
            value, best = tl.max(rest, axis=0, return_indices=True)
            chosen = tl.where(choices == j, tl.minimum(best, E - 1), chosen)
            shares = tl.where(choices == j, tl.exp(value - largest) / total, shares)
            rest = tl.where(experts == best, float("-inf"), rest)
        if RENORMALIZE:
            shares = shares / tl.sum(shares, axis=0)
    else:
        chosen = tl.load(ids + token * TOP_K + choices, mask=choices < TOP_K, other=-1)
        shares = tl.load(weights + token * TOP_K + choices, mask=choices < TOP_K, other=0.0)
        shares = tl.where(chosen >= 0, shares, 0.0)
    # Rows of the tile: (choice, column of the result).
    ROWS: tl.constexpr = BLOCK_J * BLOCK_N
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    column = tl.reshape(tl.broadcast_to(columns[None, :], (BLOCK_J, BLOCK_N)), (ROWS,))
    choice = tl.reshape(tl.broadcast_to(choices[:, None], (BLOCK_J, BLOCK_N)), (ROWS,))
    expert = tl.reshape(tl.broadcast_to(chosen[:, None], (BLOCK_J, BLOCK_N)), (ROWS,))
    known = (column < N) & (expert >= 0)
    cols = tl.arange(0, BLOCK_K)
    tile = w2 + tl.maximum(expert, 0).to(tl.int64)[:, None] * (N * K)
    tile = tile + column[:, None] * K + cols[None, :]
    source = hidden + (token * TOP_K + choice)[:, None] * K + cols[None, :]
    early = ()
    for step in tl.static_range(EARLY):
        inside = known[:, None] if EVEN else known[:, None] & (cols < K - step * BLOCK_K)[None, :]
        piece = (tl.load(tile + step * BLOCK_K, mask=inside, other=0.0),)
        early = early + piece  # type: ignore[assignment]
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    sums = tl.zeros((ROWS, BLOCK_K), dtype=tl.float32)
    for step in tl.static_range(EARLY):
        inside = known[:, None] if EVEN else known[:, None] & (cols < K - step * BLOCK_K)[None, :]
        vector = tl.load(source + step * BLOCK_K, mask=inside, other=0.0)
        sums += early[step].to(tl.float32) * vector.to(tl.float32)
    for start in tl.range(EARLY * BLOCK_K, K, BLOCK_K, num_stages=STAGES):
        here = known[:, None] if EVEN else known[:, None] & (cols < K - start)[None, :]
        row = tl.load(source + start, mask=here, other=0.0)
        matrix = tl.load(tile + start, mask=here, other=0.0)
        sums += matrix.to(tl.float32) * row.to(tl.float32)
    values = tl.sum(sums, axis=1)
    if BIAS:
        bias = b2 + tl.maximum(expert, 0).to(tl.int64) * N + column
        values += tl.load(bias, mask=known, other=0.0).to(tl.float32)
    products = tl.reshape(values, (BLOCK_J, BLOCK_N))
    result = tl.sum(products * shares[:, None], axis=0)
    tl.store(out + token * N + columns, result.to(out.dtype.element_ty), mask=columns < N)


class Choice(NamedTuple):
    """The experts of the tokens: their ids and weights [T, k], or the logits [T, E] float32 that
    say them."""

    top_k: int
    ids: Tensor | None = None
    weights: Tensor | None = None
    logits: Tensor | None = None
    renormalize: bool = False  # of the weights that logits say


def gate_up(
    x: Tensor, w13: Tensor, choice: Choice, tile: PairTile, extras: Extras = PLAIN
) -> Tensor:
    """x [T, K] -> [pairs, I]."""
    (num_tokens, size), top_k = x.shape, choice.top_k
    experts, wide, pairs = w13.shape[0], w13.shape[1] // 2, num_tokens * top_k
    hidden = torch.empty(pairs, wide, dtype=x.dtype, device=x.device)
    options = pdl_options(x.device)
    pair_gate_up_kernel[(pairs, triton.cdiv(wide, tile.block_n))](
        x,
        w13,
        extras.b13,
        choice.logits,
        choice.ids,
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
        **extras.constants(),
        PDL=bool(options),
        num_warps=tile.num_warps,
        **options,
    )
    return hidden


def down(
    hidden: Tensor, w2: Tensor, choice: Choice, tile: PairTile, extras: Extras = PLAIN
) -> Tensor:
    """hidden [pairs, I] -> [T, K], summed over a token's pairs. Launched right after `gate_up`."""
    top_k, (experts, size, wide) = choice.top_k, w2.shape
    num_tokens = hidden.shape[0] // top_k
    out = torch.empty(num_tokens, size, dtype=hidden.dtype, device=hidden.device)
    options = pdl_options(hidden.device)
    pair_down_kernel[(num_tokens, triton.cdiv(size, tile.block_n))](
        hidden,
        w2,
        extras.b2,
        choice.logits,
        choice.ids,
        choice.weights,
        out,
        wide,
        size,
        experts,
        TOP_K=top_k,
        FROM_LOGITS=choice.logits is not None,
        RENORMALIZE=choice.renormalize,
        BLOCK_E=next_power_of_2(experts),
        BLOCK_J=next_power_of_2(top_k),
        BLOCK_N=tile.block_n,
        BLOCK_K=tile.block_k,
        EVEN=wide % tile.block_k == 0,
        EARLY=min(tile.early, triton.cdiv(wide, tile.block_k)),
        STAGES=tile.num_stages,
        BIAS=extras.b2 is not None,
        PDL=bool(options),
        num_warps=tile.num_warps,
        **options,
    )
    return out


def experts_by_pair(
    x: Tensor,
    w13: Tensor,
    w2: Tensor,
    choice: Choice,
    config: PairConfig,
    extras: Extras = PLAIN,
) -> Tensor:
    """Of contracts.FusedExperts."""
    hidden = gate_up(x, w13, choice, config.gate_up, extras)
    return down(hidden, w2, choice, config.down, extras)
