"""Llama 2, 3 and 3.1, models of the same shape (SmolLM2), and Mistral."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atom.layers.build import BuildContext
from atom.models.common import CausalLM, DecoderLayer, GatedMLP, SelfAttention, layer_window

if TYPE_CHECKING:
    from atom.models.hf_config import HFConfig


class LlamaForCausalLM(CausalLM):
    """Biases, if the config has any, on all four attention or all three MLP matrices."""

    def window(self, config: HFConfig, index: int) -> int:
        return 0

    def make_layer(self, config: HFConfig, build: BuildContext, index: int) -> DecoderLayer:
        bias = bool(config.get("attention_bias", False))
        mlp_bias = bool(config.get("mlp_bias", False))
        window = self.window(config, index)
        attn = SelfAttention(config, build, qkv_bias=bias, o_bias=bias, window=window)
        mlp = GatedMLP(config, build, config.positive_int("intermediate_size"), mlp_bias)
        return DecoderLayer(config, build, attn, mlp)


class MistralForCausalLM(LlamaForCausalLM):
    """Llama with a sliding window in every layer, where the config gives one."""

    def window(self, config: HFConfig, index: int) -> int:
        return layer_window(config, index)
