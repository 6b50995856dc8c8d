"""Published configurations of the models that recipes name, so that a plan needs no network.

Facts only: each file is a hub's config.json without what neither a plan nor a rehearsal reads. A
model is never run by these: its own files say what it is.
"""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from importlib import resources
from typing import Any

from atom.config.schema import ModelConfig
from atom.models.embedded import EMBEDDED
from atom.models.hf_config import HFConfig
from atom.models.source import resolve_source

# Models whose configuration, as far as it is kept here, is another one's.
_SAME = {
    "deepseek-ai/DeepSeek-R1-0528": "deepseek-ai/DeepSeek-R1",
    "deepseek-ai/DeepSeek-V3": "deepseek-ai/DeepSeek-R1",
    "deepseek-ai/DeepSeek-V2-Lite": "deepseek-ai/DeepSeek-V2-Lite-Chat",
    "meta-llama/Llama-3.1-8B": "meta-llama/Llama-3.1-8B-Instruct",
    "meta-llama/Llama-3.1-70B": "meta-llama/Llama-3.1-70B-Instruct",
    "meta-llama/Llama-3.3-70B-Instruct": "meta-llama/Llama-3.1-70B-Instruct",
    "mistralai/Mixtral-8x7B-v0.1": "mistralai/Mixtral-8x7B-Instruct-v0.1",
    "Qwen/Qwen3-Next-80B-A3B-Thinking": "Qwen/Qwen3-Next-80B-A3B-Instruct",
}


@cache
def _files() -> dict[str, Any]:
    """Hub id -> file; "/" is "--" in a file's name."""
    folder = resources.files("atom.models") / "published"
    return {
        file.name.removesuffix(".json").replace("--", "/"): file
        for file in sorted(folder.iterdir(), key=lambda file: file.name)
        if file.name.endswith(".json")
    }


def find_config(model: ModelConfig) -> tuple[HFConfig, str]:
    """(configuration, name) of a model as it is kept here, on this machine, or on the hub, in this
    order. Fetches no weights. Raises `ModelError`."""
    name = model.model or f"HuggingFaceTB/{EMBEDDED.name}"
    known = published_config(name)
    if known is not None:
        return known, model.model or EMBEDDED.name
    source = resolve_source(dataclasses.replace(model, load_dummy=True))
    return source.config, source.name


def published_names() -> list[str]:
    return sorted([*_files(), *_SAME])


def published_config(name: str) -> HFConfig | None:
    """The configuration of a hub id; None for one that is not kept here."""
    file = _files().get(_SAME.get(name, name))
    if file is None:
        return None
    return HFConfig(json.loads(file.read_text(encoding="utf-8")), f"the published {name}")
