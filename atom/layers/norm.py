"""RMS normalisation, alone or fused with the addition to the residual stream."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from atom.layers.build import BuildContext
from atom.layers.weights import CheckpointTensor, Layer, WeightSlot


class RMSNorm(Layer):
    """x [..., K] -> [..., K]. `add` is for the residual stream. The weight is the checkpoint's plus
    `offset` (zero-centred norms have 1); of the sum in bfloat16, whole bits would be lost, so that
    it is kept in float32."""

    weight: Tensor

    def __init__(self, build: BuildContext, size: int, eps: float, offset: float = 0.0) -> None:
        super().__init__()
        self.build = build
        self.size = size
        self.eps = eps
        self.offset = offset
        self._norm = build.select("rms_norm", K=size)
        self._add_norm = build.select("add_rms_norm", K=size)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self._norm(x, self.weight, self.eps)
        return out

    __call__ = forward

    def add(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """(normed r, r) of r = x + residual, which may be written in place."""
        out: tuple[Tensor, Tensor] = self._add_norm(x, residual, self.weight, self.eps)
        return out

    def enter(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """(normed r, r) of the new residual r = x + residual; without one, r is x."""
        return (self(x), x) if residual is None else self.add(x, residual)

    def slots(self, path: str) -> Iterator[WeightSlot]:
        yield WeightSlot(f"{path}.weight", (self.size,), self._take)

    def _take(self, tensor: CheckpointTensor) -> None:
        weight = tensor.read()
        self.weight = self.build.dense(weight)
        if self.offset:
            assert isinstance(weight, Tensor), "a norm is never packed"
            self.weight = weight.to(self.build.device, torch.float32) + self.offset

    def finish(self) -> None:
        """Nothing to pack."""

    @property
    def weight_bytes(self) -> int:
        return self.weight.nbytes
