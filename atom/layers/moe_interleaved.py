"""Experts as GPT-OSS stores them: input-major, gate and up rows in turn, with biases."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from atom.layers.build import BuildContext
from atom.layers.moe import FusedMoE
from atom.layers.weights import ALL, CheckpointTensor, WeightSlot
from atom.ops.contracts import GatedActivation, Routing


class InterleavedExperts(FusedMoE):
    """`FusedMoE` of `gate_up_proj` [E, K, 2I] (columns: gate, up, gate, ...) with `down_proj`
    [E, I, K], and of `gate_up_proj_bias` [E, 2I] in the same order with `down_proj_bias` [E, K].

    In memory it is as any other: gate rows first.
    """

    def __init__(
        self,
        build: BuildContext,
        *,
        hidden_size: int,
        intermediate_size: int,
        num_experts: int,
        top_k: int,
        routing: Routing,
        act: GatedActivation,
    ) -> None:
        super().__init__(
            build,
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            num_experts=num_experts,
            top_k=top_k,
            routing=routing,
            act=act,
            bias=True,
        )
        self._pairs = slice(2 * self.share.start, 2 * self.share.stop)

    def slots(self, path: str) -> Iterator[WeightSlot]:
        count, wide, hidden = self.num_experts, self.intermediate_size, self.hidden_size
        up, down = f"{path}.gate_up_proj", f"{path}.down_proj"
        yield WeightSlot(up, (count, hidden, 2 * wide), self._take_gate_up)
        yield WeightSlot(down, (count, wide, hidden), self._take_down)
        yield WeightSlot(f"{up}_bias", (count, 2 * wide), self._take_gate_up_bias)
        yield WeightSlot(f"{down}_bias", (count, hidden), self._take_down_bias)

    def _take_gate_up(self, tensor: CheckpointTensor) -> None:
        part = tensor.dense(ALL, ALL, self._pairs)
        targets = [self._target(kind, part.dtype) for kind in ("gate", "up")]
        for expert, matrix in enumerate(part):
            rows = matrix.to(self.build.device).T  # turned over where it is fast
            for first, target in enumerate(targets):
                target[expert].copy_(rows[first::2])

    def _take_down(self, tensor: CheckpointTensor) -> None:
        part = tensor.dense(ALL, self.share, ALL)
        for target, matrix in zip(self._target("down", part.dtype), part, strict=True):
            target.copy_(matrix.to(self.build.device).T)

    def _take_gate_up_bias(self, tensor: CheckpointTensor) -> None:
        self.b13 = self._bias(deinterleaved(tensor.dense(ALL, self._pairs)))

    def _take_down_bias(self, tensor: CheckpointTensor) -> None:
        if self.build.parallel.tp_rank == 0:  # it is added once
            self.b2 = self._bias(tensor.dense(ALL, ALL))

    def _bias(self, bias: Tensor) -> Tensor:
        return bias.to(self.build.device, self.build.dtype).contiguous()


def deinterleaved(rows: Tensor) -> Tensor:
    """[E, 2I, ...] of gate and up in turn -> gate first."""
    return torch.cat((rows[:, 0::2], rows[:, 1::2]), 1)
