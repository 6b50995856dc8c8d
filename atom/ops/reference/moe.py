"""Routing and experts in plain torch: one expert after the other."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from atom.ops.contracts import SILU, GatedActivation, MXFP4Weight, Routing
from atom.ops.reference.elementwise import silu_and_mul
from atom.ops.reference.mxfp4 import dequantize
from atom.ops.registry import register


@register("topk_softmax", "reference")
def topk_softmax(logits: Tensor, k: int, renormalize: bool) -> tuple[Tensor, Tensor]:
    weights, ids = logits.float().softmax(-1).topk(k, dim=-1)
    if renormalize:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights, ids.to(torch.int32)


SCORING: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda logits: logits.softmax(-1),
    "sigmoid": torch.sigmoid,
    "sqrt_softplus": lambda logits: F.softplus(logits).sqrt(),
}


def _eligible(choice: Tensor, routing: Routing) -> Tensor:
    """`choice` [T, E] with -inf for the experts of groups that are not among the best."""
    grouped = choice.view(len(choice), routing.num_groups, -1)
    if routing.group_score == "max":
        score = grouped.amax(-1)
    else:
        assert routing.group_score == "top2", routing
        score = grouped.topk(2, dim=-1).values.sum(-1)
    best = score.topk(routing.top_groups, dim=-1).indices
    out = torch.ones_like(score, dtype=torch.bool).scatter_(-1, best, False)
    return grouped.masked_fill(out.unsqueeze(-1), float("-inf")).view(choice.shape)


@register("topk_route", "reference")
def topk_route(
    logits: Tensor, k: int, routing: Routing, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    scores = SCORING[routing.scoring](logits.float())
    choice = scores if bias is None else scores + bias
    if routing.num_groups > 1:
        choice = _eligible(choice, routing)
    ids = choice.topk(k, dim=-1).indices
    weights = scores.gather(-1, ids)
    if routing.renormalize:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights * routing.scale, ids.to(torch.int32)


def gated(hidden: Tensor, act: GatedActivation) -> Tensor:
    """[T, 2I], gate first -> [T, I]."""
    if act.is_plain:
        return silu_and_mul(hidden)
    gate, up = hidden.chunk(2, dim=-1)
    if act.limit:
        gate, up = gate.clamp(max=act.limit), up.clamp(-act.limit, act.limit)
    if act.kind == "silu":
        return F.silu(gate) * up
    assert act.kind == "gpt_oss", act
    return (up + 1) * gate * torch.sigmoid(1.702 * gate)


def _linear(x: Tensor, weight: Tensor | MXFP4Weight, bias: Tensor | None, expert: int) -> Tensor:
    if isinstance(weight, MXFP4Weight):
        matrix = dequantize(weight.data[expert], weight.scales[expert])
    else:
        matrix = weight[expert]
    return F.linear(x, matrix.to(x.dtype), None if bias is None else bias[expert])


@register("fused_experts", "reference", variants=None)
def fused_experts(
    x: Tensor,
    w13: Tensor | MXFP4Weight,
    w2: Tensor | MXFP4Weight,
    weights: Tensor,
    ids: Tensor,
    act: GatedActivation = SILU,
    b13: Tensor | None = None,
    b2: Tensor | None = None,
) -> Tensor:
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for expert in torch.unique(ids).tolist():
        if expert < 0:
            continue
        tokens, choice = (ids == expert).nonzero(as_tuple=True)
        hidden = gated(_linear(x[tokens], w13, b13, expert), act)
        result = _linear(hidden, w2, b2, expert).float()
        out.index_add_(0, tokens, result * weights[tokens, choice].float().unsqueeze(1))
    return out.to(x.dtype)
