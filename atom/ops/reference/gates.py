"""Gates in plain torch, float32 inside."""

from __future__ import annotations

import torch
from torch import Tensor

from atom.ops.registry import register


@register("sigmoid_mul", "reference")
def sigmoid_mul(x: Tensor, gate: Tensor) -> Tensor:
    return (x.float() * torch.sigmoid(gate.float())).to(x.dtype)


@register("add_gated", "reference")
def add_gated(part: Tensor, y: Tensor, x: Tensor, g: Tensor) -> Tensor:
    scale = torch.sigmoid(x.float() @ g.float()).unsqueeze(-1)
    # Not addcmul, whose meta kernel cannot broadcast over an unknown number of tokens.
    return (part.float() + y.float() * scale).to(part.dtype)
