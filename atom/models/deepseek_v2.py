"""DeepSeek V2, V2-Lite, V3 and R1, and Kimi-K2, which is a V3 of other sizes.

Latent attention; the first blocks are dense, the others have a mixture of experts of which some
take every token. V2 chooses experts by softmax, V3 by sigmoid with a correction bias.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from atom.errors import ModelError
from atom.layers.build import BuildContext
from atom.layers.moe import FusedMoE, SparseMoE
from atom.models.common import MLP, CausalLM, DecoderLayer, GatedMLP
from atom.models.latent import LatentAttention
from atom.models.mtp import MTP, nextn_mtp, nextn_weights
from atom.ops.contracts import Routing

if TYPE_CHECKING:
    from atom.models.hf_config import HFConfig


class DeepseekForCausalLM(CausalLM):
    """What the versions share. They say how experts are chosen, and may change the attention."""

    correction = ""  # name of the router's correction bias

    def routing(self, config: HFConfig) -> Routing:
        raise NotImplementedError

    def attention(self, config: HFConfig, build: BuildContext, index: int) -> nn.Module:
        return LatentAttention(config, build)

    def make_layer(self, config: HFConfig, build: BuildContext, index: int) -> DecoderLayer:
        attn = self.attention(config, build, index)
        return DecoderLayer(config, build, attn, self._mlp(config, build, index))

    def _mlp(self, config: HFConfig, build: BuildContext, index: int) -> nn.Module:
        first = config.get("first_k_dense_replace", 0)
        if index < first or index % (config.get("moe_layer_freq") or 1):
            return GatedMLP(config, build, config.positive_int("intermediate_size"))
        size = config.positive_int("moe_intermediate_size")
        experts = FusedMoE(
            build,
            hidden_size=config.hidden_size,
            intermediate_size=size,
            num_experts=config.positive_int("n_routed_experts"),
            top_k=config.positive_int("num_experts_per_tok"),
            routing=self.routing(config),
        )
        count = config.get("n_shared_experts") or 0
        shared = MLP(config, build, size * count, reduce=False) if count else None
        return SparseMoE(build, experts, correction=self.correction, shared=shared)


class DeepseekV2ForCausalLM(DeepseekForCausalLM):
    def routing(self, config: HFConfig) -> Routing:
        method = config.get("topk_method", "greedy")
        if method not in ("greedy", "group_limited_greedy") or config.get("norm_topk_prob"):
            raise ModelError(
                f"{config.where}: topk_method {method!r} with norm_topk_prob "
                f"{config.get('norm_topk_prob')!r} is not supported for DeepSeek V2; supported: "
                "greedy or group_limited_greedy, with norm_topk_prob false"
            )
        grouped = method == "group_limited_greedy"
        return Routing(
            num_groups=config.positive_int("n_group") if grouped else 1,
            top_groups=config.positive_int("topk_group") if grouped else 1,
            scale=float(config.get("routed_scaling_factor", 1.0)),
        )


class DeepseekV3ForCausalLM(DeepseekForCausalLM):
    correction = "e_score_correction_bias"

    def routing(self, config: HFConfig) -> Routing:
        method, scoring = config.get("topk_method", "noaux_tc"), config.get("scoring_func")
        if method != "noaux_tc" or scoring not in (None, "sigmoid"):
            raise ModelError(
                f"{config.where}: topk_method {method!r} with scoring_func {scoring!r} is not "
                "supported for DeepSeek V3; supported: noaux_tc with sigmoid"
            )
        return Routing(
            scoring="sigmoid",
            renormalize=bool(config.get("norm_topk_prob", True)),
            num_groups=config.positive_int("n_group"),
            top_groups=config.positive_int("topk_group"),
            group_score="top2",
            scale=float(config.get("routed_scaling_factor", 1.0)),
        )

    @classmethod
    def mtp_weights(cls, config: HFConfig) -> tuple[str, ...]:
        return nextn_weights(config)

    def make_mtp(self, config: HFConfig, build: BuildContext) -> MTP:
        return nextn_mtp(self, config, build)
