"""DeepSeek V4's experts: chosen by score, or in the first blocks by the token's id."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from atom.errors import ModelError
from atom.layers.build import BuildContext
from atom.layers.linear import MergedColumnParallelLinear, RowParallelLinear
from atom.layers.moe import FusedMoE, SparseMoE
from atom.layers.weights import CheckpointTensor, Layer, WeightSlot, sibling

# A router's logit of an expert that is out of the question: its score is 0.
NEVER = -1e9


class ClampedMLP(nn.Module):
    """x [T, K] -> [T, K]: a gated MLP whose halves are clamped; the rank's part of the sum."""

    def __init__(self, build: BuildContext, hidden_size: int, size: int, limit: float) -> None:
        super().__init__()
        sizes = {"gate_proj": size, "up_proj": size}
        self.gate_up_proj = MergedColumnParallelLinear(build, hidden_size, sizes)
        self.down_proj = RowParallelLinear(build, size, hidden_size, reduce=False)
        self._act = build.select("swiglu_clamp", I=size // build.parallel.tp_size)
        self._limit = limit

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self._act(self.gate_up_proj(x), self._limit))

    __call__ = forward


class TokenExperts(Layer):
    """Which experts a token's id names: logits [T, E] -> the same, others' at `NEVER`, so that a
    router chooses those and weights them by its own scores."""

    table: Tensor  # [vocab_size, k] int64

    def __init__(self, build: BuildContext, vocab_size: int, num_experts: int, top_k: int) -> None:
        super().__init__()
        self.build = build
        self.shape, self.num_experts = (vocab_size, top_k), num_experts

    def forward(self, logits: Tensor, ids: Tensor) -> Tensor:
        named = self.table[ids]
        out = torch.full_like(logits, NEVER)
        return out.scatter_(1, named, logits.gather(1, named))

    __call__ = forward

    def slots(self, path: str) -> Iterator[WeightSlot]:
        yield WeightSlot(sibling(path, "gate.tid2eid"), self.shape, self._take)

    def _take(self, tensor: CheckpointTensor) -> None:
        table = tensor.integers(self.num_experts)
        ordered = table.sort(1).values
        if bool((ordered[:, 1:] == ordered[:, :-1]).any()):
            raise ModelError(f"{tensor.name} names an expert twice for one token")
        self.table = table.to(self.build.device, torch.int64)

    def finish(self) -> None:
        """Nothing to pack."""

    @property
    def weight_bytes(self) -> int:
        return self.table.nbytes


class V4MoE(SparseMoE):
    """(x [T, K], ids [T]) -> [T, K], with an MLP that every token takes.

    `vocab_size` > 0: experts by the token's id; else by score and the router's correction.
    """

    def __init__(
        self, build: BuildContext, experts: FusedMoE, shared: nn.Module, vocab_size: int = 0
    ) -> None:
        correction = "" if vocab_size else "bias"
        super().__init__(build, experts, correction=correction, shared=shared)
        self._shared = (shared,)  # in a tuple: SparseMoE's submodule
        self.named: TokenExperts | None = None
        if vocab_size:
            self.named = TokenExperts(build, vocab_size, experts.num_experts, experts.top_k)

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:  # type: ignore[override]
        logits = self.gate(x)
        if self.named is not None:
            logits = self.named(logits, ids)
        return self.experts.sum(self.experts.part(x, logits) + self._shared[0](x))

    __call__ = forward  # type: ignore[assignment]
