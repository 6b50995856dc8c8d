"""The gated activation of feed-forward layers."""

from __future__ import annotations

from torch import Tensor

from atom.errors import ModelError
from atom.layers.build import BuildContext


class SiluAndMul:
    """x [T, 2I] -> silu(x[:, :I]) * x[:, I:]. `name` is the checkpoint's `hidden_act`."""

    __slots__ = ("_kernel",)

    def __init__(self, build: BuildContext, size: int, name: str = "silu") -> None:
        if name not in ("silu", "swish"):
            raise ModelError(f"hidden_act {name!r} is not supported; supported: silu")
        self._kernel = build.select("silu_and_mul", I=size)

    def __call__(self, x: Tensor) -> Tensor:
        out: Tensor = self._kernel(x)
        return out
