"""What a model takes, from its configuration and file headers alone: weights, KV per token.

Reads no weights and imports no torch, so that `atom doctor` can plan for a model that this machine
could never load.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from atom.models.gguf import GGUFFile
from atom.models.hf_config import HFConfig
from atom.models.source import ModelSource
from atom.ops.registry import OpQuery

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float8_e4m3fn": 1}


@dataclass(frozen=True, slots=True)
class Footprint:
    """`weight_bytes` as held in memory under the dtype asked for. `weights_from` says how known."""

    parameters: int
    weight_bytes: int
    weights_from: str
    kv_bytes_per_token: int
    max_model_len: int | None  # the model's own limit


def footprint(source: ModelSource, dtype: str, kv_dtype: str, *, keep_stored: bool) -> Footprint:
    """`dtype` and `kv_dtype` are torch names. `keep_stored`: weights stay in their stored form."""
    config = source.config
    if source.format == "gguf":
        parameters, stored = _gguf_sizes(GGUFFile(source.path))
        known = "the file"
    else:
        parameters = count_parameters(config)
        files = [p.stat().st_size for p in source.path.glob("*.safetensors")]
        stored = sum(files) or parameters * DTYPE_BYTES.get(config.dtype or "bfloat16", 2)
        known = "the files" if files else "the configuration"
    limit = config.get("max_position_embeddings")
    return Footprint(
        parameters=parameters,
        weight_bytes=stored if keep_stored else parameters * DTYPE_BYTES[dtype],
        weights_from=known,
        kv_bytes_per_token=kv_bytes_per_token(config, kv_dtype),
        max_model_len=limit if isinstance(limit, int) else None,
    )


def kv_bytes_per_token(config: HFConfig, kv_dtype: str) -> int:
    """Keys and values of one token over all layers."""
    per_layer = 2 * config.num_key_value_heads * config.head_dim
    return config.positive_int("num_hidden_layers") * per_layer * DTYPE_BYTES[kv_dtype]


def activation_bytes(config: HFConfig, tokens: int, samples: int, itemsize: int) -> int:
    """About what a step takes at its peak, over weights and caches: the widest MLP or the logits.

    An MLP holds its input, the residual, both halves of its inner activations and their product;
    sampling holds the logits and three arrays in float32 beside them.
    """
    hidden = config.positive_int("hidden_size")
    experts = config.get("num_local_experts") or config.get("num_experts") or 0
    inner = config.positive_int("intermediate_size")
    width = 2 * hidden + 3 * inner
    if experts:
        own = config.get("moe_intermediate_size") or inner
        width = 2 * hidden + int(config.positive_int("num_experts_per_tok")) * (3 * own + hidden)
    logits = samples * config.vocab_size * (itemsize + 12)
    return max(tokens * width * itemsize, tokens * hidden * itemsize * 2 + logits)


def _gguf_sizes(file: GGUFFile) -> tuple[int, int]:
    """(parameters, bytes of the tensors)."""
    tensors = file.tensors.values()
    return sum(math.prod(t.shape) for t in tensors), sum(int(t.data.nbytes) for t in tensors)


def count_parameters(config: HFConfig) -> int:
    """Parameters of a decoder with attention and dense or expert MLPs, as this version runs."""
    hidden = config.positive_int("hidden_size")
    embeddings = config.vocab_size * hidden * (1 if config.tie_word_embeddings else 2)
    layers = config.positive_int("num_hidden_layers")
    norms = 2 * hidden
    mlps = sum(_mlp_parameters(config, layer) for layer in range(layers))
    return embeddings + layers * (_attention_parameters(config) + norms) + mlps + hidden


def _attention_parameters(config: HFConfig) -> int:
    hidden, dim = config.positive_int("hidden_size"), config.head_dim
    heads, kv_heads = config.positive_int("num_attention_heads"), config.num_key_value_heads
    count = 2 * hidden * heads * dim + 2 * hidden * kv_heads * dim
    if config.architecture.startswith("Qwen2"):
        count += (heads + 2 * kv_heads) * dim  # biases, but none on the output
    elif config.get("attention_bias"):
        count += (heads + 2 * kv_heads) * dim + hidden
    if config.architecture.startswith("Qwen3"):
        count += 2 * dim  # norms of the query and key heads
    return count


def _is_dense(config: HFConfig, layer: int) -> bool:
    """Whether a layer's MLP has no experts."""
    if not (config.get("num_local_experts") or config.get("num_experts")):
        return True
    step = config.get("decoder_sparse_step") or 1
    return layer in (config.get("mlp_only_layers") or ()) or (layer + 1) % step != 0


def _mlp_parameters(config: HFConfig, layer: int) -> int:
    hidden = config.positive_int("hidden_size")
    experts = config.get("num_local_experts") or config.get("num_experts") or 0
    if _is_dense(config, layer):
        return 3 * hidden * config.positive_int("intermediate_size")
    own = "moe_intermediate_size" in config
    size = config.positive_int("moe_intermediate_size" if own else "intermediate_size")
    return int(experts) * (3 * hidden * size + hidden)


def operations(
    config: HFConfig, device: str, dtype: str, kv_dtype: str, weight_format: str, block_size: int
) -> list[OpQuery]:
    """What a model of this configuration asks of the kernels: one query per operation."""
    hidden, dim = config.positive_int("hidden_size"), config.head_dim
    heads, kv_heads = config.positive_int("num_attention_heads"), config.num_key_value_heads
    size = config.positive_int("intermediate_size")
    experts = config.get("num_local_experts") or config.get("num_experts") or 0

    def ask(op: str, weight: str = "", kv: str = "", **shape: int) -> OpQuery:
        return OpQuery(
            op=op,
            device=device,
            dtype=dtype,
            weight_format=weight,
            kv_dtype=kv,
            shape=tuple(shape.items()),
        )

    queries = [
        ask("embedding", weight_format, K=hidden),
        ask("linear", weight_format, N=2 * size, K=hidden),
        ask("rms_norm", K=hidden),
        ask("add_rms_norm", K=hidden),
        ask("rotary", R=int(dim * config.partial_rotary_factor), D=dim, interleaved=0),
        ask("reshape_and_cache", kv=kv_dtype, Hk=kv_heads, D=dim, bs=block_size),
        ask(
            "paged_attention",
            kv=kv_dtype,
            Hk=kv_heads,
            D=dim,
            bs=block_size,
            Hq=heads,
            window=int(config.get("sliding_window") or 0),
        ),
    ]
    if any(_is_dense(config, layer) for layer in range(config.positive_int("num_hidden_layers"))):
        queries.append(ask("silu_and_mul", I=size))
    if experts:
        top_k = config.positive_int("num_experts_per_tok")
        expert = config.get("moe_intermediate_size") or size
        dense = weight_format if weight_format in DTYPE_BYTES else dtype
        queries.append(ask("topk_softmax", E=int(experts), k=top_k))
        sizes = {"E": int(experts), "K": hidden, "I": int(expert), "k": top_k}
        queries.append(ask("fused_experts", dense, "", **sizes))
    return queries


def stored_format(source: ModelSource) -> str:
    """The format that most weight bytes have: a GGUF type such as Q4_1, or a dtype."""
    if source.format != "gguf":
        return source.config.dtype or "bfloat16"
    sizes: dict[str, int] = {}
    for tensor in GGUFFile(source.path).tensors.values():
        sizes[tensor.qtype] = sizes.get(tensor.qtype, 0) + int(tensor.data.nbytes)
    largest = max(sizes, key=lambda name: sizes[name])
    return {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}.get(largest, largest)
