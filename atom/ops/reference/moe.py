"""Routing and experts in plain torch: one expert after the other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from atom.ops.reference.elementwise import silu_and_mul
from atom.ops.registry import register


@register("topk_softmax", "reference")
def topk_softmax(logits: Tensor, k: int, renormalize: bool) -> tuple[Tensor, Tensor]:
    weights, ids = logits.float().softmax(-1).topk(k, dim=-1)
    if renormalize:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights, ids.to(torch.int32)


@register("fused_experts", "reference")
def fused_experts(x: Tensor, w13: Tensor, w2: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for expert in torch.unique(ids).tolist():
        if expert < 0:
            continue
        tokens, choice = (ids == expert).nonzero(as_tuple=True)
        hidden = silu_and_mul(F.linear(x[tokens], w13[expert].to(x.dtype)))
        result = F.linear(hidden, w2[expert].to(x.dtype)).float()
        out.index_add_(0, tokens, result * weights[tokens, choice].float().unsqueeze(1))
    return out.to(x.dtype)
