"""The rows of the last block that anybody reads."""

from __future__ import annotations

import torch
from torch import Tensor

from atom.layers import custom_ops
from atom.layers.build import BuildContext
from atom.layers.context import forward_context


class SampledRows:
    """(x [T, N], residual [T, K]) -> their rows at `forward_context().rows`; as they are for None.

    Stands after the last attention: from there on, only what is sampled matters. A prompt's other
    tokens then skip the last block's products: 1 part in 32 of a model of 32 blocks.
    """

    def __init__(self, build: BuildContext) -> None:
        self._handle = custom_ops.remember(self) if build.traceable else ""

    def __call__(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        if self._handle:
            out: tuple[Tensor, Tensor] = torch.ops.atom.sampled_rows(x, residual, self._handle)
            return out
        return self.run(x, residual)

    def run(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """What happens behind the custom operator, or without one."""
        rows = forward_context().rows
        if rows is None:
            return x, residual
        return x.index_select(0, rows), residual.index_select(0, rows)
