"""Names of GGUF tensors -> the names of our modules (which are Hugging Face's)."""

from __future__ import annotations

import re

_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.gate_proj",
    "ffn_up_exps": "mlp.experts.up_proj",
    "ffn_down_exps": "mlp.experts.down_proj",
}
# Old files hold one tensor per expert, e.g. blk.0.ffn_gate.3.weight.
_NAME = re.compile(r"blk\.(\d+)\.(\w+?)(?:\.(\d+))?\.(weight|bias)")
ROPE_FREQS = "rope_freqs.weight"  # rope scaling, which the config has already told


def module_name(name: str) -> str | None:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`; None if unknown."""
    if name in _TOP:
        return _TOP[name]
    match = _NAME.fullmatch(name)
    if match is None or match[2] not in _BLOCK:
        return None
    layer, kind, expert, leaf = match.groups()
    module = _BLOCK[kind]
    if expert is not None:
        module = module.replace("mlp.", f"mlp.experts.{expert}.")
    return f"model.layers.{layer}.{module}.{leaf}"
