"""The gate of an expert that every token takes."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from atom.layers.build import BuildContext
from atom.layers.weights import ALL, CheckpointTensor, Layer, WeightSlot


class SharedGate(Layer):
    """(experts' sum, shared expert's output, their input x), each [T, K] -> the former plus
    sigmoid(x . g) times the latter. g is the checkpoint's weight [1, K]."""

    weight: Tensor  # [K]

    def __init__(self, build: BuildContext, hidden_size: int) -> None:
        super().__init__()
        self.build = build
        self.hidden_size = hidden_size
        self._kernel = build.select("add_gated", K=hidden_size)

    def add(self, part: Tensor, shared: Tensor, x: Tensor) -> Tensor:
        out: Tensor = self._kernel(part, shared, x, self.weight)
        return out

    def slots(self, path: str) -> Iterator[WeightSlot]:
        yield WeightSlot(f"{path}.weight", (1, self.hidden_size), self._take)

    def _take(self, tensor: CheckpointTensor) -> None:
        self.weight = self.build.dense(tensor.dense(ALL, ALL))[0]

    def finish(self) -> None:
        """Nothing to pack."""

    @property
    def weight_bytes(self) -> int:
        return self.weight.nbytes
