"""Architecture name of a config -> the class that implements it, imported on use."""

from __future__ import annotations

import importlib
from typing import Any

from atom.errors import ModelError

ARCHITECTURES: dict[str, str] = {
    "LlamaForCausalLM": "atom.models.llama:LlamaForCausalLM",
    "MistralForCausalLM": "atom.models.llama:MistralForCausalLM",
    "MixtralForCausalLM": "atom.models.mixtral:MixtralForCausalLM",
    "Qwen2ForCausalLM": "atom.models.qwen2:Qwen2ForCausalLM",
    "Qwen3ForCausalLM": "atom.models.qwen3:Qwen3ForCausalLM",
    "Qwen3MoeForCausalLM": "atom.models.qwen3_moe:Qwen3MoeForCausalLM",
}


def resolve(architecture: str) -> Any:
    """The model class (a `CausalLM`); `ModelError` lists what exists if there is none."""
    if architecture not in ARCHITECTURES:
        raise ModelError(
            f"architecture {architecture!r} is not supported; supported: "
            + ", ".join(sorted(ARCHITECTURES))
        )
    module, name = ARCHITECTURES[architecture].split(":")
    return getattr(importlib.import_module(module), name)
