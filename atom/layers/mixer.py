"""What mixes the tokens of a sequence: attention of any kind, recurrences. It alone has caches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from atom.layers import custom_ops
from atom.layers.build import BuildContext
from atom.layers.caches import CacheSpec
from atom.layers.context import forward_context
from atom.layers.weights import Layer, WeightSlot
from atom.ops.contracts import AttentionMetadata


class Mixer(Layer):
    """inputs, each [T, ...], and positions [T] -> [T, width], in the dtype of `inputs[0]`.

    Subclasses give `run` and `cache_specs`. `run` sees the step's metadata; it is one opaque call
    for a compiler, and what runs between two pieces of a graph.
    """

    def __init__(self, build: BuildContext, width: int) -> None:
        super().__init__()
        self.width = width
        self.block_size = build.block_size
        self._handle = custom_ops.remember(self) if build.traceable else ""

    def cache_specs(self) -> tuple[CacheSpec, ...]:
        raise NotImplementedError

    def forward(self, inputs: list[Tensor], positions: Tensor) -> Tensor:
        if self._handle:
            out: Tensor = torch.ops.atom.mix(inputs, positions, self.width, self._handle)
            return out
        return self.step(inputs, positions)

    __call__ = forward

    def step(self, inputs: list[Tensor], positions: Tensor) -> Tensor:
        """What happens behind the custom operator, or without one."""
        context = forward_context()
        if context.around_attention is not None:
            return context.around_attention(self, inputs, positions)
        return self.run(inputs, positions, context.attention)

    def run(
        self,
        inputs: list[Tensor],
        positions: Tensor,
        meta: AttentionMetadata,
        out: Tensor | None = None,
    ) -> Tensor:
        """The layer itself, into `out` [T, width] if it is given. Inputs may be overwritten. Rows
        past `meta.num_tokens` are padding: of `out` they may hold anything finite."""
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """What a trace says of it: its `kind` and the sizes that its work follows from, of the
        rank's share. See `atom.engine.runner.facts`."""
        return {}

    # Most have no weights of their own.

    def slots(self, path: str) -> Iterator[WeightSlot]:
        return iter(())

    def finish(self) -> None:
        """Nothing to pack."""

    @property
    def weight_bytes(self) -> int:
        return 0
