"""Gates after a layer: small operations that would each be several launches."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor


class SigmoidMul(Protocol):
    """op `sigmoid_mul`. x, gate [T, N] -> x * sigmoid(gate) [T, N] in x's dtype, float32 inside."""

    def __call__(self, x: Tensor, gate: Tensor) -> Tensor: ...


class AddGated(Protocol):
    """op `add_gated`. part, y, x [T, K], g [K] -> part + sigmoid(x . g) y [T, K] in part's dtype,
    float32 inside: what an expert that all tokens share adds to the others."""

    def __call__(self, part: Tensor, y: Tensor, x: Tensor, g: Tensor) -> Tensor: ...


GATE_OPS: dict[str, Any] = {"sigmoid_mul": SigmoidMul, "add_gated": AddGated}
