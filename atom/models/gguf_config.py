"""GGUF metadata told in the words of a Hugging Face config, so that models know one language."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from atom.errors import ModelError
from atom.models.gguf import GGUFFile, dequantize
from atom.models.hf_config import HFConfig, token_ids

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3moe": "Qwen3MoeForCausalLM",
}
# general.sampling.* -> generation_config.json
_SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}
# Llama 3.1 stretches its rope by a table of factors, made from these constants of its makers.
_LLAMA3_LOW, _LLAMA3_HIGH, _LLAMA3_ORIGINAL = 1.0, 4.0, 8192


class _Metadata:
    """Typed access to the keys of one architecture (`{arch}.key`)."""

    def __init__(self, file: GGUFFile, arch: str) -> None:
        self.file, self.arch = file, arch

    def get(self, key: str) -> Any:
        return self.file.metadata.get(f"{self.arch}.{key}")

    def size(self, key: str, default: int | None = None) -> int:
        value = self.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ModelError(
                f"{self.file.path}: {self.arch}.{key} must be a positive integer, got {value!r}"
            )
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not value > 0:
            raise ModelError(
                f"{self.file.path}: {self.arch}.{key} must be a positive number, got {value!r}"
            )
        return float(value)


def gguf_architecture(file: GGUFFile) -> str:
    """`general.architecture`, if this module can translate it."""
    arch = file.metadata.get("general.architecture")
    if arch not in ARCHITECTURES:
        raise ModelError(
            f"{file.path}: GGUF architecture {arch!r} is not supported;"
            f" atom reads {', '.join(sorted(ARCHITECTURES))}"
        )
    return str(arch)


def config_from_gguf(file: GGUFFile) -> HFConfig:
    """The model's config. Weights of `llama` files have their q and k rows in llama.cpp's order
    (rotary pairs interleaved); whoever loads them must know."""
    split = file.metadata.get("split.count", 1)
    if isinstance(split, int) and split > 1:
        raise ModelError(
            f"{file.path} is one of {split} parts; merge them with `llama-gguf-split --merge`"
        )
    arch = gguf_architecture(file)
    meta = _Metadata(file, arch)
    heads = meta.size("attention.head_count")
    hidden = meta.size("embedding_length")
    head_dim = meta.size("attention.key_length", max(1, hidden // heads))
    if meta.size("attention.value_length", head_dim) != head_dim:
        raise ModelError(f"{file.path}: keys and values of different size are not supported")
    config: dict[str, Any] = {
        "architectures": [ARCHITECTURES[arch]],
        "model_type": arch,
        "hidden_size": hidden,
        "intermediate_size": meta.size("feed_forward_length", 1),
        "num_hidden_layers": meta.size("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": meta.size("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "vocab_size": file["token_embd.weight"].shape[0],
        "max_position_embeddings": meta.size("context_length"),
        "rms_norm_eps": meta.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": meta.number("rope.freq_base", 10000.0),
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in file,
        "attention_bias": "blk.0.attn_q.bias" in file,
        "mlp_bias": "blk.0.ffn_up.bias" in file,
        "bos_token_id": file.metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": list(gguf_eos_token_ids(file)),
    }
    config["rope_scaling"] = _rope_scaling(meta, config)
    rotary = meta.size("rope.dimension_count", head_dim)
    if rotary != head_dim:
        config["partial_rotary_factor"] = rotary / head_dim
    if meta.get("attention.sliding_window"):
        config["sliding_window"] = meta.size("attention.sliding_window")
    _add_experts(meta, config)
    return HFConfig(config, str(file.path))


def gguf_eos_token_ids(file: GGUFFile) -> tuple[int, ...]:
    """The ids that end a turn or a text, in the file's own words."""
    keys = ("eos_token_id", "eot_token_id", "eom_token_id")
    found = [token_ids(file.metadata.get(f"tokenizer.ggml.{key}")) for key in keys]
    return tuple(dict.fromkeys(i for ids in found for i in ids))


def generation_config_from_gguf(file: GGUFFile) -> dict[str, Any]:
    """What a `generation_config.json` would say: end ids and the maker's sampling defaults."""
    config: dict[str, Any] = {"eos_token_id": list(gguf_eos_token_ids(file))}
    for key, name in _SAMPLING.items():
        value = file.metadata.get(f"general.sampling.{key}")
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            config[name] = value
    return config


def _add_experts(meta: _Metadata, config: dict[str, Any]) -> None:
    if not meta.get("expert_count"):
        return
    experts, used = meta.size("expert_count"), meta.size("expert_used_count")
    config["num_experts_per_tok"] = used
    if meta.arch == "llama":
        config["architectures"] = ["MixtralForCausalLM"]
        config["num_local_experts"] = experts
    else:
        config["num_experts"] = experts
        config["moe_intermediate_size"] = meta.size("expert_feed_forward_length")
        config["norm_topk_prob"] = True  # the only form that qwen3moe files have
        config["decoder_sparse_step"] = 1
        config["mlp_only_layers"] = []


def _rope_scaling(meta: _Metadata, config: dict[str, Any]) -> dict[str, Any] | None:
    file = meta.file
    if "rope_factors_long.weight" in file:
        raise ModelError(f"{file.path}: longrope scaling is not supported")
    if "rope_freqs.weight" in file:
        return _llama3_scaling(file, config)
    kind = meta.get("rope.scaling.type")
    if kind in (None, "none"):
        return None
    if kind not in ("linear", "yarn"):
        raise ModelError(f"{file.path}: rope scaling {kind!r} is not supported")
    scaling = {"rope_type": kind, "factor": meta.number("rope.scaling.factor")}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = meta.size(
            "rope.scaling.original_context_length"
        )
        if meta.get("rope.scaling.attn_factor") is not None:
            scaling["attention_factor"] = meta.number("rope.scaling.attn_factor")
    return scaling


def _llama3_scaling(file: GGUFFile, config: dict[str, Any]) -> dict[str, Any]:
    """The factors of `rope_freqs.weight` as the four numbers they were made from.

    The file holds only the result; the numbers are proven by making it again.
    """
    factors = dequantize(file["rope_freqs.weight"]).reshape(-1)
    factor = float(factors.max())
    expected = _llama3_factors(config["rope_theta"], 2 * len(factors), factor)
    if not np.allclose(factors, expected, rtol=1e-3):
        raise ModelError(
            f"{file.path}: rope_freqs.weight is not Llama 3's scaling; other tables of factors"
            " are not supported"
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": _LLAMA3_LOW,
        "high_freq_factor": _LLAMA3_HIGH,
        "original_max_position_embeddings": _LLAMA3_ORIGINAL,
    }


def _llama3_factors(theta: float, dim: int, factor: float) -> NDArray[np.float64]:
    """[dim / 2]: by how much each rotary frequency is divided."""
    wavelength = 2 * np.pi * theta ** (np.arange(0, dim, 2) / dim)
    turns = _LLAMA3_ORIGINAL / wavelength  # full turns within the original context
    smooth = np.clip((turns - _LLAMA3_LOW) / (_LLAMA3_HIGH - _LLAMA3_LOW), 0.0, 1.0)
    factors: NDArray[np.float64] = 1.0 / ((1.0 - smooth) / factor + smooth)
    return factors
