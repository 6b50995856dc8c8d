"""Qwen3, dense: per-head RMSNorm on queries and keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atom.layers.build import BuildContext
from atom.models.common import CausalLM, DecoderLayer, GatedMLP, SelfAttention
from atom.models.qwen2 import qwen_window

if TYPE_CHECKING:
    from atom.models.hf_config import HFConfig


def qwen3_attention(config: HFConfig, build: BuildContext, index: int) -> SelfAttention:
    bias = bool(config.get("attention_bias", False))
    window = qwen_window(config, index)
    return SelfAttention(config, build, qkv_bias=bias, o_bias=bias, qk_norm=True, window=window)


class Qwen3ForCausalLM(CausalLM):
    def make_layer(self, config: HFConfig, build: BuildContext, index: int) -> DecoderLayer:
        mlp = GatedMLP(config, build, config.positive_int("intermediate_size"))
        return DecoderLayer(config, build, qwen3_attention(config, build, index), mlp)
