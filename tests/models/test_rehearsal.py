"""Every recipe of the project over a tiny model of its architecture: `atom serve RECIPE --tiny`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from serving import generate, greedy, make_runner

from atom.config import resolve_with_sources
from atom.engine.core import EngineCore
from atom.engine.rehearsal import Rehearsal, rehearse
from atom.engine.text.tokenizer import load_tokenizer
from atom.models.footprint import count_parameters
from atom.models.hf_config import HFConfig
from atom.models.inventory import mtp_layers
from atom.models.published import published_config
from atom.models.source import resolve_source
from atom.models.tiny import tiny_config

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))


def rehearsal_of(recipe: Path, folder: Path, gpus: int = 0, **flags: Any) -> Rehearsal:
    resolved = resolve_with_sources(recipe, {}, {"device": "cpu", **flags})
    return rehearse(resolved, folder, num_gpus=gpus)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_rehearsed(recipe: Path, tmp_path: Path) -> None:
    """Loaded as published, asked by its template, cached and asked again: the same answer."""
    made = rehearsal_of(recipe, tmp_path, dtype="float32", num_threads=1)
    config = made.resolved.config
    source = resolve_source(config.model)
    tokenizer = load_tokenizer(source)
    text = tokenizer.apply_chat_template([{"role": "user", "content": "How long? " * 12}])
    prompt = tokenizer.encode(text)
    runner = make_runner(config)
    core = EngineCore(config, runner)
    (first,) = generate(core, [prompt], greedy(6))
    again, other = generate(core, [prompt, prompt[:70]], greedy(6))
    assert len(first.token_ids) == 6
    assert again.token_ids == first.token_ids
    assert len(other.token_ids) == 6


@pytest.fixture
def r1(tmp_path: Path) -> Rehearsal:
    (recipe,) = (path for path in RECIPES if path.stem == "deepseek-r1")
    return rehearsal_of(recipe, tmp_path)


def test_what_is_changed_is_said(r1: Rehearsal) -> None:
    first, *rest = r1.notes
    assert first.startswith(
        "DeepseekV3ForCausalLM in the shape of deepseek-ai/DeepSeek-R1: 5 of 61"
    )
    assert rest == [
        "tensor_parallel_size 8 -> 1: what this machine has GPUs for",
        "max_model_len 32768 -> 2048",
        "weights in bfloat16: quantised safetensors (fp8: FP8 in blocks of 128 x 128) are not "
        "supported yet",
    ]
    assert {str(r1.resolved.sources[k]) for k in ("model", "max_model_len")} == {"--tiny"}
    assert r1.resolved.config.scheduler.max_num_seqs == 256
    assert r1.resolved.config.model.served_model_name == ("DeepSeek-R1",)


@pytest.mark.parametrize(("gpus", "ranks"), [(0, 1), (2, 2), (3, 2), (8, 4)])
def test_ranks_are_those_of_the_machine(gpus: int, ranks: int, tmp_path: Path) -> None:
    (recipe,) = (path for path in RECIPES if path.stem == "deepseek-r1")
    made = rehearsal_of(recipe, tmp_path, gpus)
    assert made.resolved.config.parallel.tensor_parallel_size == ranks


def test_the_pattern_of_layers_is_kept() -> None:
    def small(name: str) -> HFConfig:
        published = published_config(name)
        assert published is not None
        return HFConfig(json.loads(json.dumps(tiny_config(published))))

    v4 = small("deepseek-ai/DeepSeek-V4-Flash")
    assert (v4.compress_ratios, mtp_layers(v4)) == ([0, 0, 4, 128, 4, 0], 1)
    assert (v4.num_hash_layers, v4.hc_mult) == (2, 4)
    next_80b = small("Qwen/Qwen3-Next-80B-A3B-Instruct")
    assert (next_80b.num_hidden_layers, next_80b.full_attention_interval) == (5, 4)
    assert next_80b.linear_num_value_heads == 2 * next_80b.linear_num_key_heads
    r1 = small("deepseek-ai/DeepSeek-R1")
    assert (r1.first_k_dense_replace, r1.n_group, r1.topk_group) == (3, 8, 4)
    assert (r1.n_routed_experts, r1.num_experts_per_tok) == (16, 8)
    qwen = small("Qwen/Qwen3-235B-A22B")
    assert qwen.num_attention_heads == 16 * qwen.num_key_value_heads
    for config in (v4, next_80b, r1, qwen):
        assert count_parameters(config) < 1e7
