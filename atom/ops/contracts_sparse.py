"""Operations of sparse attention: an indexer ranks the keys, attention reads the best of them.

As in `atom.ops.contracts`; Hi index heads of size Di, and k keys that a query attends to. Chosen
keys are named by slot (`block_id * block_size + offset`), as all caches of a block table share
slots: who attends needs no metadata, and layers may share a choice.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from torch import Tensor

from atom.ops.contracts import AttentionMetadata


class IndexNorm(NamedTuple):
    """The layer norm of index keys, and the rotation of their first channels and the queries'."""

    weight: Tensor  # [Di]
    bias: Tensor  # [Di]
    eps: float
    cos_sin: Tensor  # as of op `rotary`
    interleaved: bool


class IndexCache(Protocol):
    """op `index_cache`. k [T, Di] is normed (layer norm, float32 inside), rotated by `positions`
    [T] int64 and written to `cache` [B, bs, Di] at `slot_mapping` [T]; slots < 0 are skipped.
    q [T, Hi, Di], if given, is rotated in place."""

    def __call__(
        self,
        q: Tensor | None,
        k: Tensor,
        norm: IndexNorm,
        positions: Tensor,
        cache: Tensor,
        slot_mapping: Tensor,
    ) -> None: ...


class IndexTopk(Protocol):
    """op `index_topk`. The k best keys of every query, by sum_h weights[t, h] * relu(q[t, h] . key)
    in float32: positive factors change no order, and are left out.

    q [T, Hi, Di], weights [T, Hi], cache [B, bs, Di] -> slots [T, k] int32 in ascending order of
    position. A query sees keys up to its own position; if they are no more than k, it gets them
    all, and -1 after them. Of equal scores the lower position wins. A zero is positive. Rows of
    padding tokens: -1.
    """

    def __call__(
        self, q: Tensor, weights: Tensor, cache: Tensor, meta: AttentionMetadata, k: int
    ) -> Tensor: ...


class SparseMLA(Protocol):
    """op `sparse_mla`. As `mla_attention` of `atom.ops.contracts_mla`, but over the keys at `slots`
    [T, k] int32, those >= 0 first: -> [T, H, R]. A row without any gives zeros."""

    def __call__(
        self, q_latent: Tensor, q_rope: Tensor, cache: Tensor, slots: Tensor, scale: float
    ) -> Tensor: ...


SPARSE_OPS: dict[str, Any] = {
    "index_cache": IndexCache,
    "index_topk": IndexTopk,
    "sparse_mla": SparseMLA,
}
