"""Graph modes of models with windows, recurrent states and other mixers, on recorded operations.

All caches are NaN when a run begins: what is read without having been written shows.
"""

from __future__ import annotations

import dataclasses

import pytest
from harness import poison
from hub import hub_checkpoint
from runner.fake_graphs import with_graphs
from serving import Shared, generate, greedy, make_config, make_runner
from test_families import BLOCK_SIZES, SUPPORTED
from tiny import random_prompt, tiny_checkpoint

from atom.config.schema import Config
from atom.engine.core import EngineCore
from atom.engine.runner import graph_plan
from atom.engine.runner.model_runner import ModelRunner

# What is cut into pieces is dense: the reference's experts read values on the host, and a recording
# of its operations would repeat the routing that it saw.
PIECEWISE = ["qwen3_5", "deepseek_v3"]
OTHERS = ["mistral", "qwen2"]  # whose tiny checkpoints are not made by `hub`
CASES = [(family, "full") for family in [*SUPPORTED, *OTHERS]]
CASES += [(family, "full_and_piecewise") for family in PIECEWISE]
DENSE = {("deepseek_v3", "full_and_piecewise"): {"first_k_dense_replace": 99}}


def settings(family: str, mode: str, model: dict[str, int] | None = None, **more: object) -> Config:
    """`model` replaces keys of the checkpoint's config."""
    size = BLOCK_SIZES.get(family, 16)
    config = make_config(
        tiny_checkpoint(family) if family in OTHERS else hub_checkpoint(family, **(model or {})),
        **{  # type: ignore[arg-type]
            "level": 0,
            "max_num_seqs": 4,
            "max_model_len": 512,
            "block_size": size,
            "num_blocks": 24 if size == 128 else 60,
            **more,
        },
    )
    compiling = dataclasses.replace(
        config.compile, cudagraph_mode=mode, cudagraph_capture_sizes=(1, 2, 3)
    )
    return dataclasses.replace(config, compile=compiling)


def poisoned(runner: ModelRunner) -> ModelRunner:
    for layer in runner.model.cache_layers():
        for spec in layer.cache_specs():
            poison(getattr(layer, spec.name))
    return runner


def test_a_poisoned_cache_shows() -> None:
    """The whole test would be worth nothing if reading NaN changed no token."""
    runner = poisoned(make_runner(settings("llama3", "none")))
    assert all(bool(layer.k_cache.isnan().all()) for layer in runner.model.cache_layers())


@pytest.mark.parametrize(("family", "mode"), CASES)
def test_tokens_equal_eager_ones(family: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_plan, "TOKEN_SIZES", (8, 40))
    lengths, new = ((30, 150, 61, 1, 44), 36) if family != "deepseek_v4" else ((130, 61, 9), 12)
    prompts = [random_prompt(n, seed=n) for n in lengths]
    params = [greedy(new + i % 2) for i in range(len(prompts))]
    model = DENSE.get((family, mode))
    eager = poisoned(make_runner(settings(family, "none", model)))
    plain = generate(EngineCore(settings(family, "none", model), eager), prompts, params)
    config = settings(family, mode, model, overlap=True, policy="mixed", max_num_batched_tokens=40)
    runner = poisoned(with_graphs(config, monkeypatch))
    core = EngineCore(config, runner)
    for _ in range(2):  # the second time over cached prefixes
        again = generate(core, prompts, params)
        assert [r.token_ids for r in again] == [r.token_ids for r in plain]
    core.check_invariants()
    kinds = {name.partition(" ")[0] for name in runner.graph_counts}
    assert kinds >= {"decode", mode.rpartition("_")[2]}
    assert sum(r.num_cached_tokens for r in again) >= 128


@pytest.mark.parametrize("family", ["qwen3_5", "gpt_oss"])
def test_a_preempted_sequence_begins_anew(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its row, and with it the slot of its state, has been another's meanwhile."""
    monkeypatch.setattr(graph_plan, "TOKEN_SIZES", (8, 40))
    prompts = [random_prompt(n, seed=n) for n in (40, 33, 50, 45)]
    eager = make_runner(settings(family, "none"))
    plain = generate(EngineCore(settings(family, "none"), eager), prompts, greedy(40))
    config = settings(family, "full", overlap=True, num_blocks=16)
    runner = poisoned(with_graphs(config, monkeypatch))
    core = EngineCore(config, Shared(runner, 16))
    again = generate(core, prompts, greedy(40))
    assert [r.token_ids for r in again] == [r.token_ids for r in plain]
    assert core.stats().preemptions > 0
