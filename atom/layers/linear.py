"""Linear layers, whole or shared out over tensor-parallel ranks.

All are one class with two facts: the parts of the output (each a checkpoint tensor, of which
the rank holds some rows) and the columns of the input that the rank holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from atom.layers.activation import SiluAndMul
from atom.layers.build import BuildContext, storage_name
from atom.layers.norm import RMSNorm
from atom.layers.weights import ALL, CheckpointTensor, Layer, WeightSlot, sibling
from atom.ops.contracts import FusedLinear, GGUFWeight, PackedLinear


class Part(NamedTuple):
    """One checkpoint tensor of a fused layer."""

    name: str  # beside the layer, e.g. "q_proj"; empty: the layer's own name
    size: int  # rows of the whole tensor
    rows: slice  # the rank's


class ConcatLinear:
    """Several packed weights over one input, outputs side by side: parts of unequal formats."""

    __slots__ = ("in_features", "out_features", "pieces")

    def __init__(self, pieces: Sequence[PackedLinear]) -> None:
        self.pieces = tuple(pieces)
        self.in_features = pieces[0].in_features
        self.out_features = sum(piece.out_features for piece in pieces)

    @property
    def nbytes(self) -> int:
        return sum(piece.nbytes for piece in self.pieces)

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        out = torch.cat([piece(x) for piece in self.pieces], dim=-1)
        return out if bias is None else out.add_(bias)

    def dequantize(self) -> Tensor:
        return torch.cat([piece.dequantize() for piece in self.pieces])


def _stack_bytes(blocks: list[Tensor]) -> Tensor:
    """Rows of uint8 under each other. By numpy on CPU: torch would wake its threads for each of
    many small copies, which on a busy machine takes seconds."""
    if blocks[0].device.type != "cpu":
        return torch.cat(blocks)
    return torch.from_numpy(np.concatenate([block.numpy() for block in blocks]))


def _join(weights: Sequence[Tensor | GGUFWeight]) -> Tensor | GGUFWeight:
    """Rows of weights stored alike, as one; a lone weight is not copied."""
    first = weights[0]
    if len(weights) == 1:
        return first
    if isinstance(first, GGUFWeight):
        data = _stack_bytes([w.data for w in weights if isinstance(w, GGUFWeight)])
        return GGUFWeight(first.qtype, data, (len(data), first.shape[1]))
    return torch.cat([w for w in weights if isinstance(w, Tensor)])


def pack_rows(build: BuildContext, weights: Sequence[Tensor | GGUFWeight]) -> PackedLinear:
    """One linear from the rows of all `weights`; neighbours of one format share a pack."""
    ready = [build.prepare(weight) for weight in weights]
    pieces = [build.pack(_join(list(same))) for _, same in groupby(ready, storage_name)]
    return pieces[0] if len(pieces) == 1 else ConcatLinear(pieces)


class LinearBase(Layer):
    """x [T, K of the rank] -> [T, N of the rank]."""

    packed: Callable[[Tensor, Tensor | None], Tensor]
    bias: Tensor | None

    def __init__(
        self,
        build: BuildContext,
        in_features: int,
        parts: Sequence[Part],
        *,
        bias: bool = False,
        cols: slice = ALL,
    ) -> None:
        super().__init__()
        self.build = build
        self.in_features = in_features
        self.parts = tuple(parts)
        self.cols = cols
        self.has_bias = bias
        self.bias = None
        self._fused: FusedLinear | None = None
        self._raw: dict[tuple[str, int], Tensor | GGUFWeight] = {}

    def forward(self, x: Tensor) -> Tensor:
        return self.packed(x, self.bias)

    # Modules here have no hooks: nn.Module's own dispatch would cost a microsecond per call.
    __call__ = forward

    def after_norm(
        self, norm: RMSNorm, x: Tensor, residual: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """(self(norm(r)), r) of the new residual r = x + residual; without one, r is x."""
        if self._fused is not None:
            return self._fused.norm_linear(x, residual, norm.weight, norm.eps, self.bias)
        x, residual = norm.enter(x, residual)
        return self.packed(x, self.bias), residual

    def slots(self, path: str) -> Iterator[WeightSlot]:
        for index, part in enumerate(self.parts):
            name = sibling(path, part.name)
            weight = (part.size, self.in_features)
            yield WeightSlot(f"{name}.weight", weight, partial(self._take, "weight", index))
            if self.has_bias:
                yield WeightSlot(f"{name}.bias", (part.size,), partial(self._take, "bias", index))

    def _take(self, leaf: str, index: int, tensor: CheckpointTensor) -> None:
        cols = self.cols if leaf == "weight" else ALL
        self._raw[leaf, index] = tensor.read(self.parts[index].rows, cols)

    def finish(self) -> None:
        count = range(len(self.parts))
        self.packed = pack_rows(self.build, [self._raw["weight", i] for i in count])
        if self.has_bias:
            self.bias = torch.cat([self.build.dense(self._raw["bias", i]) for i in count])
        self._raw.clear()
        if hasattr(self.packed, "norm_linear"):
            self._fused = cast(FusedLinear, self.packed)

    @property
    def weight(self) -> PackedLinear:
        """The packed weight, as an object."""
        packed: PackedLinear = self.packed  # type: ignore[assignment]
        return packed

    @property
    def weight_bytes(self) -> int:
        return self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)


class ReplicatedLinear(LinearBase):
    """The same whole weight on every rank."""

    def __init__(
        self, build: BuildContext, in_features: int, out_features: int, bias: bool = False
    ):
        super().__init__(build, in_features, [Part("", out_features, ALL)], bias=bias)


class MergedColumnParallelLinear(LinearBase):
    """Several weights over one input, each shared out by rows, e.g. gate and up."""

    def __init__(
        self, build: BuildContext, in_features: int, sizes: dict[str, int], bias: bool = False
    ) -> None:
        shard = build.parallel.shard
        parts = [Part(name, size, shard(size, f"{name}'s rows")) for name, size in sizes.items()]
        super().__init__(build, in_features, parts, bias=bias)

    def after_norm_gated(
        self, norm: RMSNorm, act: SiluAndMul, x: Tensor, residual: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """As `after_norm`, for gate and up rows: act(self(norm(r))), r."""
        if self._fused is not None:
            return self._fused.norm_gated(x, residual, norm.weight, norm.eps, self.bias)
        hidden, residual = self.after_norm(norm, x, residual)
        return act(hidden), residual


class ColumnParallelLinear(MergedColumnParallelLinear):
    """One weight shared out by rows: each rank computes a part of the output."""

    def __init__(
        self, build: BuildContext, in_features: int, out_features: int, bias: bool = False
    ):
        super().__init__(build, in_features, {"": out_features}, bias)


class QKVParallelLinear(LinearBase):
    """q, k and v in one product. Heads are shared out; too few KV heads are copied.

    Output rows: `num_heads` query heads, then `num_kv_heads` key heads, then as many of values.
    """

    def __init__(
        self,
        build: BuildContext,
        in_features: int,
        head_dim: int,
        num_heads: int,
        num_kv_heads: int,
        bias: bool = False,
    ) -> None:
        q = build.parallel.shard(num_heads, "num_attention_heads")
        kv = build.parallel.shard_heads(num_kv_heads)
        self_rows, kv_rows = (slice(s.start * head_dim, s.stop * head_dim) for s in (q, kv))
        kv_size = num_kv_heads * head_dim
        parts = [
            Part("q_proj", num_heads * head_dim, self_rows),
            Part("k_proj", kv_size, kv_rows),
            Part("v_proj", kv_size, kv_rows),
        ]
        super().__init__(build, in_features, parts, bias=bias)
        self.num_heads = q.stop - q.start
        self.num_kv_heads = kv.stop - kv.start


class RowParallelLinear(LinearBase):
    """A weight shared out by columns: partial products are summed over the ranks, here or, without
    `reduce`, by who called."""

    def __init__(
        self,
        build: BuildContext,
        in_features: int,
        out_features: int,
        bias: bool = False,
        reduce: bool = True,
    ) -> None:
        cols = build.parallel.shard(in_features, "the input size of a row-parallel linear")
        super().__init__(build, in_features, [Part("", out_features, ALL)], bias=bias, cols=cols)
        self._sum = build.all_reduce() if reduce else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.packed(x, self.bias)
        return out if self._sum is None else self._sum(out)

    __call__ = forward

    def finish(self) -> None:
        super().finish()
        if self.build.parallel.tp_rank > 0:
            self.bias = None  # it is added once, by rank 0
