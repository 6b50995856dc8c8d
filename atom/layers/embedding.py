"""Token embedding and output head, the vocabulary shared out over ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from atom.layers.build import BuildContext, storage_name
from atom.layers.linear import pack_rows
from atom.layers.weights import CheckpointTensor, Layer, WeightSlot
from atom.ops.contracts import GGUFWeight, PackedLinear


class _VocabShare:
    """Rows [start, stop) of `size`; shares are equal but for the last, which may be short."""

    def __init__(self, build: BuildContext, size: int) -> None:
        self.per_rank = -(-size // build.parallel.tp_size)
        self.start = min(build.parallel.tp_rank * self.per_rank, size)
        self.stop = min(self.start + self.per_rank, size)


class VocabParallelEmbedding(Layer):
    """ids [T] int64 -> [T, K]. With `tied`, the output head packs the weight for both."""

    weight: Tensor | PackedLinear

    def __init__(self, build: BuildContext, vocab_size: int, size: int, tied: bool = False) -> None:
        super().__init__()
        self.build = build
        self.shape = (vocab_size, size)
        self.tied = tied
        self.shared = False  # the weight is the head's
        self.share = _VocabShare(build, vocab_size)
        self._sum = build.all_reduce()
        self.raw: Tensor | GGUFWeight | None = None

    def forward(self, ids: Tensor) -> Tensor:
        if self._sum is None:
            out: Tensor = self._lookup(ids, self.weight, self.build.dtype)
            return out
        share = self.share
        elsewhere = (ids < share.start) | (ids >= share.stop)
        local = (ids - share.start).masked_fill(elsewhere, 0)
        out = self._lookup(local, self.weight, self.build.dtype)
        return self._sum(out.masked_fill(elsewhere.unsqueeze(-1), 0))

    __call__ = forward

    def slots(self, path: str) -> Iterator[WeightSlot]:
        yield WeightSlot(f"{path}.weight", self.shape, self._take)

    def _take(self, tensor: CheckpointTensor) -> None:
        self.raw = tensor.read(slice(self.share.start, self.share.stop))

    def finish(self) -> None:
        if not self.tied:
            self.bind(None)

    def bind(self, head: PackedLinear | None) -> None:
        """Take the head's pack of the same weight, where the lookup can read it; else a copy."""
        assert self.raw is not None
        raw, self.raw = self.build.adopt(self.raw), None
        lookup, backend = self.build.choose(
            "embedding", weight_format=storage_name(raw), K=self.shape[1]
        )
        self._lookup = lookup
        own_packs = self.build.choose_linear(raw)[1] == backend  # the ones this lookup can read
        self.shared = head is not None and own_packs
        if head is not None and own_packs:
            self.weight = head
        elif isinstance(raw, Tensor):
            self.weight = raw
        else:
            self.weight = self.build.pack(raw) if own_packs else self.build.dense(raw)

    @property
    def weight_bytes(self) -> int:
        return 0 if self.shared else self.weight.nbytes


class ParallelLMHead(Layer):
    """hidden [L, K] -> logits [L, vocab_size] float32, the whole vocabulary on every rank."""

    packed: PackedLinear
    _wide_product: Callable[[Tensor], Tensor] | None

    def __init__(
        self,
        build: BuildContext,
        vocab_size: int,
        size: int,
        tied_to: VocabParallelEmbedding | None = None,
    ) -> None:
        super().__init__()
        self.build = build
        self.shape = (vocab_size, size)
        self.share = _VocabShare(build, vocab_size)
        self._tied_to = (tied_to,)  # in a tuple: the embedding is no submodule of the head
        self._raw: Tensor | GGUFWeight | None = None

    def forward(self, hidden: Tensor) -> Tensor:
        wide = self._wide_product
        logits = self.packed(hidden).float() if wide is None else wide(hidden)
        if self.build.parallel.tp_size == 1:
            return logits
        missing = self.share.per_rank - logits.shape[-1]
        if missing:
            logits = torch.nn.functional.pad(logits, (0, missing))
        return self.build.parallel.all_gather(logits)[..., : self.shape[0]]

    __call__ = forward

    def slots(self, path: str) -> Iterator[WeightSlot]:
        # A tied checkpoint may hold the copy all the same.
        yield WeightSlot(
            f"{path}.weight", self.shape, self._take, required=self._tied_to[0] is None
        )

    def _take(self, tensor: CheckpointTensor) -> None:
        self._raw = tensor.read(slice(self.share.start, self.share.stop))

    def finish(self) -> None:
        embedding = self._tied_to[0]
        raw = self._raw if embedding is None else embedding.raw
        assert raw is not None
        raw, self._raw = self.build.adopt(raw), None
        self.packed = pack_rows(self.build, [raw])
        # Where the kernel can write its sums as they are, they are not rounded on the way.
        self._wide_product = getattr(self.packed, "linear_f32", None)
        if embedding is not None:
            embedding.raw = raw
            embedding.bind(self.packed)

    @property
    def weight_bytes(self) -> int:
        return self.packed.nbytes
