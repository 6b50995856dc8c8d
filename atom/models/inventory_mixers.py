"""Tensors and caches of what mixes tokens: grouped-query and latent attention, delta rule."""

from __future__ import annotations

from collections.abc import Iterator

from atom.models.hf_config import HFConfig
from atom.models.indexer_kinds import indexer_kind
from atom.models.inventory_types import (
    ALL,
    ATTENTION,
    NORM,
    SEQUENCE,
    TOKEN,
    WINDOW,
    CacheNeed,
    Tensors,
)


def is_linear(config: HFConfig, layer: int) -> bool:
    """Whether a layer is a gated delta rule; layer -1, of multi-token prediction, never is."""
    if layer < 0 or "linear_num_key_heads" not in config:
        return False
    kinds = config.get("layer_types")
    if kinds:
        return bool(kinds[layer] == "linear_attention")
    return (layer + 1) % int(config.get("full_attention_interval") or 4) != 0


def is_latent(config: HFConfig) -> bool:
    return config.get("kv_lora_rank") is not None


def window_of(config: HFConfig, layer: int) -> int:
    """Tokens that a layer's attention sees; 0: all."""
    window, kinds = config.get("sliding_window"), config.get("layer_types")
    architecture = config.architecture
    if not window or architecture.startswith("Llama"):
        return 0
    if architecture.startswith("Qwen"):
        from_layer = int(config.get("max_window_layers") or 0)
        if not config.get("use_sliding_window") or (not kinds and layer < from_layer):
            return 0
    if kinds and layer >= 0 and kinds[layer] != "sliding_attention":
        return 0
    return int(window)


def mixer_tensors(config: HFConfig, pre: str, layer: int) -> Iterator[Tensors]:
    if is_linear(config, layer):
        return _delta(config, f"{pre}linear_attn.")
    if is_latent(config):
        return _latent(config, f"{pre}self_attn.", layer)
    return _grouped(config, f"{pre}self_attn.")


def mixer_caches(config: HFConfig, layer: int) -> list[CacheNeed]:
    if is_linear(config, layer):
        return _delta_caches(config)
    if is_latent(config):
        width = config.positive_int("kv_lora_rank") + config.positive_int("qk_rope_head_dim")
        found = [CacheNeed("latent", TOKEN, width)]
        if has_indexer(config, layer):
            size = config.positive_int("index_head_dim")
            found.append(CacheNeed("index keys", TOKEN, size, dtype="model"))
        return found
    heads = config.num_key_value_heads
    window = window_of(config, layer)
    values = 2 * heads * config.head_dim
    lives = WINDOW if window else TOKEN
    return [CacheNeed("keys and values", lives, values, heads, window=window)]


def _linear(
    name: str, n: int, k: int, ways: int, bias: bool = False, row: bool = False
) -> list[Tensors]:
    """`row`: split over its inputs, so that each rank has the bias."""
    found = [Tensors(f"{name}.weight", (n, k), ways, ATTENTION, linear=True)]
    if bias:
        found.append(Tensors(f"{name}.bias", (n,), 1 if row else ways, ATTENTION))
    return found


def _grouped(config: HFConfig, pre: str) -> Iterator[Tensors]:
    hidden, dim = config.positive_int("hidden_size"), config.head_dim
    heads, kv_heads = config.positive_int("num_attention_heads"), config.num_key_value_heads
    architecture = config.architecture
    bias = architecture.startswith("Qwen2") or bool(config.get("attention_bias"))
    o_bias = bias and not architecture.startswith(("Qwen2", "Glm4Moe"))
    gated = 2 if "linear_num_key_heads" in config else 1  # queries, and gates of the output
    yield from _linear(f"{pre}q_proj", gated * heads * dim, hidden, heads, bias)
    yield from _linear(f"{pre}k_proj", kv_heads * dim, hidden, kv_heads, bias)
    yield from _linear(f"{pre}v_proj", kv_heads * dim, hidden, kv_heads, bias)
    yield from _linear(f"{pre}o_proj", hidden, heads * dim, heads, o_bias, row=True)
    if architecture.startswith("GptOss"):
        yield Tensors(f"{pre}sinks", (heads,), heads, ATTENTION)
    if architecture.startswith("MiniMax") and config.get("use_qk_norm", True):
        yield Tensors(f"{pre}q_norm.weight", (heads * dim,), heads, NORM)
        yield Tensors(f"{pre}k_norm.weight", (kv_heads * dim,), kv_heads, NORM)
    elif architecture.startswith("Qwen3") or config.get("use_qk_norm"):
        yield Tensors(f"{pre}q_norm.weight", (dim,), 1, NORM)
        yield Tensors(f"{pre}k_norm.weight", (dim,), 1, NORM)


