"""Mixture of experts: a router, and experts whose intermediate size is shared out over ranks."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from atom.layers import custom_ops
from atom.layers.build import BuildContext, dtype_name
from atom.layers.linear import ReplicatedLinear
from atom.layers.norm import RMSNorm
from atom.layers.weights import ALL, CheckpointTensor, Layer, WeightSlot

NAMES = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}


class FusedMoE(Layer):
    """x [T, K], router logits [T, E] -> [T, K], summed over ranks.

    Reads `E.<gate|up|down>_proj.weight` per expert, or all experts stacked: `gate_up_proj`
    [E, 2I, K] with `down_proj` [E, K, I], or (GGUF) three stacks named with `.weight`.
    """

    w13: Tensor  # [E, 2I, K] of the rank: gate rows first
    w2: Tensor  # [E, K, I]

    def __init__(
        self,
        build: BuildContext,
        *,
        hidden_size: int,
        intermediate_size: int,
        num_experts: int,
        top_k: int,
        renormalize: bool,
    ) -> None:
        super().__init__()
        self.build = build
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_experts = num_experts
        self.top_k = top_k
        self.renormalize = renormalize
        self.share = build.parallel.shard(intermediate_size, "the experts' intermediate size")
        self._route = build.select("topk_softmax", opaque=True, E=num_experts, k=top_k)
        self._sum = build.all_reduce()
        self._handle = custom_ops.remember(self) if build.traceable else ""
        self._raw: dict[tuple[str, int | None], Tensor] = {}

    def forward(self, x: Tensor, logits: Tensor) -> Tensor:
        if self._handle:
            out: Tensor = torch.ops.atom.experts(x, logits, self._handle)
        else:
            out = self.run(x, logits)
        return out if self._sum is None else self._sum(out)

    __call__ = forward

    def run(self, x: Tensor, logits: Tensor) -> Tensor:
        """The rank's part, before the sum: what happens behind the custom operator."""
        weights, ids = self._route(logits, self.top_k, self.renormalize)
        out: Tensor = self._experts(x, self.w13, self.w2, weights, ids)
        return out

    def slots(self, path: str) -> Iterator[WeightSlot]:
        count, wide, hidden = self.num_experts, self.intermediate_size, self.hidden_size
        shapes = {"gate": (wide, hidden), "up": (wide, hidden), "down": (hidden, wide)}
        single = {
            kind: [f"{path}.{e}.{leaf}.weight" for e in range(count)]
            for kind, leaf in NAMES.items()
        }
        for kind, shape in shapes.items():
            for expert, name in enumerate(single[kind]):
                yield WeightSlot(name, shape, partial(self._take, kind, expert))
            yield WeightSlot(
                f"{path}.{NAMES[kind]}.weight",
                (count, *shape),
                partial(self._take, kind, None),
                provides=tuple(single[kind]),
                required=False,
            )
        for leaf, kinds in (("gate_up_proj", ("gate", "up")), ("down_proj", ("down",))):
            rows = sum(shapes[kind][0] for kind in kinds)
            yield WeightSlot(
                f"{path}.{leaf}",
                (count, rows, shapes[kinds[0]][1]),
                partial(self._take_fused, kinds),
                provides=tuple(name for kind in kinds for name in single[kind]),
                required=False,
            )

    def _take(self, kind: str, expert: int | None, tensor: CheckpointTensor) -> None:
        index = (ALL, self.share) if kind == "down" else (self.share, ALL)
        self._raw[kind, expert] = tensor.dense(*(index if expert is not None else (ALL, *index)))

    def _take_fused(self, kinds: tuple[str, ...], tensor: CheckpointTensor) -> None:
        if kinds == ("down",):
            self._raw["down", None] = tensor.dense(ALL, ALL, self.share)
            return
        for half, kind in enumerate(kinds):
            start = half * self.intermediate_size
            rows = slice(start + self.share.start, start + self.share.stop)
            self._raw[kind, None] = tensor.dense(ALL, rows, ALL)

    def finish(self) -> None:
        size = self.share.stop - self.share.start
        stored = next(iter(self._raw.values())).dtype
        dtype = self.build.storage_dtype(stored)
        shape, device = (self.num_experts, self.hidden_size, size), self.build.device
        self._experts = self.build.select(
            "fused_experts",
            opaque=True,
            weight_format=dtype_name(dtype),
            E=self.num_experts,
            K=self.hidden_size,
            I=size,
            k=self.top_k,
        )
        self.w13 = torch.empty(shape[0], 2 * size, shape[1], dtype=dtype, device=device)
        self.w2 = torch.empty(shape, dtype=dtype, device=device)
        self._fill(self.w13[:, :size], "gate")
        self._fill(self.w13[:, size:], "up")
        self._fill(self.w2, "down")
        self._raw.clear()

    def _fill(self, target: Tensor, kind: str) -> None:
        stacked = self._raw.get((kind, None))
        if stacked is not None:
            target.copy_(stacked)
            return
        for expert in range(self.num_experts):
            target[expert].copy_(self._raw[kind, expert])

    @property
    def weight_bytes(self) -> int:
        return self.w13.nbytes + self.w2.nbytes


class SparseMoE(nn.Module):
    """A router and its experts, in the place of a feed-forward layer."""

    def __init__(self, build: BuildContext, experts: FusedMoE) -> None:
        super().__init__()
        self.gate = ReplicatedLinear(build, experts.hidden_size, experts.num_experts)
        self.experts = experts

    def forward(self, norm: RMSNorm, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        x, residual = norm.enter(x, residual)
        return self.experts(x, self.gate(x)), residual

    __call__ = forward
