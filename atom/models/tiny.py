"""A model of the same architecture as a published one, small enough to be made on the spot.

What shapes the code that runs is kept: kinds of layers and their order, groups of experts and of
heads, ratios between them, how positions are scaled. Sizes shrink, weights are random, and the
vocabulary is bytes. The checkpoint is laid out as the published one, with the tensors that this
version skips, so that loading is rehearsed, too.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from atom.models.hf_config import HFConfig
from atom.models.inventory import block_multiple, is_dense, mtp_layers, num_experts
from atom.models.inventory_mixers import has_indexer, is_linear, window_of
from atom.models.inventory_v4 import ratio_of
from atom.models.stored import why_not_loaded
from atom.models.tiny_files import write_tokenizer, write_weights

VOCABULARY = 512  # bytes, specials, and room
HIDDEN = 128

# Published size -> what it is divided by; those of a head's channels, whose ratios matter.
_QUARTERED = (
    "kv_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "qk_head_dim",
    "v_head_dim",
    "index_head_dim",
    "linear_key_head_dim",
    "linear_value_head_dim",
)
# Sizes that become these, where the config has them.
_FIXED = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 256,
    "moe_intermediate_size": 128,
    "shared_expert_intermediate_size": 128,
    "q_lora_rank": 96,
    "o_lora_rank": 64,
    "index_n_heads": 16,
    "index_topk": 64,
    "sliding_window": 32,
    "num_hash_layers": 2,
}
_BY_LAYER = ("layer_types", "mlp_layer_types", "indexer_types", "attn_type_list")


def tiny_config(config: HFConfig) -> dict[str, Any]:
    """The published configuration with small sizes, in the same spelling."""
    raw = copy.deepcopy(dict(config.raw))
    text: dict[str, Any] = raw["text_config"] if raw.get("text_config") else raw
    for name, size in _FIXED.items():
        if text.get(name):
            text[name] = min(size, text[name])
    for name in _QUARTERED:
        if text.get(name):
            text[name] //= 4
    _shrink_heads(text, config)
    _shrink_experts(text, config)
    _shrink_depth(text, config)
    if why_not_loaded(config):
        for held in (raw, text):
            held.pop("quantization_config", None)
            held.pop("expert_dtype", None)
    ids = {"bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258}
    for held in (raw, text):
        held.update({name: value for name, value in ids.items() if name in held})
    return raw


def _shrink_heads(text: dict[str, Any], config: HFConfig) -> None:
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    alike = heads == kv_heads  # latent attention, or every query head with keys of its own
    small = 4 if alike else min(2, kv_heads)
    text["num_key_value_heads"] = small
    text["num_attention_heads"] = small if alike else small * min(heads // kv_heads, 16)
    if kv_heads == 1:
        text["num_attention_heads"] = 4
    if "linear_num_key_heads" in text:
        ratio = text["linear_num_value_heads"] // text["linear_num_key_heads"]
        text.update(linear_num_key_heads=2, linear_num_value_heads=2 * ratio)
    if "o_groups" in text:
        text["o_groups"] = 2
    dim = config.head_dim
    own = "qk_nope_head_dim" in text
    text["head_dim"] = text["qk_rope_head_dim"] if own else max(32, dim // 4)
    if own and "head_dim" not in config:
        del text["head_dim"]
    if "rotary_dim" in text:
        text["rotary_dim"] = text["rotary_dim"] * text["head_dim"] // dim
    rope = text.get("rope_parameters") or {}
    if "mrope_section" in rope:
        rope["mrope_section"] = [3, 3, 2]  # of 16 rotated channels


def _shrink_experts(text: dict[str, Any], config: HFConfig) -> None:
    """Twice as many as a token is sent to, in as many groups."""
    if not num_experts(config):
        return
    if not text.get("moe_intermediate_size"):
        text["intermediate_size"] = 128
    count = 2 * int(config.num_experts_per_tok)
    count = max(count, 2 * int(config.get("n_group") or 1))
    for name in ("n_routed_experts", "num_local_experts", "num_experts"):
        if text.get(name):
            text[name] = min(count, text[name])


def _shrink_depth(text: dict[str, Any], config: HFConfig) -> None:
    """The first layers, until every kind has been seen, and one more."""
    total = config.positive_int("num_hidden_layers")
    seen: dict[object, int] = {}
    for layer in range(total):
        seen.setdefault(_kind(config, layer), layer)
    count = min(total, max(max(seen.values()) + 2, 3))
    text["num_hidden_layers"] = count
    for name in _BY_LAYER:
        if isinstance(text.get(name), list):
            text[name] = text[name][:count]
    if "compress_ratios" in text:
        after = text["compress_ratios"][total : total + mtp_layers(config)]
        text["compress_ratios"] = text["compress_ratios"][:count] + after
    if "max_window_layers" in text:
        text["max_window_layers"] = count


def _kind(config: HFConfig, layer: int) -> object:
    ratio = ratio_of(config, layer) if block_multiple(config) > 1 else 0
    window = window_of(config, layer)
    indexer = has_indexer(config, layer)
    return is_linear(config, layer), window, is_dense(config, layer), indexer, ratio


def write_tiny(config: HFConfig, out: Path, seed: int = 0) -> HFConfig:
    """A checkpoint with a tokenizer in `out`, in under a second; gives its configuration."""
    out.mkdir(parents=True, exist_ok=True)
    raw = tiny_config(config)
    (out / "config.json").write_text(json.dumps(raw, indent=1))
    small = HFConfig(raw, str(out / "config.json"))
    ids = {"bos_token_id": 256, "eos_token_id": [257], "pad_token_id": 258}
    (out / "generation_config.json").write_text(json.dumps(ids))
    write_tokenizer(out)
    write_weights(small, out, seed)
    return small
