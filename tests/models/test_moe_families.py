"""What configurations of GPT-OSS, GLM-4.5 and MiniMax-M2 may say beside the usual."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import PagedModel
from hub import FAMILIES, hub_checkpoint, hub_reference
from test_families import assert_near, load

from atom.config.schema import Config, ModelConfig
from atom.errors import ModelError
from atom.models.loader import load_model
from atom.models.source import resolve_source

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "GLM-4.5-Air: heads are not normed": ("glm4_moe", {"use_qk_norm": False}),
    "GLM-4.5 in groups": ("glm4_moe", {"n_group": 4, "topk_group": 2, "norm_topk_prob": False}),
    "two experts for all": ("glm4_moe", {"n_shared_experts": 2, "first_k_dense_replace": 2}),
    "heads fully rotated": ("minimax_m2", {"rotary_dim": 64}),
    "another limit": ("gpt_oss", {"swiglu_limit": 1.5, "num_experts_per_tok": 2}),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants(name: str) -> None:
    family, changes = VARIANTS[name]
    path = hub_checkpoint(family, new_tokens=2, **changes)
    found = hub_reference(path)
    ids = [*found["input_ids"].tolist(), *found["greedy_ids"].tolist()]
    assert_near(PagedModel(load(path, 4), 4).logits(ids, [50, 1, 9]), found["logits"])


def dummy(folder: Path, family: str, **changes: Any) -> Any:
    config = {**FAMILIES[family]["config"], **changes}
    kept = {key: value for key, value in config.items() if value != "absent"}
    (folder / "config.json").write_text(json.dumps(kept))
    asked = Config(model=ModelConfig(model=str(folder), dtype="float32", load_dummy=True))
    cpu = torch.device("cpu")
    return load_model(resolve_source(asked.model), asked, cpu, torch.float32)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("gpt_oss", {"swiglu_alpha": 1.0}, r"swiglu_alpha 1.0 .* 1.702 is"),
        ("minimax_m2", {"attn_type_list": [1, 0, 1]}, r"attn_type_list \[0, 1\]"),
        ("minimax_m2", {"scoring_func": "softmax"}, "scoring_func 'softmax'"),
        ("minimax_m2", {"shared_intermediate_size": 64}, "shared expert"),
        ("minimax_m2", {"qk_norm_type": "per_head"}, "qk_norm_type 'per_head'"),
        ("glm4_moe", {"n_routed_experts": 0}, "n_routed_experts must be a positive integer"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_supported_is_named(
    family: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=message):
        dummy(tmp_path, family, **changes)


def test_windows_alternate_where_the_config_does_not_list_them(tmp_path: Path) -> None:
    model = dummy(tmp_path, "gpt_oss", layer_types="absent")
    assert [layer.window for layer in model.attention_layers()] == [16, 0, 16, 0]
    assert all(layer.sinks is not None for layer in model.attention_layers())
