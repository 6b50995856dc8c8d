"""The gated activation of feed-forward layers."""

from __future__ import annotations

from torch import Tensor

from atom.layers.build import BuildContext


class SiluAndMul:
    """x [T, 2I] -> silu(x[:, :I]) * x[:, I:]."""

    __slots__ = ("_kernel",)

    def __init__(self, build: BuildContext, size: int) -> None:
        self._kernel = build.select("silu_and_mul", I=size)

    def __call__(self, x: Tensor) -> Tensor:
        out: Tensor = self._kernel(x)
        return out
