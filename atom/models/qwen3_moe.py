"""Qwen3-MoE: Qwen3's attention over a mixture of experts; some layers may stay dense."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from atom.layers.build import BuildContext
from atom.layers.moe import FusedMoE, SparseMoE
from atom.models.common import CausalLM, DecoderLayer, GatedMLP
from atom.models.qwen3 import qwen3_attention
from atom.ops.contracts import Routing

if TYPE_CHECKING:
    from atom.models.hf_config import HFConfig


class Qwen3MoeForCausalLM(CausalLM):
    def make_layer(self, config: HFConfig, build: BuildContext, index: int) -> DecoderLayer:
        attn = qwen3_attention(config, build, index)
        return DecoderLayer(config, build, attn, self._mlp(config, build, index))

    def _mlp(self, config: HFConfig, build: BuildContext, index: int) -> nn.Module:
        dense = index in (config.get("mlp_only_layers") or ())
        if dense or (index + 1) % config.get("decoder_sparse_step", 1):
            return GatedMLP(config, build, config.positive_int("intermediate_size"))
        experts = FusedMoE(
            build,
            hidden_size=config.hidden_size,
            intermediate_size=config.positive_int("moe_intermediate_size"),
            num_experts=config.positive_int("num_experts"),
            top_k=config.positive_int("num_experts_per_tok"),
            routing=Routing(renormalize=bool(config.get("norm_topk_prob", False))),
        )
        return SparseMoE(build, experts)
