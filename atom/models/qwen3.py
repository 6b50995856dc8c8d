"""Qwen3, dense: per-head RMSNorm on queries and keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atom.layers.build import BuildContext
from atom.models.common import CausalLM, DecoderLayer, GatedMLP, SelfAttention, layer_window

if TYPE_CHECKING:
    from atom.models.hf_config import HFConfig


def qwen3_attention(config: HFConfig, build: BuildContext, index: int) -> SelfAttention:
    """With `use_sliding_window`, the layers from `max_window_layers` on are windowed."""
    bias = bool(config.get("attention_bias", False))
    windowed = config.get("use_sliding_window", False) and (
        config.get("layer_types") or index >= config.get("max_window_layers", 0)
    )
    window = layer_window(config, index) if windowed else 0
    return SelfAttention(config, build, qkv_bias=bias, o_bias=bias, qk_norm=True, window=window)


class Qwen3ForCausalLM(CausalLM):
    def make_layer(self, config: HFConfig, build: BuildContext, index: int) -> DecoderLayer:
        mlp = GatedMLP(config, build, config.positive_int("intermediate_size"))
        return DecoderLayer(config, build, qwen3_attention(config, build, index), mlp)
