"""The runner on a GPU: the CPU's tokens, no synchronisation in a launch, memory, two ranks."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from runner.sampling import Bench, new_row
from runner.test_graphs import MODES, SCHEDULES, SIZES, workload
from runner.test_sampler import SETTINGS, make_logits
from serving import Shared, generate, greedy, make_config, make_runner
from tiny import random_prompt, tiny_checkpoint

from atom.config.schema import Config, ParallelConfig
from atom.engine.core import EngineCore
from atom.engine.plan import NewRow, RowBlocks, StepPlan
from atom.engine.runner import graph_plan
from atom.engine.runner.sampler import Sampler
from atom.engine.runner.tp import make_runner as make_any_runner
from atom.engine.runner.upload import Upload
from atom.engine.sampling_params import SamplingParams
from atom.models.source import resolve_source

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]

PROMPTS = [random_prompt(n, seed=n) for n in (1, 2, 16, 33, 70)]
KINDS = [
    greedy(20),
    SamplingParams(seed=5, max_tokens=20, ignore_eos=True, top_p=0.9, frequency_penalty=0.5),
    SamplingParams(seed=6, max_tokens=20, ignore_eos=True, temperature=0.7, top_k=30, min_p=0.01),
    greedy(20, repetition_penalty=1.3, min_tokens=5, stop_token_ids=(3,), logit_bias={7: 2.0}),
    greedy(20, logprobs=3, prompt_logprobs=2),
]


def with_mode(config: Config, mode: str) -> Config:
    sizes = SIZES if mode != "none" else ()
    compiled = dataclasses.replace(
        config.compile, level=0, cudagraph_mode=mode, cudagraph_capture_sizes=sizes
    )
    return dataclasses.replace(config, compile=compiled)


def test_sampler_draws_the_cpu_s_tokens() -> None:
    vocab, params = 32000, [*SETTINGS, SamplingParams(temperature=0.0)] * 10
    params = [*params, SamplingParams(presence_penalty=1.0, logit_bias={4: 3.0}, logprobs=5)]
    rows = [new_row(i, p, seed=i, tokens=[i, 4, 4], num_prompt=2) for i, p in enumerate(params)]
    bench, device = Bench(vocab, rows), torch.device("cuda")
    logits = make_logits(len(rows), vocab, seed=8, scale=3.0)
    expected = bench.sample(logits, list(range(len(rows))))
    upload = Upload(device)
    numbers = np.arange(len(rows), dtype=np.int64)
    step = bench.rows.stage(numbers, np.full(len(rows), 3, np.int64), upload)
    upload.send()
    got = Sampler(vocab, device)(logits.cuda(), bench.pool.cuda(), step)
    assert torch.equal(got.token_ids.cpu(), expected.token_ids)
    assert got.logprobs is not None
    assert expected.logprobs is not None
    for ours, theirs in zip(got.logprobs, expected.logprobs, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=0, atol=2e-5)


@pytest.mark.parametrize("family", ["llama3", "qwen3_moe"])
def test_tokens_equal_the_cpu_s(family: str) -> None:
    path = tiny_checkpoint(family)
    config = make_config(path)
    expected = generate(EngineCore(config, make_runner(config)), PROMPTS, KINDS)
    for schedule in (
        {},
        {"overlap": True, "num_blocks": 9, "max_num_batched_tokens": 40, "max_prefill_chunk": 9},
    ):
        config = make_config(path, device="cuda", **schedule)  # type: ignore[arg-type]
        runner = make_runner(config)
        assert runner.device == "cuda:0"
        core = EngineCore(config, runner)
        for _ in range(2):
            got = generate(core, PROMPTS, KINDS)
            assert [r.token_ids for r in got] == [r.token_ids for r in expected]
        ours, theirs = got[4].prompt_logprobs, expected[4].prompt_logprobs
        assert ours is not None
        assert theirs is not None
        assert [r.token_ids for r in ours[1:]] == [r.token_ids for r in theirs[1:]]


@pytest.fixture
def no_syncs() -> Iterator[None]:
    """CUDA calls that wait for the device raise. Switched on by the test, off in the end."""
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def few_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of steps with prompts, the largest below what some steps hold."""
    monkeypatch.setattr(graph_plan, "TOKEN_SIZES", (3, 8, 20))
    monkeypatch.setattr(graph_plan, "LONG_SIZES", ())


