"""Multi-head latent attention: projections to and from latents, and the mixer over their cache.

Formulas: DeepSeek-V2, arXiv 2405.04434, section 2.1, and `atom.ops.contracts_mla`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from atom.errors import ModelError
from atom.layers.build import BuildContext, dtype_name
from atom.layers.caches import FULL, CacheSpec
from atom.layers.linear import ColumnParallelLinear, LinearBase, Part, RowParallelLinear
from atom.layers.mixer import Mixer
from atom.layers.norm import RMSNorm
from atom.layers.rotary import RotaryEmbedding, rope_type
from atom.layers.rows import SampledRows
from atom.layers.weights import ALL, CheckpointTensor, WeightSlot, sibling
from atom.ops.contracts import AttentionMetadata

if TYPE_CHECKING:
    from atom.models.hf_config import HFConfig

# New tokens of one sequence from which op `mla_prefill` serves a step; by device.
CHUNK = {"cpu": 1, "cuda": 32}
LATENT_EPS = 1e-6  # of the norms of latents, in every published model, whatever `rms_norm_eps` says


class MLASizes(NamedTuple):
    """What a config says of the heads. `heads` are all the model's."""

    heads: int
    q_rank: int  # 0: queries are projected at once
    rank: int  # of the latents that are cached
    nope: int  # channels of a query or key that are not rotated
    rope: int
    value: int

    @classmethod
    def of(cls, config: HFConfig) -> MLASizes:
        q_rank = config.positive_int("q_lora_rank") if config.get("q_lora_rank") else 0
        return cls(
            config.positive_int("num_attention_heads"),
            q_rank,
            config.positive_int("kv_lora_rank"),
            config.positive_int("qk_nope_head_dim"),
            config.positive_int("qk_rope_head_dim"),
            config.positive_int("v_head_dim"),
        )

    @property
    def query(self) -> int:
        """Channels of a query head."""
        return self.nope + self.rope

    @property
    def latent(self) -> int:
        """Values that are cached per token."""
        return self.rank + self.rope


def softmax_scale(config: HFConfig, query: int) -> float:
    """query^-0.5, times the square of YaRN's `mscale_all_dim` correction where there is one."""
    scaling = config.rope_scaling
    all_dim = (scaling or {}).get("mscale_all_dim")
    scale: float = query**-0.5
    if scaling is None or not all_dim or rope_type(scaling) == "default":
        return scale
    factor = float(scaling["factor"])
    correction = 1.0 if factor <= 1 else 0.1 * float(all_dim) * math.log(factor) + 1.0
    return scale * correction * correction


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


class LatentAttention(nn.Module):
    """The attention block of a decoder layer: projections, norms, mixer, output projection.

    The products over the block's input are one: `q_a_proj` (or, without a query rank, the rank's
    `q_proj`) beside `kv_a_proj_with_mqa`, which every rank has whole.
    """

    def __init__(self, config: HFConfig, build: BuildContext) -> None:
        super().__init__()
        self.sizes = sizes = MLASizes.of(config)
        bias = bool(config.get("attention_bias", False))
        if bias and not sizes.q_rank:
            raise ModelError(
                f"{config.where}: attention_bias true needs a q_lora_rank, which is not given"
            )
        heads = build.parallel.shard(sizes.heads, "num_attention_heads")
        latent = Part("kv_a_proj_with_mqa", sizes.latent, ALL)
        if sizes.q_rank:
            query = Part("q_a_proj", sizes.q_rank, ALL)
            self.q_a_layernorm = RMSNorm(build, sizes.q_rank, LATENT_EPS)
            self.q_b_proj: LinearBase = ColumnParallelLinear(
                build, sizes.q_rank, sizes.heads * sizes.query
            )
            first = sizes.q_rank
        else:
            rows = slice(heads.start * sizes.query, heads.stop * sizes.query)
            query = Part("q_proj", sizes.heads * sizes.query, rows)
            first = rows.stop - rows.start
        self.qkv_a_proj = LinearBase(build, config.hidden_size, [query, latent], bias=bias)
        self.kv_a_layernorm = RMSNorm(build, sizes.rank, LATENT_EPS)
        rotary = RotaryEmbedding(
            build,
            sizes.rope,
            base=config.rope_theta,
            scaling=config.rope_scaling,
            interleaved=True,
            trained_length=config.max_position_embeddings,
        )
        self.attn = self.make_mixer(config, build, softmax_scale(config, sizes.query), rotary)
        self.o_proj = RowParallelLinear(build, sizes.heads * sizes.value, config.hidden_size, bias)
        self.rows: SampledRows | None = None  # of the last block only
        self._split: tuple[int, ...] = (first, sizes.latent)

    def make_mixer(
        self, config: HFConfig, build: BuildContext, scale: float, rotary: RotaryEmbedding
    ) -> MLA:
        """Called when the norms exist."""
        return MLA(build, self.sizes, scale=scale, rotary=rotary, norm=self.kv_a_layernorm)

    def inputs(
        self, norm: RMSNorm, x: Tensor, residual: Tensor | None
    ) -> tuple[list[Tensor], Tensor]:
        """(the mixer's inputs, the new residual)."""
        projected, residual = self.qkv_a_proj.after_norm(norm, x, residual)
        q, kv = projected.split_with_sizes(self._split, 1)
        if self.sizes.q_rank:
            q = self.q_b_proj(self.q_a_layernorm(q))
        return [q, kv], residual

    def forward(
        self, positions: Tensor, norm: RMSNorm, x: Tensor, residual: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        inputs, residual = self.inputs(norm, x, residual)
        out = self.attn(inputs, positions)
        if self.rows is not None:
            out, residual = self.rows(out, residual)
        return self.o_proj(out), residual

    __call__ = forward
