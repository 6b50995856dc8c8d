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
        self.local_size: int = self.share.stop - self.share.start
        self._route = build.select("topk_softmax", opaque=True, E=num_experts, k=top_k)
        self._sum = build.all_reduce()
        self._handle = custom_ops.remember(self) if build.traceable else ""
        self._targets: dict[str, Tensor] = {}  # while loading: where gate, up and down go

    def forward(self, x: Tensor, logits: Tensor) -> Tensor:
        if self._handle:
            out: Tensor = torch.ops.atom.experts(x, logits, self._handle)
        else:
            out = self.run(x, logits)
        return self.sum(out)

    __call__ = forward

    def run(self, x: Tensor, logits: Tensor) -> Tensor:
        """The rank's part, before the sum: what happens behind the custom operator."""
        weights, ids = self._route(logits, self.top_k, self.renormalize)
        out: Tensor = self._experts(x, self.w13, self.w2, weights, ids)
        return out

    def sum(self, out: Tensor) -> Tensor:
        """Over the ranks, each of which has a part of every expert."""
        return out if self._sum is None else self._sum(out)

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
        part = tensor.dense(*(index if expert is not None else (ALL, *index)))
        target = self._target(kind, part.dtype)
        (target if expert is None else target[expert]).copy_(part)

    def _take_fused(self, kinds: tuple[str, ...], tensor: CheckpointTensor) -> None:
        if kinds == ("down",):
            self._take("down", None, tensor)
            return
        for half, kind in enumerate(kinds):
            start = half * self.intermediate_size
            rows = slice(start + self.share.start, start + self.share.stop)
            part = tensor.dense(ALL, rows, ALL)
            self._target(kind, part.dtype).copy_(part)

    def _target(self, kind: str, stored: torch.dtype) -> Tensor:
        """Where all experts' `kind` lies. Each tensor goes there as it comes: experts are most of
        a model, of which a device may not hold two copies."""
        if not self._targets:
            dtype, device = self.build.storage_dtype(stored), self.build.device
            count, hidden, size = self.num_experts, self.hidden_size, self.local_size
            self.w13 = torch.empty(count, 2 * size, hidden, dtype=dtype, device=device)
            self.w2 = torch.empty(count, hidden, size, dtype=dtype, device=device)
            gate, up = self.w13[:, :size], self.w13[:, size:]
            self._targets = {"gate": gate, "up": up, "down": self.w2}
        return self._targets[kind]

    def finish(self) -> None:
        self._targets.clear()
        self._experts = self.build.select(
            "fused_experts",
            opaque=True,
            weight_format=dtype_name(self.w13.dtype),
            E=self.num_experts,
            K=self.hidden_size,
            I=self.local_size,
            k=self.top_k,
        )

    @property
    def weight_bytes(self) -> int:
        return self.w13.nbytes + self.w2.nbytes


class Router(ReplicatedLinear):
    """A linear layer, or a dense weight [E, K] for a kernel that does more than the router."""

    dense: Tensor

    def __init__(self, build: BuildContext, in_features: int, experts: int, keep: bool) -> None:
        super().__init__(build, in_features, experts)
        self._keep = keep

    def finish(self) -> None:
        if not self._keep:
            super().finish()
            return
        self.dense = self.build.dense(self._raw["weight", 0])
        self._raw.clear()

    @property
    def weight_bytes(self) -> int:
        return self.dense.nbytes if self._keep else super().weight_bytes


class SparseMoE(nn.Module):
    """A router and its experts, in the place of a feed-forward layer."""

    def __init__(self, build: BuildContext, experts: FusedMoE) -> None:
        super().__init__()
        weights = dtype_name(build.weight_dtype or build.dtype)
        self._fused = build.fused(
            "sparse_moe",
            opaque=True,
            weight_format=weights,
            E=experts.num_experts,
            K=experts.hidden_size,
            I=experts.local_size,
            k=experts.top_k,
        )
        fused = self._fused is not None
        self.gate = Router(build, experts.hidden_size, experts.num_experts, keep=fused)
        self.experts = experts
        self._handle = custom_ops.remember(self) if fused and build.traceable else ""

    def forward(self, norm: RMSNorm, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        if self._fused is None:
            x, residual = norm.enter(x, residual)
            return self.experts(x, self.gate(x)), residual
        if self._handle:
            out, residual = torch.ops.atom.sparse_moe(
                x, residual, norm.weight, norm.eps, self._handle
            )
        else:
            out, residual = self.run(x, residual, norm.weight, norm.eps)
        return self.experts.sum(out), residual

    __call__ = forward

    def run(
        self, x: Tensor, residual: Tensor | None, norm_weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """The rank's part, before the sum, in one kernel's charge from the norm on."""
        assert self._fused is not None
        experts = self.experts
        out: tuple[Tensor, Tensor] = self._fused(
            x,
            residual,
            norm_weight,
            eps,
            self.gate.dense,
            experts.w13,
            experts.w2,
            experts.top_k,
            experts.renormalize,
        )
        return out
