"""The support matrix: every yes has its test, every no is refused, the page is the table."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from harness import PagedModel
from hub import FAMILIES as HUB
from hub import hub_checkpoint
from test_families import BLOCK_SIZES, CPU, SUPPORTED, reference
from tiny import random_prompt, reference_greedy, tiny_checkpoint

from atom.config.schema import Config, EngineConfig, ModelConfig
from atom.engine.llm import LLM
from atom.engine.sampling_params import SamplingParams
from atom.errors import ModelError
from atom.models import gguf_config
from atom.models.loader import load_model
from atom.models.published import published_config
from atom.models.registry import ARCHITECTURES
from atom.models.source import resolve_source
from atom.models.stored import LOADED, why_not_loaded
from atom.models.support_matrix import FAMILIES, FEATURES, NO, YES, cell, page

ROOT = Path(__file__).parents[2]
CELLS = [(family, feature) for family in FAMILIES for feature in FEATURES]


@functools.cache
def functions(path: str) -> dict[str, ast.FunctionDef]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("claim", sorted({cell(*c).why for c in CELLS if cell(*c).word == YES}))
def test_every_yes_names_a_test_that_is_there(claim: str) -> None:
    """By reading the files: the function is there, and its cases come from where the family is."""
    match = re.fullmatch(r"(tests/[\w/]+\.py)::(test_\w+)(?:\[([\w-]+)\])?", claim)
    assert match is not None, claim
    path, name, case = match.groups()
    assert name in functions(path), claim
    if case is None:
        return
    function = functions(path)[name]
    arguments = {argument.arg for argument in function.args.args}
    assert "family" in arguments, claim
    family = case.partition("-")[0]
    text = (ROOT / path).read_text(encoding="utf-8")
    named = f'"{family}"' in text
    everywhere = "import FAMILIES" in text or "SUPPORTED" in text or "    FAMILIES,\n" in text
    assert named or everywhere, claim


def test_every_architecture_has_one_row() -> None:
    names = [name for family in FAMILIES for name in family.architectures]
    assert sorted(names) == sorted(ARCHITECTURES)
    for family in FAMILIES:
        if "hub" in family.sets.split():
            assert HUB[family.name]["config"]["architectures"] == list(family.architectures)


def test_every_no_is_refused() -> None:
    # Mixtral's and Mistral's files name themselves llama.
    read = {*gguf_config.ARCHITECTURES.values(), "MixtralForCausalLM", "MistralForCausalLM"}
    for family in FAMILIES:
        quantised = any(name in LOADED for name in family.architectures)
        assert (cell(family, "quantised").word != NO) == quantised, family.title
        gguf = any(name in read for name in family.architectures)
        assert (cell(family, "GGUF").word != NO) == gguf, family.title


def test_the_page_is_up_to_date() -> None:
    written = (ROOT / "docs" / "reference" / "support.md").read_text(encoding="utf-8")
    assert written == page(), "run: python -m atom.models.support_matrix"


def logits(family: str, kv_dtype: str) -> torch.Tensor:
    size = BLOCK_SIZES.get(family, 16)
    config = Config(
        model=ModelConfig(model=str(hub_checkpoint(family)), dtype="float32"),
        engine=EngineConfig(kv_cache_block_size=size, kv_cache_dtype=kv_dtype),
    )
    model: Any = load_model(resolve_source(config.model), config, CPU, torch.float32)
    prompt, after, _ = reference(family)
    return PagedModel(model, size).logits([*prompt, *after], [37, 1, 1, 9])


@pytest.mark.parametrize("family", SUPPORTED)
def test_a_float8_cache(family: str) -> None:
    """Rounded to 8 bits, not lost: most tokens' logits stay near those of an exact cache."""
    _, _, want = reference(family)
    got = logits(family, "fp8")
    assert bool(got.isfinite().all())
    near = torch.cosine_similarity(got, want, dim=-1)
    assert float(near.median()) > 0.97
    assert not torch.allclose(got, want, atol=1e-4), "the cache is float8 indeed"


# Families without a checkpoint among those of the hubs.
LOCAL = ["mistral", "qwen2"]


@pytest.mark.parametrize("family", LOCAL)
def test_a_prefix_is_reused(family: str) -> None:
    """Prompts longer than the window, in chunks and from the cache, give transformers' tokens."""
    path, prompt = tiny_checkpoint(family), random_prompt(75)
    with LLM(
        str(path),
        dtype="float32",
        kv_cache_dtype="fp32",
        device="cpu",
        num_threads=1,
        max_model_len=128,
        max_num_seqs=2,
        max_num_batched_tokens=32,
        kv_cache_block_size=16,
        num_kvcache_blocks=24,
    ) as llm:
        greedy = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
        first, again = (llm.generate([prompt], greedy)[0] for _ in range(2))
    want = reference_greedy(path, prompt, 8)
    assert first.outputs[0].token_ids == again.outputs[0].token_ids == want
    assert (first.num_cached_tokens, again.num_cached_tokens) == (0, 64)


@pytest.mark.parametrize("family", LOCAL)
def test_a_float8_cache_of_plain_attention(family: str) -> None:
    ids, made = random_prompt(60), []
    for kv_dtype in ("fp32", "fp8"):
        config = Config(
            model=ModelConfig(model=str(tiny_checkpoint(family)), dtype="float32"),
            engine=EngineConfig(kv_cache_block_size=16, kv_cache_dtype=kv_dtype),
        )
        model = load_model(resolve_source(config.model), config, CPU, torch.float32)
        made.append(PagedModel(model).logits(ids, [41, 1, 9]))
    near = torch.cosine_similarity(*made, dim=-1)
    assert 0.97 < float(near.median()) < 1 - 1e-6


def test_quantised_weights_are_refused_in_the_words_of_the_table() -> None:
    reason = cell(next(f for f in FAMILIES if f.name == "minimax_m2"), "quantised").why
    for name in ("MiniMaxAI/MiniMax-M2", "moonshotai/Kimi-K2.5", "deepseek-ai/DeepSeek-V4-Flash"):
        config = published_config(name)
        assert config is not None
        assert "are not supported yet" in why_not_loaded(config)
    assert "are not supported yet" in reason
    file = SimpleNamespace(path="f.gguf", metadata={"general.architecture": "deepseek2"})
    with pytest.raises(ModelError, match="is not supported; atom reads llama"):
        gguf_config.config_from_gguf(file)  # type: ignore[arg-type]
