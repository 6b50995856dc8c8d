"""Mixture of experts: a router, and experts whose intermediate size is shared out over ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from atom.layers import custom_ops
from atom.layers.build import BuildContext, dtype_name
from atom.layers.linear import ReplicatedLinear
from atom.layers.norm import RMSNorm
from atom.layers.shared_gate import SharedGate
from atom.layers.weights import ALL, CheckpointTensor, Layer, WeightSlot
from atom.ops.contracts import SILU, GatedActivation, MXFP4Weight, PackedExperts, Routing

NAMES = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}


class FusedMoE(Layer):
    """x [T, K], router logits [T, E] -> [T, K], summed over ranks.

    Reads `E.<gate|up|down>_proj.weight` per expert, or all experts stacked: `gate_up_proj`
    [E, 2I, K] with `down_proj` [E, K, I], or (GGUF) three stacks named with `.weight`. With `bias`,
    a subclass reads what is added to both products.
    """

    w13: Tensor | MXFP4Weight  # [E, 2I, K] of the rank: gate rows first
    w2: Tensor | MXFP4Weight  # [E, K, I]
    b13: Tensor | None  # [E, 2I], as w13
    b2: Tensor | None  # [E, K], added by rank 0
    weight_format: str  # dtype or "mxfp4", once the weights are loaded

    def __init__(
        self,
        build: BuildContext,
        *,
        hidden_size: int,
        intermediate_size: int,
        num_experts: int,
        top_k: int,
        routing: Routing,
        act: GatedActivation = SILU,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.build = build
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_experts = num_experts
        self.top_k = top_k
        self.routing = routing
        self.act = act
        self.bias = bias
        self.b13 = self.b2 = None
        self.packed: PackedExperts | None = None  # in place of w13 and w2
        self.correction: Tensor | None = None  # [E] float32, added to scores when choosing
        self.share = self._part(build, intermediate_size)
        self.local_size: int = self.share.stop - self.share.start
        self._sum = build.all_reduce()
        self._handle = custom_ops.remember(self) if build.traceable else ""
        self._targets: dict[str, Tensor] = {}  # while loading: where gate, up and down go

    def _part(self, build: BuildContext, size: int) -> slice:
        """The rank's share of the intermediate size."""
        return build.parallel.shard(size, "the experts' intermediate size")

    def forward(self, x: Tensor, logits: Tensor) -> Tensor:
        return self.sum(self.part(x, logits))

    __call__ = forward

    def part(self, x: Tensor, logits: Tensor) -> Tensor:
        """The rank's part, before the sum."""
        if self._handle:
            out: Tensor = torch.ops.atom.experts(x, logits, self._handle)
            return out
        return self.run(x, logits)

    def run(self, x: Tensor, logits: Tensor) -> Tensor:
        """What happens behind the custom operator, or without one."""
        weights, ids = self.route(logits)
        if self.packed is not None:
            return self.packed(x, weights, ids)
        if not self.variant:
            out: Tensor = self._experts(x, self.w13, self.w2, weights, ids)
        else:
            extra = (self.act, self.b13, self.b2)
            out = self._experts(x, self.w13, self.w2, weights, ids, *extra)
        return out

    @property
    def variant(self) -> str:
        """What is asked of op `fused_experts`."""
        words = ["act"] * (not self.act.is_plain) + ["bias"] * self.bias
        return ",".join(words)

    def route(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """(weights [T, k] float32, ids [T, k] int32) of router logits [T, E]."""
        chosen: tuple[Tensor, Tensor]
        if self._plain_route:
            chosen = self._route(logits, self.top_k, self.routing.renormalize)
        else:
            chosen = self._route(logits, self.top_k, self.routing, self.correction)
        return chosen

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
            first = torch.empty(count, 2 * size, hidden, dtype=dtype, device=device)
            second = torch.empty(count, hidden, size, dtype=dtype, device=device)
            self.w13, self.w2 = first, second
            self._targets = {"gate": first[:, :size], "up": first[:, size:], "down": second}
        return self._targets[kind]

    def finish(self) -> None:
        self._targets.clear()
        self._plain_route = self.routing.is_plain and self.correction is None
        op = "topk_softmax" if self._plain_route else "topk_route"
        self._route = self.build.select(op, opaque=True, E=self.num_experts, k=self.top_k)
        first, second = self.w13, self.w2
        if isinstance(first, MXFP4Weight):
            self.weight_format = "mxfp4"
        else:
            self.weight_format = dtype_name(first.dtype)
        self._experts = self._choose(self.weight_format)[0]
        pack = getattr(self._experts, "pack", None)
        if pack is not None:
            assert isinstance(first, Tensor), "nothing packs what is packed"
            self.packed = pack(first, second, self.act, self.b13, self.b2)
            self.w13 = self.w2 = first.new_empty(0)

    def _choose(self, weight_format: str) -> tuple[Callable[..., Any], str]:
        """The kernel for weights of this format, and its backend."""
        return self.build.choose(
            "fused_experts",
            opaque=True,
            weight_format=weight_format,
            variant=self.variant,
            k=self.top_k,
            E=self.num_experts,
            K=self.hidden_size,
            I=self.local_size,
        )

    @property
    def weight_bytes(self) -> int:
        weights = (self.w13, self.w2) if self.packed is None else (self.packed,)
        tensors = (*weights, self.b13, self.b2)
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)


