"""Qwen2 and Qwen2.5: Llama with biases on q, k and v."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atom.layers.build import BuildContext
from atom.models.common import CausalLM, DecoderLayer, GatedMLP, SelfAttention, layer_window

if TYPE_CHECKING:
    from atom.models.hf_config import HFConfig


def qwen_window(config: HFConfig, index: int) -> int:
    """With `use_sliding_window`, the layers from `max_window_layers` on are windowed."""
    windowed = config.get("use_sliding_window", False) and (
        config.get("layer_types") or index >= config.get("max_window_layers", 0)
    )
    return layer_window(config, index) if windowed else 0


class Qwen2ForCausalLM(CausalLM):
    def make_layer(self, config: HFConfig, build: BuildContext, index: int) -> DecoderLayer:
        attn = SelfAttention(config, build, qkv_bias=True, window=qwen_window(config, index))
        mlp = GatedMLP(config, build, config.positive_int("intermediate_size"))
        return DecoderLayer(config, build, attn, mlp)
