"""The attention block over latents: projections, norms, mixer, output projection.

Formulas: DeepSeek-V2, arXiv 2405.04434, section 2.1.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import Tensor, nn

from atom.errors import ModelError
from atom.layers.build import BuildContext
from atom.layers.linear import ColumnParallelLinear, LinearBase, Part, RowParallelLinear
from atom.layers.mla import MLA, MLASizes
from atom.layers.norm import RMSNorm
from atom.layers.rotary import RotaryEmbedding, rope_type
from atom.layers.rows import SampledRows
from atom.layers.weights import ALL

if TYPE_CHECKING:
    from atom.models.hf_config import HFConfig

LATENT_EPS = 1e-6  # of the norms of latents, in every published model, whatever `rms_norm_eps` says


def mla_sizes(config: HFConfig) -> MLASizes:
    q_rank = config.positive_int("q_lora_rank") if config.get("q_lora_rank") else 0
    return MLASizes(
        config.positive_int("num_attention_heads"),
        q_rank,
        config.positive_int("kv_lora_rank"),
        config.positive_int("qk_nope_head_dim"),
        config.positive_int("qk_rope_head_dim"),
        config.positive_int("v_head_dim"),
    )


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


class LatentAttention(nn.Module):
    """The attention block of a decoder layer: projections, norms, mixer, output projection.

    The products over the block's input are one: `q_a_proj` (or, without a query rank, the rank's
    `q_proj`) beside `kv_a_proj_with_mqa`, which every rank has whole.
    """

    def __init__(self, config: HFConfig, build: BuildContext) -> None:
        super().__init__()
        self.sizes = sizes = mla_sizes(config)
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
