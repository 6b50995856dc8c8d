"""GPT-OSS: sinks in attention, every other layer windowed, experts with biases and a clamp."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atom.errors import ModelError
from atom.layers.build import BuildContext
from atom.layers.moe import SparseMoE
from atom.layers.moe_interleaved import InterleavedExperts
from atom.layers.mxfp4 import MXFP4Experts
from atom.models.common import CausalLM, DecoderLayer, SelfAttention, layer_window
from atom.ops.contracts import GatedActivation, Routing

if TYPE_CHECKING:
    from atom.models.hf_config import HFConfig

ALPHA = 1.702  # of the activation


def _window(config: HFConfig, index: int) -> int:
    """As the config lists it; without a list, layers 0, 2, ... are windowed."""
    if config.get("layer_types"):
        return layer_window(config, index)
    return config.positive_int("sliding_window") if index % 2 == 0 else 0


class GptOssForCausalLM(CausalLM):
    weight_map = ((".mlp.router.", ".mlp.gate."),)
    quantisations = ("mxfp4",)  # of the experts

    def make_layer(self, config: HFConfig, build: BuildContext, index: int) -> DecoderLayer:
        if (alpha := config.get("swiglu_alpha", ALPHA)) != ALPHA:
            raise ModelError(f"{config.where}: swiglu_alpha {alpha!r} is not supported: {ALPHA} is")
        bias = bool(config.get("attention_bias", True))
        window = _window(config, index)
        attn = SelfAttention(config, build, qkv_bias=bias, o_bias=bias, sinks=True, window=window)
        packed = (config.get("quantization_config") or {}).get("quant_method") == "mxfp4"
        experts = (MXFP4Experts if packed else InterleavedExperts)(
            build,
            hidden_size=config.hidden_size,
            intermediate_size=config.positive_int("intermediate_size"),
            num_experts=config.positive_int("num_local_experts"),
            top_k=config.positive_int("num_experts_per_tok"),
            # Softmax of the chosen alone is that of all, divided by the sum of the chosen.
            routing=Routing(renormalize=True),
            act=GatedActivation("gpt_oss", float(config.get("swiglu_limit", 7.0))),
        )
        return DecoderLayer(config, build, attn, SparseMoE(build, experts, router_bias=True))
