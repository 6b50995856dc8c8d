"""Op `topk_route`: scores, groups, corrections and choice of experts, in one launch.

A program takes some tokens and holds all their scores in registers, group by group. The choice is
TOP_K rounds of a maximum: for the 4 to 8 experts of a token that is less work than sorting, and of
equal scores the first expert wins, as everywhere here. Not measured on a GPU; a decode step reads
and writes a few KiB, so that its time is that of a launch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from atom.ops.contracts import Routing
from atom.ops.triton.launch import begin, pdl_options
from atom.ops.triton.support import next_power_of_2


@triton.jit
def _scores(x, known, SCORING: tl.constexpr):
    """x [R, N] float32 of which `known` are logits -> scores, of others 0."""
    if SCORING == "softmax":
        rest = tl.where(known, x, float("-inf"))
        powers = tl.exp(rest - tl.max(rest, axis=1)[:, None])
        scores = powers / tl.sum(powers, axis=1)[:, None]
    elif SCORING == "sigmoid":
        scores = 1.0 / (1.0 + tl.exp(-x))
    else:
        scores = tl.sqrt(tl.maximum(x, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(x))))
    return tl.where(known, scores, 0.0)


@triton.jit
def _eligible(
    choice,
    GROUPS: tl.constexpr,
    PER_PAD: tl.constexpr,
    TOP_GROUPS: tl.constexpr,
    TOP2: tl.constexpr,
    G_PAD: tl.constexpr,
):
    """`choice` [R, G_PAD * PER_PAD] with -inf outside the TOP_GROUPS best groups."""
    ROWS: tl.constexpr = choice.shape[0]
    grouped = tl.reshape(choice, (ROWS, G_PAD, PER_PAD))
    best, place = tl.max(grouped, axis=2, return_indices=True)
    if TOP2:
        member = tl.arange(0, PER_PAD)[None, None, :]
        others = tl.where(member == place[:, :, None], float("-inf"), grouped)
        best += tl.max(others, axis=2)
    group = tl.arange(0, G_PAD)[None, :]
    # Groups that do not exist come after those whose experts are all -inf.
    rest = tl.where(group < GROUPS, tl.maximum(best, -1e38), float("-inf"))
    kept = tl.zeros((ROWS, G_PAD), dtype=tl.int32)
    for _ in tl.static_range(TOP_GROUPS):
        first = tl.argmax(rest, axis=1)[:, None]
        kept = tl.where(group == first, 1, kept)
        rest = tl.where(group == first, float("-inf"), rest)
    grouped = tl.where(kept[:, :, None] > 0, grouped, float("-inf"))
    return tl.reshape(grouped, (ROWS, G_PAD * PER_PAD))


@triton.jit
def route_kernel(
    logits,
    bias,
    weights,
    ids,
    num_tokens,
    logits_stride,
    PER: tl.constexpr,
    GROUPS: tl.constexpr,
    TOP_K: tl.constexpr,
    TOP_GROUPS: tl.constexpr,
    TOP2: tl.constexpr,
    SCORING: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    SCALE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    PER_PAD: tl.constexpr,
    G_PAD: tl.constexpr,
    BLOCK_J: tl.constexpr,
    PDL: tl.constexpr,
):
    """BLOCK_T tokens. Column c of a row is expert c % PER_PAD of group c // PER_PAD, of GROUPS
    groups of PER experts. A row of NaN, such as padding may hold, gets experts that exist."""
    rows = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    column = tl.arange(0, G_PAD * PER_PAD)
    expert = column // PER_PAD * PER + column % PER_PAD
    exists = (column % PER_PAD < PER) & (column // PER_PAD < GROUPS)
    choices = tl.arange(0, BLOCK_J)[None, :]
    here = (rows < num_tokens)[:, None]
    if HAS_BIAS:
        correction = tl.load(bias + expert, mask=exists, other=0.0)[None, :]
    begin(PDL)
    at = logits + rows.to(tl.int64)[:, None] * logits_stride + expert[None, :]
    x = tl.load(at, mask=here & exists[None, :], other=0.0).to(tl.float32)
    scores = _scores(x, exists[None, :], SCORING)
    choice = scores + correction if HAS_BIAS else scores
    choice = tl.where(exists[None, :] & (choice == choice), choice, float("-inf"))
    if GROUPS > 1:
        choice = _eligible(choice, GROUPS, PER_PAD, TOP_GROUPS, TOP2, G_PAD)
    chosen = tl.zeros((BLOCK_T, BLOCK_J), dtype=tl.int32)
    shares = tl.zeros((BLOCK_T, BLOCK_J), dtype=tl.float32)
    for j in tl.static_range(TOP_K):
        best = tl.argmax(choice, axis=1)[:, None]
        taken = column[None, :] == best
        share = tl.sum(tl.where(taken, scores, 0.0), axis=1)[:, None]
        number = tl.minimum(best // PER_PAD * PER + best % PER_PAD, GROUPS * PER - 1)
        chosen = tl.where(choices == j, number, chosen)
        shares = tl.where(choices == j, share, shares)
        choice = tl.where(taken, float("-inf"), choice)
    if RENORMALIZE:
        shares = shares / tl.sum(shares, axis=1)[:, None]
    out = rows.to(tl.int64)[:, None] * TOP_K + choices
    mask = here & (choices < TOP_K)
    tl.store(weights + out, shares * SCALE, mask=mask)
    tl.store(ids + out, chosen, mask=mask)


def topk_route(
    logits: Tensor, k: int, routing: Routing, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See contracts.TopkRoute."""
    num_tokens, experts = logits.shape
    weights = torch.empty(num_tokens, k, dtype=torch.float32, device=logits.device)
    ids = torch.empty(num_tokens, k, dtype=torch.int32, device=logits.device)
    if num_tokens == 0:
        return weights, ids
    groups = routing.num_groups
    per = experts // groups
    block_t = 1 if num_tokens <= 256 else 4
    options = pdl_options(logits.device)
    route_kernel[(triton.cdiv(num_tokens, block_t),)](
        logits,
        bias,
        weights,
        ids,
        num_tokens,
        logits.stride(0),
        PER=per,
        GROUPS=groups,
        TOP_K=k,
        TOP_GROUPS=routing.top_groups,
        TOP2=routing.group_score == "top2",
        SCORING=routing.scoring,
        HAS_BIAS=bias is not None,
        RENORMALIZE=routing.renormalize,
        SCALE=routing.scale,
        BLOCK_T=block_t,
        PER_PAD=next_power_of_2(per),
        G_PAD=next_power_of_2(groups),
        BLOCK_J=next_power_of_2(k),
        PDL=bool(options),
        num_warps=1 if block_t == 1 else 4,
        **options,
    )
    return weights, ids