class Router(ReplicatedLinear):
    """A linear layer, or a dense weight [E, K] for a kernel that does more than the router.

    Logits are float32 where the kernel of the product can write its sums unrounded: experts may be
    closer to each other than what rounding takes off.

    `correction`: the checkpoint has a vector of corrections beside the weight, under that name.
    """

    dense: Tensor

    def __init__(
        self,
        build: BuildContext,
        experts: FusedMoE,
        keep: bool,
        bias: bool = False,
        correction: str = "",
    ) -> None:
        super().__init__(build, experts.hidden_size, experts.num_experts, bias)
        self._keep = keep
        self._correction = correction
        self._wide: Callable[[Tensor], Tensor] | None = None
        self._experts = (experts,)  # in a tuple: a submodule of the layer above

    def slots(self, path: str) -> Iterator[WeightSlot]:
        yield from super().slots(path)
        if self._correction:
            size = (self._experts[0].num_experts,)
            yield WeightSlot(f"{path}.{self._correction}", size, self._take_correction)

    def forward(self, x: Tensor) -> Tensor:
        if self._wide is None:
            return self.packed(x, self.bias)
        logits = self._wide(x)
        return logits if self.bias is None else logits + self.bias

    __call__ = forward

    def _take_correction(self, tensor: CheckpointTensor) -> None:
        self._experts[0].correction = tensor.dense(ALL).to(self.build.device, torch.float32)

    def finish(self) -> None:
        if not self._keep:
            super().finish()
            self._wide = getattr(self.packed, "linear_f32", None)
            return
        self.dense = self.build.dense(self._raw["weight", 0])
        self._raw.clear()

    @property
    def weight_bytes(self) -> int:
        return self.dense.nbytes if self._keep else super().weight_bytes


class SparseMoE(nn.Module):
    """A router and its experts, in the place of a feed-forward layer.

    `shared` is an MLP x -> x that every token takes, its sum over the ranks left to this layer (as
    `MLP(..., reduce=False)` is); it hangs here under `shared_name`. With `shared_gate`, its output
    is scaled by sigmoid(x @ g), g the checkpoint's `<shared_name>_gate`.
    """

    def __init__(
        self,
        build: BuildContext,
        experts: FusedMoE,
        *,
        router_bias: bool = False,
        correction: str = "",
        shared: nn.Module | None = None,
        shared_name: str = "shared_experts",
        shared_gate: bool = False,
    ) -> None:
        super().__init__()
        plain = experts.routing.is_plain and not experts.variant and shared is None
        self._fused = None
        if plain and not (router_bias or correction):
            self._fused = build.fused(
                "sparse_moe",
                opaque=True,
                weight_format=dtype_name(build.weight_dtype or build.dtype),
                E=experts.num_experts,
                K=experts.hidden_size,
                I=experts.local_size,
                k=experts.top_k,
            )
        fused = self._fused is not None
        self.gate = Router(build, experts, fused, router_bias, correction)
        self.experts = experts
        self._shared_name = shared_name if shared is not None else ""
        self._shared_gate = f"{shared_name}_gate" if shared_gate else ""
        if shared is not None:
            self.add_module(shared_name, shared)
        if shared_gate:
            self.add_module(self._shared_gate, SharedGate(build, experts.hidden_size))
        self._handle = custom_ops.remember(self) if fused and build.traceable else ""

    def forward(self, norm: RMSNorm, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        if self._fused is None:
            x, residual = norm.enter(x, residual)
            return self._unfused(x), residual
        if self._handle:
            out, residual = torch.ops.atom.sparse_moe(
                x, residual, norm.weight, norm.eps, self._handle
            )
        else:
            out, residual = self.run(x, residual, norm.weight, norm.eps)
        return self.experts.sum(out), residual

    __call__ = forward

    def _unfused(self, x: Tensor) -> Tensor:
        logits = self.gate(x)
        if not self._shared_name:
            return self.experts(x, logits)
        shared: Tensor = getattr(self, self._shared_name)(x)
        part = self.experts.part(x, logits)
        if self._shared_gate:
            return self.experts.sum(getattr(self, self._shared_gate).add(part, shared, x))
        return self.experts.sum(part + shared)

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
            experts.routing.renormalize,
        )
        return out
