"""Mixtral: Mistral's attention over a mixture of experts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atom.layers.build import BuildContext
from atom.layers.moe import FusedMoE, SparseMoE
from atom.models.common import CausalLM, DecoderLayer, SelfAttention, layer_window
from atom.ops.contracts import Routing

if TYPE_CHECKING:
    from atom.models.hf_config import HFConfig


class MixtralForCausalLM(CausalLM):
    weight_map = (
        (".block_sparse_moe.", ".mlp."),
        (".w1.weight", ".gate_proj.weight"),
        (".w3.weight", ".up_proj.weight"),
        (".w2.weight", ".down_proj.weight"),
    )

    def make_layer(self, config: HFConfig, build: BuildContext, index: int) -> DecoderLayer:
        experts = FusedMoE(
            build,
            hidden_size=config.hidden_size,
            intermediate_size=config.positive_int("intermediate_size"),
            num_experts=config.positive_int("num_local_experts"),
            top_k=config.positive_int("num_experts_per_tok"),
            routing=Routing(renormalize=True),
        )
        attn = SelfAttention(config, build, window=layer_window(config, index))
        return DecoderLayer(config, build, attn, SparseMoE(build, experts))
