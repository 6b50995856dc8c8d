"""MiniMax-M2: q and k normed over all heads at once, sigmoid routing with a correction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atom.errors import ModelError
from atom.layers.build import BuildContext
from atom.layers.moe import FusedMoE, SparseMoE
from atom.models.common import CausalLM, DecoderLayer, SelfAttention
from atom.ops.contracts import Routing

if TYPE_CHECKING:
    from atom.models.hf_config import HFConfig

CORRECTION = "e_score_correction_bias"


def _check(config: HFConfig) -> None:
    """What other models of the family had, and this one does not."""
    kinds = set(config.get("attn_type_list") or [1])
    if kinds != {1}:
        raise ModelError(f"{config.where}: attn_type_list {sorted(kinds)} is not supported: 1 is")
    scoring = config.get("scoring_func", "sigmoid")
    if scoring != "sigmoid":
        raise ModelError(f"{config.where}: scoring_func {scoring!r} is not supported: sigmoid is")
    if config.get("shared_intermediate_size"):
        raise ModelError(f"{config.where}: a shared expert is not supported in this family")
    if config.get("qk_norm_type", "per_layer") != "per_layer":
        kind = config.get("qk_norm_type")
        raise ModelError(f"{config.where}: qk_norm_type {kind!r} is not supported: per_layer is")


def _rotary_factor(config: HFConfig) -> float:
    """Of `rotary_dim` channels, where the config counts them."""
    if config.get("rotary_dim") is None:
        return config.partial_rotary_factor
    return config.positive_int("rotary_dim") / config.head_dim


class MiniMaxM2ForCausalLM(CausalLM):
    weight_map = (
        (f".block_sparse_moe.{CORRECTION}", f".mlp.gate.{CORRECTION}"),
        (".block_sparse_moe.", ".mlp."),
        (".w1.weight", ".gate_proj.weight"),
        (".w3.weight", ".up_proj.weight"),
        (".w2.weight", ".down_proj.weight"),
    )

    def make_layer(self, config: HFConfig, build: BuildContext, index: int) -> DecoderLayer:
        _check(config)
        attn = SelfAttention(
            config,
            build,
            whole_norm=bool(config.get("use_qk_norm", True)),
            rotary_factor=_rotary_factor(config),
        )
        experts = FusedMoE(
            build,
            hidden_size=config.hidden_size,
            intermediate_size=config.positive_int("intermediate_size"),
            num_experts=config.positive_int("num_local_experts"),
            top_k=config.positive_int("num_experts_per_tok"),
            routing=Routing(scoring="sigmoid", renormalize=True),
        )
        correction = CORRECTION if config.get("use_routing_bias", True) else ""
        return DecoderLayer(config, build, attn, SparseMoE(build, experts, correction=correction))
