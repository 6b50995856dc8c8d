"""Architecture name of a config -> the class that implements it, imported on use."""

from __future__ import annotations

import difflib
import importlib
from typing import Any

from atom.errors import ModelError

ARCHITECTURES: dict[str, str] = {
    "DeepseekV2ForCausalLM": "atom.models.deepseek_v2:DeepseekV2ForCausalLM",
    "DeepseekV32ForCausalLM": "atom.models.deepseek_v32:DeepseekV32ForCausalLM",
    "DeepseekV3ForCausalLM": "atom.models.deepseek_v2:DeepseekV3ForCausalLM",
    "DeepseekV4ForCausalLM": "atom.models.deepseek_v4:DeepseekV4ForCausalLM",
    "Glm4MoeForCausalLM": "atom.models.glm4_moe:Glm4MoeForCausalLM",
    "GlmMoeDsaForCausalLM": "atom.models.deepseek_v32:GlmMoeDsaForCausalLM",
    "GptOssForCausalLM": "atom.models.gpt_oss:GptOssForCausalLM",
    "KimiK25ForConditionalGeneration": "atom.models.kimi_k2:KimiK25ForConditionalGeneration",
    "LlamaForCausalLM": "atom.models.llama:LlamaForCausalLM",
    "MiniMaxM2ForCausalLM": "atom.models.minimax_m2:MiniMaxM2ForCausalLM",
    "MistralForCausalLM": "atom.models.llama:MistralForCausalLM",
    "MixtralForCausalLM": "atom.models.mixtral:MixtralForCausalLM",
    "Qwen2ForCausalLM": "atom.models.qwen2:Qwen2ForCausalLM",
    "Qwen3ForCausalLM": "atom.models.qwen3:Qwen3ForCausalLM",
    "Qwen3MoeForCausalLM": "atom.models.qwen3_moe:Qwen3MoeForCausalLM",
    "Qwen3NextForCausalLM": "atom.models.qwen3_next:Qwen3NextForCausalLM",
    "Qwen3_5ForConditionalGeneration": "atom.models.qwen3_5:Qwen3_5ForConditionalGeneration",
    "Qwen3_5MoeForConditionalGeneration": "atom.models.qwen3_5:Qwen3_5MoeForConditionalGeneration",
}


def check_architecture(architecture: str) -> None:
    """Raise `ModelError`, which lists what exists, for a name that is not here."""
    if architecture not in ARCHITECTURES:
        near = difflib.get_close_matches(architecture, ARCHITECTURES, n=3, cutoff=0.75)
        hint = f"; near it are {', '.join(near)}" if near else ""
        raise ModelError(
            f"architecture {architecture!r} is not supported{hint}; supported: "
            + ", ".join(sorted(ARCHITECTURES))
        )


def resolve(architecture: str) -> Any:
    """The model class (a `CausalLM`); `ModelError` lists what exists if there is none."""
    check_architecture(architecture)
    module, name = ARCHITECTURES[architecture].split(":")
    return getattr(importlib.import_module(module), name)
