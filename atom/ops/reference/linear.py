"""Matrix product with a weight and embedding lookup, on dense weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from atom.ops.contracts import GGUFWeight, PackedLinear
from atom.ops.reference.gguf import dequantize
from atom.ops.registry import register


class DenseLinear:
    """A dense weight [N, K]. A weight of another dtype than x's is multiplied in float32."""

    __slots__ = ("in_features", "out_features", "weight")

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight
        self.out_features, self.in_features = weight.shape

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        weight = self.weight
        if weight.dtype == x.dtype:
            return F.linear(x, weight, bias)
        wide_bias = None if bias is None else bias.float()
        return F.linear(x.float(), weight.float(), wide_bias).to(x.dtype)

    def dequantize(self) -> Tensor:
        return self.weight.float()


@register("linear", "reference")
def pack(weight: Tensor | GGUFWeight) -> DenseLinear:
    """GGUF blocks become a float32 matrix; a dense weight is kept as it is, not copied."""
    return DenseLinear(dequantize(weight) if isinstance(weight, GGUFWeight) else weight)


@register("embedding", "reference")
def embedding(ids: Tensor, weight: Tensor | PackedLinear, dtype: torch.dtype) -> Tensor:
    if isinstance(weight, DenseLinear):
        weight = weight.weight
    dense = weight if isinstance(weight, Tensor) else weight.dequantize()
    return F.embedding(ids, dense).to(dtype)
