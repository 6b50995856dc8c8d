"""Op `linear` on dense weights: reads the weight once at full speed for the few tokens of a decode.

For many tokens it is the vendor's matrix product between separate kernels of norm and activation.
The norm before a product and the gated activation after it are part of the same launch where that
is faster (`linear_config` says when). Weights stay as they are in the checkpoint, [N, K].
"""

from __future__ import annotations

import torch
from torch import Tensor

from atom.ops.contracts import GGUFWeight
from atom.ops.registry import OpQuery, register
from atom.ops.triton import support
from atom.ops.triton.linear_products import Products, products


def _products_of(weight: Tensor) -> Products:
    rows, k = weight.shape
    return products(rows, k, weight.dtype, weight.device)


class TritonLinear:
    """A dense weight [N, K], kept as it is."""

    __slots__ = ("_products", "in_features", "out_features", "weight")

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight.contiguous()
        self.out_features, self.in_features = weight.shape
        self._products = _products_of(self.weight)

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return self._products.linear(x, self.weight, bias)

    def linear_f32(self, x: Tensor) -> Tensor:
        """[T, K] -> [T, N] float32: the sums as they are accumulated."""
        return self._products.linear(x, self.weight, None, torch.float32)

    def norm_linear(
        self,
        x: Tensor,
        residual: Tensor | None,
        norm_weight: Tensor,
        eps: float,
        bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        return self._products.norm_linear(x, (residual, norm_weight, eps), self.weight, bias)

    def norm_gated(
        self,
        x: Tensor,
        residual: Tensor | None,
        norm_weight: Tensor,
        eps: float,
        bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        return self._products.norm_gated(x, (residual, norm_weight, eps), self.weight, bias)

    def dequantize(self) -> Tensor:
        return self.weight.float()


def declines(query: OpQuery) -> str | None:
    if query.weight_format not in ("bfloat16", "float16"):
        return f"weights are dense bfloat16 or float16, not {query.weight_format}"
    if query.weight_format != query.dtype:
        return f"weights are of the activations' dtype {query.dtype}, not {query.weight_format}"
    return None


def pack(weight: Tensor | GGUFWeight) -> TritonLinear:
    assert isinstance(weight, Tensor), "GGUF blocks are declined"
    return TritonLinear(weight)


# torch.compile sees each product as one opaque call. Without a residual the new one is x itself,
# which an operator may not return: hence two operators per fused product.


def _linear_op(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return _products_of(weight).linear(x, weight, bias)


def _linear_f32_op(x: Tensor, weight: Tensor) -> Tensor:
    return _products_of(weight).linear(x, weight, None, torch.float32)


def _norm_linear_op(
    x: Tensor, norm_weight: Tensor, eps: float, weight: Tensor, bias: Tensor | None
) -> Tensor:
    return _products_of(weight).norm_linear(x, (None, norm_weight, eps), weight, bias)[0]


def _add_norm_linear_op(
    x: Tensor,
    residual: Tensor,
    norm_weight: Tensor,
    eps: float,
    weight: Tensor,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    return _products_of(weight).norm_linear(x, (residual, norm_weight, eps), weight, bias)


def _norm_gated_op(
    x: Tensor, norm_weight: Tensor, eps: float, weight: Tensor, bias: Tensor | None
) -> Tensor:
    return _products_of(weight).norm_gated(x, (None, norm_weight, eps), weight, bias)[0]


def _add_norm_gated_op(
    x: Tensor,
    residual: Tensor,
    norm_weight: Tensor,
    eps: float,
    weight: Tensor,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    return _products_of(weight).norm_gated(x, (residual, norm_weight, eps), weight, bias)


def _fake(x: Tensor, weight: Tensor, share: int = 1) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0] // share)


_NORM = "Tensor norm_weight, float eps, Tensor weight, Tensor? bias"
_linear = support.define(
    "linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
    _linear_op,
    lambda x, weight, bias: _fake(x, weight),
)
_linear_f32 = support.define(
    "linear_f32(Tensor x, Tensor weight) -> Tensor",
    _linear_f32_op,
    lambda x, weight: _fake(x, weight).float(),
)
_norm_linear = support.define(
    f"norm_linear(Tensor x, {_NORM}) -> Tensor",
    _norm_linear_op,
    lambda x, g, eps, weight, bias: _fake(x, weight),
)
_add_norm_linear = support.define(
    f"add_norm_linear(Tensor x, Tensor residual, {_NORM}) -> (Tensor, Tensor)",
    _add_norm_linear_op,
    lambda x, r, g, eps, weight, bias: (_fake(x, weight), torch.empty_like(x)),
)
_norm_gated = support.define(
    f"norm_gated(Tensor x, {_NORM}) -> Tensor",
    _norm_gated_op,
    lambda x, g, eps, weight, bias: _fake(x, weight, 2),
)
_add_norm_gated = support.define(
    f"add_norm_gated(Tensor x, Tensor residual, {_NORM}) -> (Tensor, Tensor)",
    _add_norm_gated_op,
    lambda x, r, g, eps, weight, bias: (_fake(x, weight, 2), torch.empty_like(x)),
)


class TracedLinear(TritonLinear):
    """The same, as custom operators."""

    __slots__ = ()

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        out: Tensor = _linear(x, self.weight, bias)
        return out

    def linear_f32(self, x: Tensor) -> Tensor:
        out: Tensor = _linear_f32(x, self.weight)
        return out

    def norm_linear(
        self,
        x: Tensor,
        residual: Tensor | None,
        norm_weight: Tensor,
        eps: float,
        bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        if residual is None:
            return _norm_linear(x, norm_weight, eps, self.weight, bias), x
        out: tuple[Tensor, Tensor] = _add_norm_linear(
            x, residual, norm_weight, eps, self.weight, bias
        )
        return out

    def norm_gated(
        self,
        x: Tensor,
        residual: Tensor | None,
        norm_weight: Tensor,
        eps: float,
        bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        if residual is None:
            return _norm_gated(x, norm_weight, eps, self.weight, bias), x
        out: tuple[Tensor, Tensor] = _add_norm_gated(
            x, residual, norm_weight, eps, self.weight, bias
        )
        return out


def pack_traced(weight: Tensor | GGUFWeight) -> TracedLinear:
    assert isinstance(weight, Tensor), "GGUF blocks are declined"
    return TracedLinear(weight)


register("linear", "triton", declines, traced=pack_traced)(pack)
