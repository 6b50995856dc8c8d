"""transformers' model of a GGUF file's dequantised weights: what text must equal."""

from __future__ import annotations

from typing import Any

import torch

from atom.models.gguf import GGUFFile, dequantize
from atom.models.gguf_names import module_name


def transformers_llama(file: GGUFFile) -> Any:
    """transformers' Llama with the values of the embedded file, rows back in its own order."""
    import transformers

    meta = file.metadata
    heads, kv_heads = meta["llama.attention.head_count"], meta["llama.attention.head_count_kv"]
    config = transformers.LlamaConfig(
        vocab_size=file["token_embd.weight"].shape[0],
        hidden_size=meta["llama.embedding_length"],
        intermediate_size=meta["llama.feed_forward_length"],
        num_hidden_layers=meta["llama.block_count"],
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=meta["llama.context_length"],
        rms_norm_eps=meta["llama.attention.layer_norm_rms_epsilon"],
        rope_theta=meta["llama.rope.freq_base"],
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    state = {}
    for tensor in file.tensors.values():
        value = torch.from_numpy(dequantize(tensor))
        name = module_name(tensor.name)
        assert name is not None
        count = {"attn_q": heads, "attn_k": kv_heads}.get(tensor.name.split(".")[-2])
        if count:
            rows, cols = value.shape
            halves = value.view(count, rows // count // 2, 2, cols).transpose(1, 2)
            value = halves.reshape(rows, cols)
        state[name] = value
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, strict=True, assign=True)
    model.model.rotary_emb = type(model.model.rotary_emb)(config)  # its buffers were on meta too
    return model.eval()
