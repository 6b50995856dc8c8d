"""DeepSeek V4's attention with its caches: recent keys, what entries are made of, and entries."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from atom.layers.build import BuildContext, dtype_name
from atom.layers.caches import FULL, WINDOW, CacheSpec
from atom.layers.mixer import Mixer
from atom.layers.norm import RMSNorm
from atom.layers.weights import CheckpointTensor, Layer, WeightSlot, sibling
from atom.ops import contracts_v4
from atom.ops.contracts import AttentionMetadata

# A ring holds so many times the tokens that an entry is made of, or a block's: some tokens may be
# taken back (drafts) without that what they overwrote is missed.
RING_SPANS = 2


class Compressor(Layer):
    """The weights that make entries of tokens; their projections are the attention block's."""

    params: contracts_v4.Compressor

    def __init__(
        self,
        build: BuildContext,
        head_dim: int,
        ratio: int,
        overlap: bool,
        eps: float,
        cos_sin: Tensor,
    ) -> None:
        super().__init__()
        self.build = build
        self.head_dim, self.ratio, self.overlap, self.eps = head_dim, ratio, overlap, eps
        self.width = 2 * head_dim if overlap else head_dim  # of values, and of gates
        self._cos_sin = cos_sin
        self._loaded: dict[str, Tensor] = {}

    @property
    def span(self) -> int:
        """Tokens that make an entry."""
        return self.ratio * (2 if self.overlap else 1)

    def ring_rows(self, block_size: int) -> int:
        """Tokens of a block whose values and gates are kept."""
        return min(block_size, RING_SPANS * self.span)

    def slots(self, path: str) -> Iterator[WeightSlot]:
        yield WeightSlot(f"{path}.ape", (self.ratio, self.width), partial(self._take, "bias"))
        yield WeightSlot(f"{path}.norm.weight", (self.head_dim,), partial(self._take, "norm"))

    def _take(self, what: str, tensor: CheckpointTensor) -> None:
        value = tensor.dense(*(slice(None),) * len(tensor.shape))
        dtype = torch.float32 if what == "bias" else self.build.dtype
        self._loaded[what] = value.to(self.build.device, dtype)

    def finish(self) -> None:
        self.params = contracts_v4.Compressor(
            ratio=self.ratio,
            overlap=self.overlap,
            bias=self._loaded.pop("bias"),
            norm=self._loaded.pop("norm"),
            eps=self.eps,
            cos_sin=self._cos_sin,
        )

    @property
    def weight_bytes(self) -> int:
        return self.params.bias.nbytes + self.params.norm.nbytes


