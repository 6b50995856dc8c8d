"""Two ranks on CPU: rank 0 here, rank 1 in its own process."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist
from serving import generate, greedy, make_config
from tiny import make_tiny, random_prompt, tiny_checkpoint

from atom.config.schema import Config, ParallelConfig, ProfileConfig
from atom.engine.core import EngineCore
from atom.engine.messages import GenerateRequest
from atom.engine.plan import NewRow, RowBlocks, StateCopy, StepPlan
from atom.engine.runner import plan_wire
from atom.engine.runner.model_runner import ModelRunner
from atom.engine.runner.tp import TensorParallelRunner, make_runner
from atom.engine.sampling_params import SamplingParams
from atom.errors import EngineDeadError, ModelError, RequestError
from atom.models.source import resolve_source

PROMPTS = [random_prompt(n, seed=n) for n in (1, 5, 17, 40, 64)]
PARAMS = [
    greedy(40),
    SamplingParams(seed=3, max_tokens=40, ignore_eos=True, top_p=0.8),
    greedy(40, logprobs=2, prompt_logprobs=1),
    greedy(40, repetition_penalty=1.2),
    greedy(40, prompt_logprobs=1, logprobs_start=50),
]
SCHEDULE = {"num_blocks": 7, "max_num_batched_tokens": 40, "max_prefill_chunk": 16}


def config_of(path: Path, size: int, **schedule: object) -> Config:
    config = make_config(path, **schedule)  # type: ignore[arg-type]
    return dataclasses.replace(config, parallel=ParallelConfig(tensor_parallel_size=size))


def runner_of(path: Path, size: int, **schedule: object) -> tuple[Config, ModelRunner]:
    config = config_of(path, size, **schedule)
    return config, make_runner(config, resolve_source(config.model))


@pytest.fixture
def ended() -> Iterator[None]:
    """Whatever a test does, no process group is left behind."""
    yield
    assert not dist.is_initialized()


@pytest.mark.parametrize("family", ["llama3", "mixtral"])
def test_two_ranks_give_the_tokens_of_one(family: str, ended: None) -> None:
    """Through chunks, preemption and overlap, greedy and seeded."""
    path = tiny_checkpoint(family)
    config, runner = runner_of(path, 1)
    expected = generate(EngineCore(config, runner), PROMPTS, PARAMS)
    config, runner = runner_of(path, 2, overlap=True, **SCHEDULE)
    try:
        assert isinstance(runner, TensorParallelRunner)
        assert runner.model.attention_layers()[0].num_kv_heads == 1
        core = EngineCore(config, runner)
        for _ in range(2):
            got = generate(core, PROMPTS, PARAMS)
            assert [r.token_ids for r in got] == [r.token_ids for r in expected]
        ranked = zip(got[2].logprobs, expected[2].logprobs, strict=True)
        assert all(a.token_ids == b.token_ids and a.rank == b.rank for a, b in ranked)
        scored = zip(got[4].prompt_logprobs or [], expected[4].prompt_logprobs or [], strict=True)
        pairs = [(a, b) for a, b in scored if a is not None and b is not None]
        assert len(pairs) == 64 - 50
        for a, b in pairs:
            assert a.token_ids == b.token_ids
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)
        assert core.stats().preemptions > 0
    finally:
        runner.shutdown()


def run_out(core: EngineCore) -> None:
    while core.has_work:
        core.step()


def test_a_worker_s_death_ends_the_engine(ended: None) -> None:
    config, runner = runner_of(tiny_checkpoint("llama3"), 2)
    assert isinstance(runner, TensorParallelRunner)
    try:
        core = EngineCore(config, runner)
        core.add(GenerateRequest("a", [1, 2, 3], greedy(500)))
        for _ in range(3):
            core.step()
        os.kill(runner.worker_pids[0], signal.SIGKILL)
        with pytest.raises(EngineDeadError, match=r"^tensor-parallel rank 1 ended with signal 9$"):
            run_out(core)
    finally:
        runner.shutdown()


def test_every_rank_writes_its_trace(tmp_path: Path, ended: None) -> None:
    """Twice, the first time with a rank that cannot write: its failure is said, and serving goes
    on."""
    config = config_of(tiny_checkpoint("llama3"), 2)
    profile = ProfileConfig(torch_profiler_dir=str(tmp_path), mark_trace=True)
    config = dataclasses.replace(config, profile=profile)
    runner = make_runner(config, resolve_source(config.model))
    try:
        core = EngineCore(config, runner)
        (tmp_path / "rank_1").touch()  # a file where rank 1 wants its folder
        core.call("start_profile", ["a"])
        generate(core, PROMPTS[:1], PARAMS[0])
        with pytest.raises(
            RequestError, match=r"^rank 1: the trace could not be written: .*exists"
        ):
            core.call("stop_profile", [])()
        (tmp_path / "rank_1").unlink()
        core.call("start_profile", ["b"])
        generate(core, PROMPTS[:1], PARAMS[0])
        paths = core.call("stop_profile", [])()
        assert [path[len(str(tmp_path)) :][:8] for path in paths] == ["/rank_0/", "/rank_1/"]
        for rank, path in enumerate(paths):
            with gzip.open(path) as file:
                trace = json.load(file)
            assert trace["atom"]["rank"] == rank
            assert any(event.get("cat") == "cpu_op" for event in trace["traceEvents"])
            names = [event.get("name", "") for event in trace["traceEvents"]]
            assert sum(name.startswith("decode[bs=1 tok=1 d=1 sk=") for name in names) == 40
            assert names.count("model.layers.2.mlp.down_proj") == 40
            facts = trace["atom"]["modules"]["model.layers.0.self_attn.attn"]
            assert (facts["num_kv_heads"], trace["atom"]["tp_size"]) == (1, 2)
    finally:
        runner.shutdown()


def test_a_layout_that_does_not_divide_is_refused(tmp_path: Path, ended: None) -> None:
    path = make_tiny("llama3", tmp_path, intermediate_size=255)
    with pytest.raises(ModelError, match="tensor_parallel_size 2 does not divide"):
        runner_of(path, 2)


def test_plans_survive_the_wire() -> None:
    params = SamplingParams(temperature=0.5, logit_bias={3: -1.5}, stop_token_ids=(4, 5), seed=-7)
    plan = StepPlan(
        step=9,
        new_rows=[NewRow(2, "id", [5, 6, 7], 3, params, (257,), -(2**63))],
        new_blocks=[RowBlocks(2, 0, [11]), RowBlocks(0, 3, [4, 5])],
        free_rows=[1],
        rows=np.array([0, 2], np.int32),
        num_computed=np.array([50, 0], np.int32),
        num_scheduled=np.array([1, 3], np.int32),
        samples=np.array([True, False]),
        new_window_blocks=(RowBlocks(2, 0, [7]),),
        restores=(StateCopy(9, 2),),
        saves=(StateCopy(0, 8),),
    )
    again = plan_wire.decode(plan_wire.encode(plan))
    assert isinstance(again, StepPlan)
    assert again[:4] == plan[:4]
    assert again[8:] == plan[8:]
    for ours, theirs in zip(again[4:8], plan[4:8], strict=True):
        assert ours.dtype == theirs.dtype  # type: ignore[union-attr]
        assert np.array_equal(ours, theirs)
