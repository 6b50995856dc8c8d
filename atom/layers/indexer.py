"""Sparse latent attention: an indexer scores all keys cheaply, attention reads the best of them.

Formulas: DeepSeek-V3.2-Exp's report, section 2.1, and `atom.ops.contracts_sparse`. The Hadamard
rotation and float8 of DeepSeek's own code change no product in exact arithmetic and are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from atom.layers.build import BuildContext
from atom.layers.caches import FULL, CacheSpec
from atom.layers.mla import MLA, MLASizes
from atom.layers.norm import RMSNorm
from atom.layers.rotary import RotaryEmbedding
from atom.layers.weights import CheckpointTensor, Layer, WeightSlot
from atom.ops.contracts import AttentionMetadata
from atom.ops.contracts_sparse import IndexNorm

NORM_EPS = 1e-6  # of the keys' layer norm, in every published model


class IndexSizes(NamedTuple):
    heads: int
    dim: int
    topk: int  # keys that a query attends to


class Indexer(Layer):
    """The layer norm of index keys, and the kernels. Its projections are parts of the block's, and
    its cache is the mixer's. Every rank has all index heads: they must agree on the keys."""

    def __init__(
        self, build: BuildContext, sizes: IndexSizes, rotary: RotaryEmbedding, interleaved: bool
    ) -> None:
        super().__init__()
        self.build = build
        self.sizes = sizes
        self._rotary = rotary
        self._interleaved = interleaved
        self._norm: dict[str, Tensor] = {}
        heads, dim, size = sizes.heads, sizes.dim, build.block_size
        self._write = build.select(
            "index_cache", opaque=True, Hi=heads, D=dim, R=rotary.size, bs=size
        )
        self._best = build.select("index_topk", opaque=True, Hi=heads, D=dim, k=sizes.topk, bs=size)

    def slots(self, path: str) -> Iterator[WeightSlot]:
        for leaf in ("weight", "bias"):
            name = f"{path}.k_norm.{leaf}"
            yield WeightSlot(name, (self.sizes.dim,), partial(self._take, leaf))

    def _take(self, leaf: str, tensor: CheckpointTensor) -> None:
        self._norm[leaf] = self.build.dense(tensor.read())

    def finish(self) -> None:
        table = self._rotary.cos_sin
        self.norm = IndexNorm(
            **self._norm, eps=NORM_EPS, cos_sin=table, interleaved=self._interleaved
        )

    @property
    def weight_bytes(self) -> int:
        return self.norm.weight.nbytes + self.norm.bias.nbytes

    def choose(
        self, inputs: list[Tensor], positions: Tensor, cache: Tensor, meta: AttentionMetadata
    ) -> Tensor | None:
        """inputs: q [T, Hi * Di], k [T, Di] and weights [T, Hi] as projected -> slots as of
        `index_topk`; None where every query sees all its keys. The step's keys are cached."""
        (q, k, weights), heads = inputs, None
        if meta.max_seq_len > self.sizes.topk:
            heads = q.view(-1, self.sizes.heads, self.sizes.dim)
        self._write(heads, k, self.norm, positions, cache, meta.slot_mapping)
        if heads is None:
            return None
        slots: Tensor = self._best(heads, weights, cache, meta, self.sizes.topk)
        return slots


class Choice:
    """What the last indexer of a step has chosen, for the layers that share it. One for a model: a
    choice of its own kept by each layer would be gigabytes."""

    slots: Tensor | None = None


class SparseMLA(MLA):
    """inputs: of `MLA`, then of its `indexer`: q, k and weights. Without an indexer, it sees the
    keys of `choice`."""

    index_cache: Tensor  # [B, block_size, Di] of the activations' dtype

    def __init__(
        self,
        build: BuildContext,
        sizes: MLASizes,
        indexer: Indexer | None,
        choice: Choice | None,
        *,
        scale: float,
        rotary: RotaryEmbedding,
        norm: RMSNorm,
    ) -> None:
        super().__init__(build, sizes, scale=scale, rotary=rotary, norm=norm, sparse=True)
        self._indexer = (indexer,)  # in a tuple: a submodule of the layer above
        self._choice = choice

    def cache_specs(self) -> tuple[CacheSpec, ...]:
        indexer = self._indexer[0]
        if indexer is None:
            return super().cache_specs()
        # Not in float8 as latents may be: keys are ranked by small differences.
        shape = (self.block_size, indexer.sizes.dim)
        return (*super().cache_specs(), CacheSpec("index_cache", FULL, shape, self.build.dtype))

    def run(
        self,
        inputs: list[Tensor],
        positions: Tensor,
        meta: AttentionMetadata,
        out: Tensor | None = None,
    ) -> Tensor:
        q, kv, *index = inputs
        indexer, choice = self._indexer[0], self._choice
        if indexer is not None:
            chosen = indexer.choose(index, positions, self.index_cache, meta)
            if choice is not None:
                choice.slots = chosen
        else:
            assert choice is not None
            chosen = choice.slots
        return self.attend(q, kv, positions, meta, chosen=chosen, out=out)

    def facts(self) -> dict[str, Any]:
        indexer = self._indexer[0]
        facts = {**super().facts(), "kind": "sparse_mla", "shares_choice": indexer is None}
        if indexer is not None:
            heads, dim, topk = indexer.sizes
            facts |= {"index_heads": heads, "index_head_dim": dim, "top_k": topk}
        return facts
