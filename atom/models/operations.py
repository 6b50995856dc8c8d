"""What a model of a configuration asks of the kernels, so that they can be told without a model.

One query for each operation and kind of layer, of whole sizes: ranks ask for their share. Imports
no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from atom.models import inventory_v4
from atom.models.hf_config import HFConfig
from atom.models.inventory import expert_size, is_dense, is_v4, num_experts
from atom.models.inventory_mixers import has_indexer, is_latent, is_linear, window_of
from atom.models.stored import DTYPE_BYTES, quantisation_of_weights
from atom.ops.registry import OpQuery


def operations(
    config: HFConfig, device: str, dtype: str, kv_dtype: str, weight_format: str, block_size: int
) -> list[OpQuery]:
    """`dtype` (the activations') and `kv_dtype` are torch names; `weight_format` is one, too, or a
    GGUF type."""
    hidden = config.positive_int("hidden_size")

    def ask(
        op: str, weight: str = "", kv: bool = False, variant: str = "", **shape: int
    ) -> OpQuery:
        return OpQuery(
            op=op,
            device=device,
            dtype=dtype,
            weight_format=weight,
            kv_dtype=kv_dtype if kv else "",
            shape=tuple(shape.items()),
            variant=variant,
        )

    asked = [
        ask("embedding", weight_format, K=hidden),
        ask("linear", weight_format, N=_widest(config), K=hidden),
        ask("rms_norm", K=hidden),
        ask("add_rms_norm", K=hidden),
    ]
    if is_v4(config):
        asked += _v4(config, ask, block_size)
    else:
        for layer in range(config.positive_int("num_hidden_layers")):
            asked += _mixer(config, ask, layer, block_size)
    asked += _feed_forward(config, ask, weight_format if weight_format in DTYPE_BYTES else dtype)
    return list(dict.fromkeys(asked))


def _widest(config: HFConfig) -> int:
    """Rows of the largest linear layer that every model of a kind has: its MLP's, or the head's."""
    layers = range(config.positive_int("num_hidden_layers"))
    if config.get("intermediate_size") and any(is_dense(config, layer) for layer in layers):
        return 2 * config.positive_int("intermediate_size")
    return config.vocab_size


def _mixer(config: HFConfig, ask: Any, layer: int, bs: int) -> Iterator[OpQuery]:
    if is_linear(config, layer):
        yield ask(
            "gated_delta_net",
            Hk=config.positive_int("linear_num_key_heads"),
            Hv=config.positive_int("linear_num_value_heads"),
            Dk=config.positive_int("linear_key_head_dim"),
            Dv=config.positive_int("linear_value_head_dim"),
            taps=config.positive_int("linear_conv_kernel_dim"),
        )
        return
    if is_latent(config):
        yield from _latent(config, ask, layer, bs)
        return
    dim, heads = config.head_dim, config.positive_int("num_attention_heads")
    kv_heads = config.num_key_value_heads
    rotated = config.get("rotary_dim") or int(dim * config.partial_rotary_factor)
    if config.architecture.startswith("MiniMax") and config.get("use_qk_norm", True):
        yield ask("projection_norm", q=heads * dim, k=kv_heads * dim)
        yield ask("projection_sums", q=heads * dim, k=kv_heads * dim)
    yield ask("rotary", R=int(rotated), D=dim, interleaved=0)
    yield ask("reshape_and_cache", kv=True, Hk=kv_heads, D=dim, bs=bs)
    window = window_of(config, layer)
    yield ask("paged_attention", kv=True, Hk=kv_heads, D=dim, bs=bs, Hq=heads, window=window)


def _latent(config: HFConfig, ask: Any, layer: int, bs: int) -> Iterator[OpQuery]:
    rope = config.positive_int("qk_rope_head_dim")
    sizes = {
        "H": config.positive_int("num_attention_heads"),
        "R": config.positive_int("kv_lora_rank"),
        "P": rope,
        "bs": bs,
    }
    yield ask("rotary", R=rope, D=rope, interleaved=1)
    yield ask("mla_cache", kv=True, **sizes)
    yield ask("mla_attention", kv=True, **sizes)
    if config.get("index_n_heads") is None:
        return
    yield ask("sparse_mla", kv=True, **sizes)
    if has_indexer(config, layer):
        heads, dim = config.positive_int("index_n_heads"), config.positive_int("index_head_dim")
        yield ask("index_cache", Hi=heads, D=dim, R=rope, bs=bs)
        yield ask("index_topk", Hi=heads, D=dim, k=config.positive_int("index_topk"), bs=bs)


def _v4(config: HFConfig, ask: Any, bs: int) -> Iterator[OpQuery]:
    heads, dim = config.positive_int("num_attention_heads"), config.head_dim
    rope = config.get("qk_rope_head_dim") or int(dim * config.partial_rotary_factor)
    streams, hidden = config.positive_int("hc_mult"), config.positive_int("hidden_size")
    window, top_k = config.positive_int("sliding_window"), config.positive_int("index_topk")
    for mixes in (2 * streams + streams * streams, streams):
        yield ask("hyper_mix", N=streams, K=hidden, M=mixes)
    for layer in range(config.positive_int("num_hidden_layers")):
        ratio = inventory_v4.ratio_of(config, layer)
        common = {"R": int(rope), "bs": bs, "ratio": ratio}
        chosen = top_k if ratio == 4 else 0
        yield ask("v4_write", kv=True, **common, Hq=heads, D=dim)
        yield ask("v4_attention", kv=True, **common, Hq=heads, D=dim, window=window, k=chosen)
        if ratio:
            yield ask("v4_compress", kv=True, **common, D=dim)
        if ratio == 4:
            keys = config.positive_int("index_head_dim")
            yield ask("v4_choose", kv=True, **common, D=keys, k=top_k)


def _feed_forward(config: HFConfig, ask: Any, dense: str) -> Iterator[OpQuery]:
    layers = range(config.positive_int("num_hidden_layers"))
    if config.get("intermediate_size") and any(is_dense(config, layer) for layer in layers):
        yield ask("silu_and_mul", I=config.positive_int("intermediate_size"))
    if not num_experts(config):
        return
    count, top_k = num_experts(config), config.positive_int("num_experts_per_tok")
    yield ask("topk_softmax" if _routes_plainly(config) else "topk_route", E=count, k=top_k)
    variant = ""
    if config.architecture.startswith("GptOss"):
        variant = "act,bias"
        dense = "mxfp4" if quantisation_of_weights(config) == "mxfp4" else dense
    elif is_v4(config):
        variant = "act" if config.get("swiglu_limit") else ""
    hidden, size = config.positive_int("hidden_size"), expert_size(config)
    yield ask("fused_experts", dense, False, variant, k=top_k, E=count, K=hidden, I=size)


def _routes_plainly(config: HFConfig) -> bool:
    """Whether the router is a softmax and its largest values, no more."""
    if config.architecture.startswith("DeepseekV2"):
        scale = config.get("routed_scaling_factor") or 1.0
        return config.get("topk_method", "greedy") == "greedy" and scale == 1.0
    return config.architecture.startswith(("Mixtral", "Qwen", "GptOss"))
