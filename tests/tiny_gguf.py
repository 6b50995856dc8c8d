"""A tiny checkpoint as a GGUF file, converted the way llama.cpp does it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from tiny import make_tiny, reference_model

_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
}
_ARCHITECTURES = {
    "llama2": "llama",
    "llama3": "llama",
    "mixtral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3moe",
}


def _gguf_name(name: str) -> str:
    top = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    stem, _, leaf = name.rpartition(".")
    if stem in top:
        return f"{top[stem]}.{leaf}"
    match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", stem)
    assert match, name
    return f"blk.{match[1]}.{_NAMES[match[2]]}.{leaf}"


def _permute(values: NDArray[Any], heads: int) -> NDArray[Any]:
    """Halves of each head to neighbouring pairs, as llama.cpp's converter does for Llama."""
    dim = values.shape[0] // heads
    pairs = values.reshape(heads, 2, dim // 2, *values.shape[1:]).swapaxes(1, 2)
    return pairs.reshape(values.shape)


def _metadata(writer: gguf.GGUFWriter, config: Any, moe: bool) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    if moe:
        writer.add_expert_count(config.num_local_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        size = getattr(config, "moe_intermediate_size", config.intermediate_size)
        writer.add_expert_feed_forward_length(size)


def _tensors(model: Any, arch: str) -> dict[str, torch.Tensor]:
    """The model's parameters by GGUF name, experts stacked, each a view that can be written to."""
    out = {}
    for name, parameter in model.named_parameters():
        value = parameter.data
        if name.endswith("experts.gate_up_proj"):
            layer, half = name.split(".")[2], value.shape[1] // 2
            out[f"blk.{layer}.ffn_gate_exps.weight"] = value[:, :half]
            out[f"blk.{layer}.ffn_up_exps.weight"] = value[:, half:]
        elif name.endswith("experts.down_proj"):
            out[f"blk.{name.split('.')[2]}.ffn_down_exps.weight"] = value
        else:
            out[_gguf_name(name)] = value
    return out


def make_tiny_gguf(
    family: str, folder: Path, qtypes: dict[str, str], default: str = "Q8_0", **overrides: Any
) -> tuple[Path, Any]:
    """A file, and transformers' model that holds exactly the file's (dequantised) values.

    `qtypes` maps a part of a GGUF tensor name to its type; norms and routers are F32.
    """
    model = reference_model(make_tiny(family, folder / "hf", **overrides))
    arch = _ARCHITECTURES[family]
    path = folder / f"{family}.gguf"
    writer = gguf.GGUFWriter(path, arch)
    tensors = _tensors(model, arch)
    _metadata(writer, model.config, any("_exps" in name for name in tensors))
    heads = {
        "attn_q.": model.config.num_attention_heads,
        "attn_k.": model.config.num_key_value_heads,
    }
    for name, parameter in tensors.items():
        kind = next((q for part, q in qtypes.items() if part in name), default)
        if parameter.ndim == 1 or "ffn_gate_inp" in name:
            kind = "F32"
        qtype = gguf.GGMLQuantizationType[kind]
        values = parameter.float().numpy()
        # Dense types are given as they are, blocks as bytes with their type beside them.
        blocks = gguf.quants.quantize(values, qtype)
        parameter.copy_(torch.from_numpy(gguf.quants.dequantize(blocks, qtype)))
        for part, count in heads.items():
            if part in name and arch == "llama":
                blocks = _permute(blocks, count)
        writer.add_tensor(name, np.ascontiguousarray(blocks), raw_dtype=qtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, model