class V4Mixer(Mixer):
    """[q [T, Hq D], kv [T, D]], as projected -> [T, Hq D], heads the rank's own.

    With a `compressor`, inputs go on with its values and gates [T, 2 W]; with an `indexer`, too,
    with its queries [T, Hi Di], their weights [T, Hi] and its own values and gates.
    """

    cache: Tensor  # [Bw, bs, D] of kv_dtype: keys of the window
    ring: Tensor  # [Bw, rows, 2 W]: what entries are made of
    entries: Tensor  # [B, bs // r, D] of kv_dtype
    index_ring: Tensor
    index_keys: Tensor
    sinks: Tensor  # [Hq] float32

    def __init__(
        self,
        build: BuildContext,
        *,
        total_heads: int,
        head_dim: int,
        window: int,
        cos_sin: Tensor,
        norm: RMSNorm,
        compressor: Compressor | None = None,
        indexer: Compressor | None = None,
        index_topk: int = 0,
    ) -> None:
        self.share = build.parallel.shard(total_heads, "num_attention_heads")
        self.num_heads: int = self.share.stop - self.share.start
        super().__init__(build, self.num_heads * head_dim)
        self.build = build
        self.total_heads, self.head_dim, self.window = total_heads, head_dim, window
        self.index_topk = index_topk
        self._cos_sin = cos_sin
        # In tuples: submodules of the layer above.
        self._norm = (norm,)
        self._compressor = (compressor,)
        self._indexer = (indexer,)
        self._select(build)

    def _select(self, build: BuildContext) -> None:
        compressor, indexer = self._compressor[0], self._indexer[0]
        ratio = 0 if compressor is None else compressor.ratio
        rotated = self._cos_sin.shape[1]
        choose = partial(
            build.select, kv=True, opaque=True, R=rotated, bs=build.block_size, ratio=ratio
        )
        heads, dim, best = self.num_heads, self.head_dim, self.index_topk
        self._write = choose("v4_write", Hq=heads, D=dim)
        self._attend = choose("v4_attention", Hq=heads, D=dim, window=self.window, k=best)
        if compressor is not None:
            self._compress = choose("v4_compress", D=dim)
        if indexer is not None:
            self._choose = choose("v4_choose", D=indexer.head_dim, k=best)
            self._compress_index = choose("v4_compress", D=indexer.head_dim)

    def slots(self, path: str) -> Iterator[WeightSlot]:
        yield WeightSlot(sibling(path, "attn_sink"), (self.total_heads,), self._take)

    def _take(self, tensor: CheckpointTensor) -> None:
        self.sinks = tensor.dense(self.share).to(self.build.device, torch.float32)

    @property
    def weight_bytes(self) -> int:
        return self.sinks.nbytes

    def cache_specs(self) -> tuple[CacheSpec, ...]:
        size, build = self.block_size, self.build
        shape = (size, self.head_dim)
        specs = [CacheSpec("cache", WINDOW, shape, build.kv_dtype, self.window)]
        for made, ring, entries in (
            (self._compressor[0], "ring", "entries"),
            (self._indexer[0], "index_ring", "index_keys"),
        ):
            if made is None:
                continue
            assert size % made.ratio == 0, "block_multiple of the model"
            shape = (made.ring_rows(size), 2 * made.width)
            specs.append(CacheSpec(ring, WINDOW, shape, build.dtype, made.span))
            shape = (size // made.ratio, made.head_dim)
            specs.append(CacheSpec(entries, FULL, shape, build.kv_dtype))
        return tuple(specs)

    def facts(self) -> dict[str, Any]:
        compressor, indexer = self._compressor[0], self._indexer[0]
        kind = "v4_window" if compressor is None else "v4_hca" if indexer is None else "v4_csa"
        return {
            "kind": kind,
            "num_heads": self.num_heads,
            "head_dim": self.head_dim,
            "window": self.window,
            "ratio": 0 if compressor is None else compressor.ratio,
            "top_k": self.index_topk,
            "index_dim": 0 if indexer is None else indexer.head_dim,
            "kv_dtype": dtype_name(self.build.kv_dtype),
        }

    def run(
        self,
        inputs: list[Tensor],
        positions: Tensor,
        meta: AttentionMetadata,
        out: Tensor | None = None,
    ) -> Tensor:
        assert meta.window is not None, "a model with window caches"
        norm, compressor, indexer = self._norm[0], self._compressor[0], self._indexer[0]
        q = self._write(
            inputs[0].view(-1, self.num_heads, self.head_dim),
            inputs[1],
            norm.weight,
            norm.eps,
            positions,
            self._cos_sin,
            self.cache,
            meta.window.slot_mapping,
        )
        entries = chosen = None
        if compressor is not None:
            entries = self.entries
            self._compress(inputs[2], compressor.params, self.ring, entries, meta)
        if indexer is not None:
            chosen = self._select_entries(inputs[3:], positions, indexer, meta)
        result: Tensor = self._attend(
            q,
            self.cache,
            entries,
            chosen,
            positions,
            self._cos_sin,
            meta,
            self.window,
            0 if compressor is None else compressor.ratio,
            self.sinks,
        )
        flat = result.view(len(result), self.width)
        return flat if out is None else out.copy_(flat)

    def _select_entries(
        self,
        inputs: list[Tensor],
        positions: Tensor,
        indexer: Compressor,
        meta: AttentionMetadata,
    ) -> Tensor | None:
        """Which entries each token sees, [T, k] int32; None for all, where no sequence has more
        than k."""
        q, weights, pair = inputs
        self._compress_index(pair, indexer.params, self.index_ring, self.index_keys, meta)
        if meta.max_seq_len // indexer.ratio <= self.index_topk:
            return None
        chosen: Tensor = self._choose(
            q.view(len(q), -1, indexer.head_dim),
            weights,
            self.index_keys,
            positions,
            self._cos_sin,
            meta,
            indexer.ratio,
            self.index_topk,
        )
        return chosen