@pytest.mark.parametrize("mode", ["none", *MODES])
@pytest.mark.parametrize("family", ["llama3", "qwen3_moe"])
def test_a_launch_never_waits_for_the_device(
    mode: str, family: str, no_syncs: None, few_sizes: None
) -> None:
    runner = make_runner(with_mode(make_config(tiny_checkpoint(family), device="cuda"), mode))
    prompts = StepPlan(
        step=1,
        new_rows=[NewRow(i, "", [1, 2, 3, i], 4, p, (257,), i) for i, p in enumerate(KINDS)],
        new_blocks=[RowBlocks(i, 0, [i]) for i in range(5)],
        free_rows=[],
        rows=np.arange(5, dtype=np.int32),
        num_computed=np.zeros(5, np.int32),
        num_scheduled=np.full(5, 4, np.int32),
        samples=np.ones(5, np.bool_),
    )
    decodes = prompts._replace(
        step=2,
        new_rows=[],
        new_blocks=[],
        num_computed=np.full(5, 4, np.int32),
        num_scheduled=np.ones(5, np.int32),
    )
    greedy_rows = prompts._replace(
        new_rows=[row._replace(sampling=greedy(20)) for row in prompts.new_rows]
    )
    steps = [prompts, decodes, decodes, greedy_rows, decodes, decodes]
    for plan in steps:
        runner.launch(plan).wait()  # lazily made state
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    handles = [runner.launch(plan) for plan in steps]
    torch.cuda.set_sync_debug_mode("default")
    outputs = [handle.wait() for handle in handles]
    assert outputs[0].prompt_logprobs is not None
    assert outputs[1].token_ids.tolist() == outputs[2].token_ids.tolist()
    assert outputs[1].logprobs is not None
    assert outputs[4].token_ids.tolist() == outputs[5].token_ids.tolist()


@pytest.mark.parametrize("family", ["llama3", "qwen3", "qwen3_moe", "mixtral"])
@pytest.mark.parametrize("mode", MODES)
def test_graphs_give_the_cpu_s_tokens(mode: str, family: str, few_sizes: None) -> None:
    """Prompts in chunks, mixtures, preemption, prefix hits, every kind of sampling, and steps above
    the captured sizes."""
    path = tiny_checkpoint(family)
    cpu = expected_of(family)
    runner = make_runner(with_mode(make_config(path, device="cuda", max_num_seqs=9), mode))
    for seed, schedule in enumerate(SCHEDULES):
        prompts, params = workload(seed)
        config = make_config(path, device="cuda", max_num_seqs=9, **schedule)  # type: ignore[arg-type]
        core = EngineCore(config, Shared(runner, config.engine.num_kvcache_blocks))
        for _ in range(2):
            again = generate(core, prompts, params)
            assert [r.token_ids for r in again] == cpu[seed]
    replays = {name.split()[0] for name in runner.graph_counts}
    kinds = {
        "piecewise": {"piecewise"},
        "full": {"full", "decode"},
        "full_decode_only": {"decode"},
        "full_and_piecewise": {"piecewise", "decode"},
    }
    assert replays == {*kinds[mode], "eager"}


@functools.cache
def expected_of(family: str) -> list[list[list[int]]]:
    config = make_config(tiny_checkpoint(family), max_num_seqs=9)
    runner = make_runner(config)
    return [
        [r.token_ids for r in generate(EngineCore(config, runner), *workload(seed))]
        for seed in range(len(SCHEDULES))
    ]


def test_graphs_at_the_default_level() -> None:
    """Sizes and memory of a capture as users get it, and padding that is kept finite."""
    config = make_config(tiny_checkpoint("qwen3_moe"), device="cuda", max_num_seqs=40)
    runner = make_runner(config)
    assert runner.graph_plan.mode == "full_and_piecewise"
    assert runner.graph_plan.decode_sizes == (*range(1, 9), 12, 16, 24, 32, 40)
    assert runner.startup_s["graphs"] > 0
    assert runner.memory_bytes["graphs"] > 0
    core = EngineCore(config, runner)
    generate(core, [random_prompt(9, seed=i) for i in range(27)], greedy(6))
    assert runner.graph_counts["decode 32"] >= 4
    graphs = runner._graphs
    assert graphs is not None
    assert graphs.decode is not None
    assert bool(graphs.decode._captured[32].logits.isfinite().all())


def test_the_pool_is_sized_from_the_gpu_s_memory() -> None:
    config = make_config(tiny_checkpoint("llama3"), device="cuda", num_blocks=-1)
    share = dataclasses.replace(config.engine, gpu_memory_utilization=0.02)
    config = dataclasses.replace(config, engine=share)
    scheduler = dataclasses.replace(config.scheduler, max_num_seqs=10_000)
    runner = make_runner(dataclasses.replace(config, scheduler=scheduler))
    total = torch.cuda.get_device_properties(0).total_memory
    assert runner.memory_bytes["activations"] > 0
    assert 0 < runner.memory_bytes["kv_cache"] < 0.02 * total
    assert torch.cuda.mem_get_info()[1] - torch.cuda.mem_get_info()[0] < 0.04 * total


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("family", ["llama3", "mixtral"])
def test_two_gpus_give_the_tokens_of_one(family: str) -> None:
    def tokens(size: int, mode: str) -> list[list[int]]:
        config: Config = make_config(tiny_checkpoint(family), device="cuda", overlap=True)
        parallel = ParallelConfig(tensor_parallel_size=size)
        config = with_mode(dataclasses.replace(config, parallel=parallel), mode)
        runner = make_any_runner(config, resolve_source(config.model))
        try:
            results = generate(EngineCore(config, runner), PROMPTS, KINDS)
            assert mode == "none" or set(runner.graph_counts) - {"eager"}
            return [r.token_ids for r in results]
        finally:
            runner.shutdown()

    alone = tokens(1, "none")
    for mode in ("none", "piecewise", "full"):
        assert tokens(2, mode) == alone
