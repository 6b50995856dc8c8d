"""Qwen3-Next: three blocks of Gated DeltaNet to one of gated attention, over mixtures of experts.

Norms are zero-centred: their weights are 1 more than stored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from atom.errors import ModelError
from atom.layers.build import BuildContext
from atom.layers.gated_attention import GatedAttention
from atom.layers.gated_delta_net import DeltaHeads, GatedDeltaNet
from atom.layers.moe import FusedMoE, SparseMoE
from atom.models.common import MLP, CausalLM, DecoderLayer, GatedMLP
from atom.models.mtp import MTP, QWEN_PREFIX, qwen_mtp
from atom.ops.contracts import Routing

if TYPE_CHECKING:
    from atom.models.hf_config import HFConfig


def is_linear(config: HFConfig, index: int) -> bool:
    """Whether block `index` is one of Gated DeltaNet."""
    kinds = config.get("layer_types")
    if not kinds:
        return bool((index + 1) % config.get("full_attention_interval", 4))
    return bool(kinds[index] == "linear_attention")


def gated_attention(config: HFConfig, build: BuildContext) -> GatedAttention:
    return GatedAttention(
        build,
        hidden_size=config.hidden_size,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        eps=config.rms_norm_eps,
        rope={
            "base": config.rope_theta,
            "scaling": config.rope_scaling,
            "partial_factor": config.partial_rotary_factor,
            "trained_length": config.max_position_embeddings,
        },
        bias=bool(config.get("attention_bias", False)),
    )


def delta_net(config: HFConfig, build: BuildContext, grouped: bool) -> GatedDeltaNet:
    heads = DeltaHeads(
        num_k=config.positive_int("linear_num_key_heads"),
        num_v=config.positive_int("linear_num_value_heads"),
        k_dim=config.positive_int("linear_key_head_dim"),
        v_dim=config.positive_int("linear_value_head_dim"),
        taps=config.positive_int("linear_conv_kernel_dim"),
    )
    if heads.num_v % heads.num_k:
        raise ModelError(
            f"{config.where}: linear_num_value_heads {heads.num_v} is not a multiple of "
            f"linear_num_key_heads {heads.num_k}"
        )
    return GatedDeltaNet(
        build,
        hidden_size=config.hidden_size,
        heads=heads,
        eps=config.rms_norm_eps,
        grouped=grouped,
    )


def sparse_mlp(config: HFConfig, build: BuildContext) -> SparseMoE:
    """Experts of which each token takes some, and one that all take, behind a gate."""
    experts = FusedMoE(
        build,
        hidden_size=config.hidden_size,
        intermediate_size=config.positive_int("moe_intermediate_size"),
        num_experts=config.positive_int("num_experts"),
        top_k=config.positive_int("num_experts_per_tok"),
        routing=Routing(renormalize=bool(config.get("norm_topk_prob", True))),
    )
    size = config.positive_int("shared_expert_intermediate_size")
    return SparseMoE(
        build,
        experts,
        shared=MLP(config, build, size, reduce=False),
        shared_name="shared_expert",
        shared_gate=True,
    )


def mlp(config: HFConfig, build: BuildContext, index: int) -> nn.Module:
    """The feed-forward layer of block `index`: a mixture where the config has experts, unless it
    names the block as dense."""
    dense = index in (config.get("mlp_only_layers") or ()) or not config.get("num_experts")
    if dense or (index + 1) % config.get("decoder_sparse_step", 1):
        return GatedMLP(config, build, config.positive_int("intermediate_size"))
    return sparse_mlp(config, build)


class Qwen3NextForCausalLM(CausalLM):
    norm_offset = 1.0
    grouped = True  # DeltaNet's projections are stored by key head

    def make_layer(self, config: HFConfig, build: BuildContext, index: int) -> DecoderLayer:
        return self._block(config, build, index, is_linear(config, index))

    def _block(
        self, config: HFConfig, build: BuildContext, index: int, linear: bool
    ) -> DecoderLayer:
        return DecoderLayer(
            config,
            build,
            delta_net(config, build, self.grouped) if linear else gated_attention(config, build),
            mlp(config, build, index),
            attn_name="linear_attn" if linear else "self_attn",
            norm_offset=1.0,
        )

    @classmethod
    def mtp_weights(cls, config: HFConfig) -> tuple[str, ...]:
        return (QWEN_PREFIX,)

    def make_mtp(self, config: HFConfig, build: BuildContext) -> MTP:
        block = self._block(config, build, config.num_hidden_layers, linear=False)
        return qwen_mtp(self, config, build, block)
