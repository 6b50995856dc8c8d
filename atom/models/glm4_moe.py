"""GLM-4.5: partly rotated heads, biased QKV, sigmoid routing in groups, an expert for all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from atom.layers.build import BuildContext
from atom.layers.moe import FusedMoE, SparseMoE
from atom.models.common import MLP, CausalLM, DecoderLayer, GatedMLP, SelfAttention
from atom.models.mtp import nextn_mtp, nextn_weights
from atom.ops.contracts import Routing

if TYPE_CHECKING:
    from atom.models.hf_config import HFConfig


def _routing(config: HFConfig) -> Routing:
    return Routing(
        scoring="sigmoid",
        renormalize=bool(config.get("norm_topk_prob", True)),
        num_groups=int(config.get("n_group", 1)),
        top_groups=int(config.get("topk_group", 1)),
        group_score="top2",
        scale=float(config.get("routed_scaling_factor", 1.0)),
    )


class Glm4MoeForCausalLM(CausalLM):
    def make_layer(self, config: HFConfig, build: BuildContext, index: int) -> DecoderLayer:
        attn = SelfAttention(
            config,
            build,
            qkv_bias=bool(config.get("attention_bias", False)),
            qk_norm=bool(config.get("use_qk_norm", False)),
        )
        return DecoderLayer(config, build, attn, self._mlp(config, build, index))

    def _mlp(self, config: HFConfig, build: BuildContext, index: int) -> nn.Module:
        if index < config.get("first_k_dense_replace", 1):
            return GatedMLP(config, build, config.positive_int("intermediate_size"))
        size = config.positive_int("moe_intermediate_size")
        experts = FusedMoE(
            build,
            hidden_size=config.hidden_size,
            intermediate_size=size,
            num_experts=config.positive_int("n_routed_experts"),
            top_k=config.positive_int("num_experts_per_tok"),
            routing=_routing(config),
        )
        shared = MLP(config, build, size * config.positive_int("n_shared_experts"), reduce=False)
        return SparseMoE(build, experts, correction="e_score_correction_bias", shared=shared)

    @classmethod
    def mtp_weights(cls, config: HFConfig) -> tuple[str, ...]:
        return nextn_weights(config)

    def make_mtp(self, config: HFConfig, build: BuildContext) -> nn.Module:
        return nextn_mtp(self, config, build)
