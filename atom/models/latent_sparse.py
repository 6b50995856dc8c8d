"""The attention block with an indexer, and the one that takes another block's choice."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from atom.errors import ModelError
from atom.layers.build import BuildContext
from atom.layers.indexer import Choice, Indexer, IndexSizes, SparseMLA
from atom.layers.linear import LinearBase, Part
from atom.layers.norm import RMSNorm
from atom.layers.rotary import RotaryEmbedding
from atom.layers.weights import ALL
from atom.models.latent import LatentAttention

if TYPE_CHECKING:
    from atom.models.hf_config import HFConfig


def index_sizes(config: HFConfig) -> IndexSizes:
    sizes = IndexSizes(
        *(config.positive_int(f"index_{n}") for n in ("n_heads", "head_dim", "topk"))
    )
    rope = config.positive_int("qk_rope_head_dim")
    if sizes.dim < rope:
        raise ModelError(
            f"{config.where}: index_head_dim {sizes.dim} is less than the {rope} channels that "
            "are rotated (qk_rope_head_dim)"
        )
    return sizes


class IndexedAttention(LatentAttention):
    """The attention block with an indexer or, `shared`, one that takes the choice of the last one.

    `choice` is the model's, None where no block shares. The indexer's products are parts of the
    block's: over its input, keys and head weights beside the latents; over the normed query
    latent, index queries beside the rank's queries.
    """

    attn: SparseMLA

    def __init__(
        self,
        config: HFConfig,
        build: BuildContext,
        *,
        interleaved: bool,
        shared: bool = False,
        choice: Choice | None = None,
    ) -> None:
        if config.get("attention_bias", False) or not config.get("q_lora_rank"):
            raise ModelError(
                f"{config.where}: attention with an indexer needs a q_lora_rank, and no "
                "attention_bias"
            )
        # What `make_mixer` needs, which is called before anything can be registered here.
        self._interleaved = interleaved
        self._shared = shared
        self._choice = choice
        super().__init__(config, build)
        if not shared:
            self._add_products(config, build)

    def _add_products(self, config: HFConfig, build: BuildContext) -> None:
        sizes, own = index_sizes(config), self.sizes
        keys = Part("indexer.wk", sizes.dim, ALL)
        weights = Part("indexer.weights_proj", sizes.heads, ALL)
        parts = [*self.qkv_a_proj.parts, keys, weights]
        self.qkv_a_proj = LinearBase(build, config.hidden_size, parts)
        queries = Part("indexer.wq_b", sizes.heads * sizes.dim, ALL)
        self.q_b_proj = LinearBase(build, own.q_rank, [*self.q_b_proj.parts, queries])
        self._split = (own.q_rank, own.latent, sizes.dim, sizes.heads)
        self._split_q = (self.attn.num_heads * own.query, sizes.heads * sizes.dim)

    def make_mixer(
        self, config: HFConfig, build: BuildContext, scale: float, rotary: RotaryEmbedding
    ) -> SparseMLA:
        indexer, choice = None, self._choice
        if not self._shared:
            indexer = Indexer(build, index_sizes(config), rotary, self._interleaved)
            self.indexer = indexer
        norm = self.kv_a_layernorm
        return SparseMLA(build, self.sizes, indexer, choice, scale=scale, rotary=rotary, norm=norm)

    def inputs(
        self, norm: RMSNorm, x: Tensor, residual: Tensor | None
    ) -> tuple[list[Tensor], Tensor]:
        if self._shared:
            return super().inputs(norm, x, residual)
        projected, residual = self.qkv_a_proj.after_norm(norm, x, residual)
        q, kv, keys, weights = projected.split_with_sizes(self._split, 1)
        both = self.q_b_proj(self.q_a_layernorm(q))
        q, queries = both.split_with_sizes(self._split_q, 1)
        return [q, kv, queries, keys, weights], residual
