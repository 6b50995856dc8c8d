"""RMS norms over all query heads at once, and over all key heads, as MiniMax-M2 has them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from atom.layers.build import BuildContext
from atom.layers.weights import CheckpointTensor, Layer, WeightSlot, sibling


class ProjectionNorm(Layer):
    """qkv [T, (Hq + 2 Hk) D] of the rank -> the same with q and k normed.

    The mean of the squares is over the heads of all ranks: each sends its two sums per token. Reads
    `q_norm.weight` [Hq D] and `k_norm.weight` [Hk D] beside itself.
    """

    weight: Tensor  # [(Hq + Hk) D] of the rank, float32: q's and k's

    def __init__(
        self, build: BuildContext, num_heads: int, num_kv_heads: int, head_dim: int, eps: float
    ) -> None:
        super().__init__()
        self.build = build
        self.eps = eps
        parallel = build.parallel
        shares = (
            parallel.shard(num_heads, "num_attention_heads"),
            parallel.shard_heads(num_kv_heads),
        )
        self.rows = [slice(s.start * head_dim, s.stop * head_dim) for s in shares]
        self.whole = (num_heads * head_dim, num_kv_heads * head_dim)
        q, k = (rows.stop - rows.start for rows in self.rows)
        self._sizes = (q, k)
        # A key head that several ranks hold is in the sum, and in the count, several times.
        self._counts = (float(self.whole[0]), float(k * parallel.tp_size))
        sizes = {"q": q, "k": k}
        self._norm = build.select("projection_norm", **sizes)
        self._sums = build.select("projection_sums", **sizes)
        self._sum = build.all_reduce()
        self._parts: list[Tensor | None] = [None, None]

    def forward(self, qkv: Tensor) -> Tensor:
        sums = None if self._sum is None else self._sum(self._sums(qkv, *self._sizes))
        out: Tensor = self._norm(qkv, *self._sizes, self.weight, self.eps, sums, self._counts)
        return out

    __call__ = forward

    def slots(self, path: str) -> Iterator[WeightSlot]:
        for index, name in enumerate(("q_norm.weight", "k_norm.weight")):
            load = partial(self._take, index)
            yield WeightSlot(sibling(path, name), (self.whole[index],), load)

    def _take(self, index: int, tensor: CheckpointTensor) -> None:
        part = tensor.dense(self.rows[index])
        self._parts[index] = part.to(self.build.device, torch.float32)

    def finish(self) -> None:
        self.weight = torch.cat([part for part in self._parts if part is not None])
        self._parts = [None, None]

    @property
    def weight_bytes(self) -> int:
        return self.weight.nbytes