def has_indexer(config: HFConfig, layer: int) -> bool:
    """Whether a layer chooses its own positions to attend to."""
    if config.get("index_n_heads") is None:
        return False
    return layer < 0 or indexer_kind(config, layer) == "full"


def _latent(config: HFConfig, pre: str, layer: int) -> Iterator[Tensors]:
    hidden, heads = config.positive_int("hidden_size"), config.positive_int("num_attention_heads")
    rank, rope = config.positive_int("kv_lora_rank"), config.positive_int("qk_rope_head_dim")
    nope, value = config.positive_int("qk_nope_head_dim"), config.positive_int("v_head_dim")
    bias = bool(config.get("attention_bias"))
    width = heads * (nope + rope)
    if q_rank := config.get("q_lora_rank"):
        yield from _linear(f"{pre}q_a_proj", int(q_rank), hidden, 1, bias)
        yield Tensors(f"{pre}q_a_layernorm.weight", (int(q_rank),), 1, NORM)
        yield from _linear(f"{pre}q_b_proj", width, int(q_rank), heads)
    else:
        yield from _linear(f"{pre}q_proj", width, hidden, heads)
    yield from _linear(f"{pre}kv_a_proj_with_mqa", rank + rope, hidden, 1, bias)
    yield Tensors(f"{pre}kv_a_layernorm.weight", (rank,), 1, NORM)
    yield from _linear(f"{pre}kv_b_proj", heads * (nope + value), rank, heads)
    yield from _linear(f"{pre}o_proj", hidden, heads * value, heads, bias, row=True)
    if has_indexer(config, layer):
        yield from _indexer(config, f"{pre}indexer.", hidden)


def _indexer(config: HFConfig, pre: str, hidden: int) -> Iterator[Tensors]:
    heads, dim = config.positive_int("index_n_heads"), config.positive_int("index_head_dim")
    yield from _linear(f"{pre}wq_b", heads * dim, config.positive_int("q_lora_rank"), 1)
    yield from _linear(f"{pre}wk", dim, hidden, 1)
    yield Tensors(f"{pre}k_norm.weight", (dim,), 1, NORM)
    yield Tensors(f"{pre}k_norm.bias", (dim,), 1, NORM)
    yield Tensors(f"{pre}weights_proj.weight", (heads, hidden), 1, ATTENTION)


def _delta_sizes(config: HFConfig) -> tuple[int, int, int, int]:
    """(key heads, value heads, channels of all keys, channels of all values)."""
    keys = config.positive_int("linear_num_key_heads")
    values = config.positive_int("linear_num_value_heads")
    key_dim = keys * config.positive_int("linear_key_head_dim")
    return keys, values, key_dim, values * config.positive_int("linear_value_head_dim")


def _delta(config: HFConfig, pre: str) -> Iterator[Tensors]:
    hidden = config.positive_int("hidden_size")
    keys, values, key_dim, value_dim = _delta_sizes(config)
    channels = 2 * key_dim + value_dim
    if config.architecture.startswith("Qwen3Next"):
        yield from _linear(f"{pre}in_proj_qkvz", channels + value_dim, hidden, keys)
        yield from _linear(f"{pre}in_proj_ba", 2 * values, hidden, keys)
    else:
        yield from _linear(f"{pre}in_proj_qkv", channels, hidden, keys)
        yield from _linear(f"{pre}in_proj_z", value_dim, hidden, keys)
        yield from _linear(f"{pre}in_proj_b", values, hidden, keys)
        yield from _linear(f"{pre}in_proj_a", values, hidden, keys)
    kernel = config.positive_int("linear_conv_kernel_dim")
    yield Tensors(f"{pre}conv1d.weight", (channels, 1, kernel), keys, ATTENTION)
    yield Tensors(f"{pre}A_log", (values,), keys, ATTENTION, dtype="float32")
    yield Tensors(f"{pre}dt_bias", (values,), keys, ATTENTION)
    dim = config.positive_int("linear_value_head_dim")
    yield Tensors(f"{pre}norm.weight", (dim,), 1, NORM, dtype="float32")
    yield from _linear(f"{pre}out_proj", hidden, value_dim, keys)


def _delta_caches(config: HFConfig) -> list[CacheNeed]:
    keys, _, key_dim, value_dim = _delta_sizes(config)
    kept = config.positive_int("linear_conv_kernel_dim")
    recurrent = value_dim * config.positive_int("linear_key_head_dim")
    return [
        CacheNeed("convolution", SEQUENCE, (2 * key_dim + value_dim) * kept, keys, "model"),
        CacheNeed("recurrent state", SEQUENCE, recurrent, keys, "float32"),
    ]


__all__ = [
    "ALL",
    "CacheNeed",
    "has_indexer",
    "is_latent",
    "is_linear",
    "mixer_caches",
    "mixer_tensors",
]
