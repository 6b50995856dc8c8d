"""Multi-head latent attention: the mixer over a cache of latents.

Formulas: DeepSeek-V2, arXiv 2405.04434, section 2.1, and `atom.ops.contracts_mla`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from atom.layers.build import BuildContext, dtype_name
from atom.layers.caches import FULL, CacheSpec
from atom.layers.mixer import Mixer
from atom.layers.norm import RMSNorm
from atom.layers.rotary import RotaryEmbedding
from atom.layers.weights import ALL, CheckpointTensor, WeightSlot, sibling
from atom.ops.contracts import AttentionMetadata

# New tokens of one sequence from which op `mla_prefill` serves a step; by device.
CHUNK = {"cpu": 1, "cuda": 32}


class MLASizes(NamedTuple):
    """Of the heads. `heads` are all the model's."""

    heads: int
    q_rank: int  # 0: queries are projected at once
    rank: int  # of the latents that are cached
    nope: int  # channels of a query or key that are not rotated
    rope: int
    value: int

    @property
    def query(self) -> int:
        """Channels of a query head."""
        return self.nope + self.rope

    @property
    def latent(self) -> int:
        """Values that are cached per token."""
        return self.rank + self.rope


class MLA(Mixer):
    """inputs: q [T, H * (N + P)] and kv [T, R + P] as projected -> [T, H * V] of the rank's heads.

    Owns the checkpoint's `kv_b_proj`, as W_uk and W_uv per head. `sparse`: a subclass may say in
    `run` which keys each token sees, as `attend`'s `chosen`.
    """

    latent_cache: Tensor  # [B, block_size, R + P] of kv_dtype
    w_uk: Tensor  # [H, N, R]: keys of a latent; a query times it is a query of latents
    w_uv: Tensor  # [H, R, V]

    def __init__(
        self,
        build: BuildContext,
        sizes: MLASizes,
        *,
        scale: float,
        rotary: RotaryEmbedding,
        norm: RMSNorm,
        sparse: bool = False,
    ) -> None:
        share = build.parallel.shard(sizes.heads, "num_attention_heads")
        heads = share.stop - share.start
        super().__init__(build, heads * sizes.value)
        self.build = build
        self.sizes = sizes
        self.num_heads = heads
        self.scale = scale
        self.kv_dtype: torch.dtype = build.kv_dtype
        self._share = share
        self._cos_sin = rotary.cos_sin
        self._norm = (norm,)  # in a tuple: a submodule of the layer above
        shape = {"H": heads, "R": sizes.rank, "P": sizes.rope, "bs": build.block_size}
        self._write = build.select("mla_cache", kv=True, opaque=True, **shape)
        self._attend = build.select("mla_attention", kv=True, opaque=True, **shape)
        self._prefill = build.fused("mla_prefill", kv=True, opaque=True, **shape)
        self._chunk = CHUNK[build.device.type]
        if sparse:
            self._attend_chosen = build.select("sparse_mla", kv=True, opaque=True, **shape)

    def slots(self, path: str) -> Iterator[WeightSlot]:
        sizes = self.sizes
        shape = (sizes.heads * (sizes.nope + sizes.value), sizes.rank)
        yield WeightSlot(sibling(path, "kv_b_proj.weight"), shape, self._take)

    def _take(self, tensor: CheckpointTensor) -> None:
        """Rows of a head: N of its keys, then V of its values."""
        sizes = self.sizes
        each = sizes.nope + sizes.value
        rows = slice(self._share.start * each, self._share.stop * each)
        whole = self.build.dense(tensor.read(rows, ALL)).view(self.num_heads, each, sizes.rank)
        self.w_uk = whole[:, : sizes.nope].contiguous()
        self.w_uv = whole[:, sizes.nope :].transpose(1, 2).contiguous()

    @property
    def weight_bytes(self) -> int:
        return self.w_uk.nbytes + self.w_uv.nbytes

    def cache_specs(self) -> tuple[CacheSpec, ...]:
        shape = (self.block_size, self.sizes.latent)
        return (CacheSpec("latent_cache", FULL, shape, self.kv_dtype),)

    def facts(self) -> dict[str, Any]:
        sizes = self.sizes
        return {
            "kind": "mla",
            "num_heads": self.num_heads,
            "latent_size": sizes.rank,
            "rope_size": sizes.rope,
            "nope_size": sizes.nope,
            "value_size": sizes.value,
            "kv_dtype": dtype_name(self.kv_dtype),
            "weight_bytes": self.weight_bytes,
        }

    def run(
        self,
        inputs: list[Tensor],
        positions: Tensor,
        meta: AttentionMetadata,
        out: Tensor | None = None,
    ) -> Tensor:
        q, kv = inputs
        return self.attend(q, kv, positions, meta, out=out)

    def attend(
        self,
        q: Tensor,
        kv: Tensor,
        positions: Tensor,
        meta: AttentionMetadata,
        *,
        chosen: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """Attention itself; with `chosen` [T, k] int32 over the keys in these slots only, as of op
        `sparse_mla`."""
        sizes = self.sizes
        heads = q.view(-1, self.num_heads, sizes.query)
        q_rope = heads[..., sizes.nope :]
        norm = self._norm[0]
        self._write(
            q_rope,
            kv,
            positions,
            norm.weight,
            norm.eps,
            self._cos_sin,
            self.latent_cache,
            meta.slot_mapping,
        )
        if out is None:
            out = q.new_empty(q.shape[0], self.width)
        by_head = out.view(-1, self.num_heads, sizes.value)
        cache, scale = self.latent_cache, self.scale
        if chosen is None and self._prefill is not None and meta.max_query_len >= self._chunk:
            self._prefill(heads, kv, cache, self.w_uk, self.w_uv, meta, scale, by_head)
            return out
        q_latent = torch.bmm(heads[..., : sizes.nope].transpose(0, 1), self.w_uk).transpose(0, 1)
        if chosen is None:
            mixed = self._attend(q_latent, q_rope, cache, meta, scale)
        else:
            mixed = self._attend_chosen(q_latent, q_rope, cache, chosen, scale)
        torch.bmm(mixed.transpose(0, 1), self.w_uv, out=by_head.transpose(0, 1))
        return out
