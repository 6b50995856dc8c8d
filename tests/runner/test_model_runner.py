"""Tiny models through the whole engine, against transformers; and how a runner is set up."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hub import hub_checkpoint
from serving import Shared, generate, greedy, make_config, make_runner
from tiny import make_tiny, random_prompt, reference_greedy, reference_logits, tiny_checkpoint

from atom.config.schema import Config, EngineConfig, ModelConfig
from atom.engine.core import EngineCore
from atom.engine.runner import memory, settle, threads
from atom.engine.runner.cache_sizes import CacheBytes, plan_caches
from atom.engine.runner.model_runner import ModelRunner
from atom.engine.sampling_params import SamplingParams
from atom.errors import ConfigError, ModelError

FAMILIES = ["llama3", "mistral", "qwen3", "qwen3_moe", "mixtral"]
LENGTHS = [1, 2, 15, 16, 17, 40, 70]
NEW = 10


def prompts_of(family: str) -> list[list[int]]:
    return [random_prompt(n, seed=n + len(family)) for n in LENGTHS]


@pytest.fixture(scope="module")
def runners() -> dict[str, ModelRunner]:
    return {}


def runner_of(family: str, runners: dict[str, ModelRunner]) -> ModelRunner:
    if family not in runners:
        runners[family] = make_runner(make_config(tiny_checkpoint(family)))
    return runners[family]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_transformers(family: str, runners: dict[str, ModelRunner]) -> None:
    path, prompts = tiny_checkpoint(family), prompts_of(family)
    runner = runner_of(family, runners)
    core = EngineCore(make_config(path), runner)
    plain = [r.token_ids for r in generate(core, prompts, greedy(NEW))]
    for prompt, tokens in zip(prompts, plain, strict=True):
        # Teacher-forced: by induction these are the tokens that greedy decoding gives.
        logits = reference_logits(path, prompt + tokens[:-1])[len(prompt) - 1 :]
        assert logits.argmax(-1).tolist() == tokens
    assert plain[3] == reference_greedy(path, prompts[3], NEW)


SCHEDULES = [
    {"overlap": True},
    {"max_num_batched_tokens": 24, "max_prefill_chunk": 7},
    {"policy": "mixed", "max_num_batched_tokens": 20, "max_prefill_chunk": 5, "overlap": True},
    {"num_blocks": 9, "caching": False},
    {"num_blocks": 8, "overlap": True, "policy": "mixed", "max_num_batched_tokens": 33},
]


@pytest.mark.parametrize(
    ("family", "schedule"),
    [*(("llama3", s) for s in SCHEDULES), ("qwen3_moe", SCHEDULES[-1])],
    ids=range(len(SCHEDULES) + 1),
)
def test_any_schedule_gives_the_same_tokens(
    family: str, schedule: dict[str, object], runners: dict[str, ModelRunner]
) -> None:
    """Chunks, mixtures, preemption and overlap, with greedy and seeded requests side by side."""
    path, prompts = tiny_checkpoint(family), prompts_of(family)
    runner = runner_of(family, runners)
    kinds = [
        greedy(40),
        SamplingParams(seed=5, max_tokens=40, ignore_eos=True, top_p=0.9, frequency_penalty=0.5),
        greedy(36, repetition_penalty=1.3, min_tokens=5, stop_token_ids=(3,)),
    ]
    params = [kinds[i % 3] for i in range(len(prompts))]
    plain = generate(EngineCore(make_config(path), runner), prompts, params)
    config = make_config(path, **schedule)  # type: ignore[arg-type]
    core = EngineCore(config, Shared(runner, config.engine.num_kvcache_blocks))
    for _ in range(2):  # the second time over cached prefixes
        again = generate(core, prompts, params)
        assert [r.token_ids for r in again] == [r.token_ids for r in plain]
    if config.engine.num_kvcache_blocks < 100:
        assert core.stats().preemptions > 0
    elif config.engine.enable_prefix_caching:
        assert sum(r.num_cached_tokens for r in again) >= 96


def test_logprobs_and_prompt_logprobs(runners: dict[str, ModelRunner]) -> None:
    path = tiny_checkpoint("llama3")
    prompts = [random_prompt(n, seed=n) for n in (1, 2, 33, 60)]
    config = make_config(path, max_num_batched_tokens=16, max_prefill_chunk=9)
    core = EngineCore(config, runner_of("llama3", runners))
    tops = [0, 3, 5, 2]
    params = [greedy(4, logprobs=k, prompt_logprobs=k if k else None) for k in tops]
    for prompt, k, result in zip(prompts, tops, generate(core, prompts, params), strict=True):
        whole = prompt + result.token_ids
        reference = torch.log_softmax(reference_logits(path, whole).double(), -1)
        assert len(result.logprobs) == 4
        records = list(enumerate(result.logprobs, start=len(prompt)))
        if k == 0:
            assert result.prompt_logprobs is None
        else:
            assert result.prompt_logprobs is not None
            assert result.prompt_logprobs[0] is None
            assert len(result.prompt_logprobs) == len(prompt)
            records += [(i, r) for i, r in enumerate(result.prompt_logprobs) if r is not None]
        for position, record in records:
            row = reference[position - 1]
            token = whole[position]
            assert record.token_ids[0] == token
            assert record.token_ids[1:] == row.topk(k).indices.tolist()
            assert record.rank == 1 + int((row > row[token]).sum())
            want = row[record.token_ids]
            assert torch.allclose(torch.tensor(record.logprobs).double(), want, atol=2e-4)


@pytest.mark.parametrize("schedule", [{}, *SCHEDULES], ids=range(len(SCHEDULES) + 1))
def test_scores_of_a_prompts_end_are_those_of_the_reference(
    schedule: dict[str, object], runners: dict[str, ModelRunner]
) -> None:
    """With the beginning from the cache, in chunks, beside streams that take its blocks."""
    path = tiny_checkpoint("llama3")
    runner = runner_of("llama3", runners)
    config = make_config(path, **schedule)  # type: ignore[arg-type]
    core = EngineCore(config, Shared(runner, config.engine.num_kvcache_blocks))
    context = random_prompt(37, seed=7)
    prompts = [[*context, *random_prompt(n, seed=n)] for n in (1, 2, 5, 30)]
    prompts += [random_prompt(40, seed=8), prompts[0], random_prompt(30, seed=9)]
    starts = [37, 37, 37, 16, 17, 38, 0]
    params: list[SamplingParams] = [
        greedy(i % 2, prompt_logprobs=2, logprobs_start=start) for i, start in enumerate(starts)
    ]
    prompts += [random_prompt(20, seed=i) for i in range(3)]
    params += [greedy(30)] * 3
    for _ in range(2):  # the second time over cached prefixes
        results = generate(core, prompts, params)
        for prompt, start, result in zip(prompts, starts, results, strict=False):
            reference = torch.log_softmax(reference_logits(path, prompt).double(), -1)
            entries = result.prompt_logprobs
            assert entries is not None
            first = max(1, start)
            assert entries[:first] == [None] * first
            assert len(entries) == len(prompt)
            for position, entry in enumerate(entries[first:], first):
                assert entry is not None
                row = reference[position - 1]
                assert entry.token_ids[0] == prompt[position]
                assert entry.token_ids[1:] == row.topk(2).indices.tolist()
                want = row[entry.token_ids]
                assert torch.allclose(torch.tensor(entry.logprobs).double(), want, atol=2e-4)
    if config.engine.num_kvcache_blocks < 100:
        assert core.stats().preemptions > 0
    else:
        assert [r.num_cached_tokens for r in results[:6]] == [32, 32, 32, 0, 16, 32]


@pytest.mark.parametrize("level", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_compiled_levels_give_the_same_tokens(level: int, tmp_path: Path) -> None:
    path, prompts = make_tiny("llama3", tmp_path, num_hidden_layers=1), prompts_of("llama3")
    eager = make_config(path, level=0)
    plain = generate(EngineCore(eager, make_runner(eager)), prompts, greedy(NEW))
    config = make_config(path, level=level)
    runner = make_runner(config)
    assert runner.mode == ("torch.compile" if level == 1 else "compiled once")
    assert runner.startup_s["compile"] > 0
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert compiled > 0
    tokens = generate(EngineCore(config, runner), prompts, greedy(NEW))
    assert [r.token_ids for r in tokens] == [r.token_ids for r in plain]
    # Batches of all sizes have run, and nothing was compiled after the start.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled


def test_dummy_weights_need_only_a_config(tmp_path: Path) -> None:
    import dataclasses

    from tiny import make_config as write_config

    config = make_config(write_config("qwen3", tmp_path))
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, load_dummy=True))
    first, second = (
        generate(EngineCore(config, make_runner(config)), prompts_of("qwen3"), greedy(4))
        for _ in range(2)
    )
    assert [r.token_ids for r in first] == [r.token_ids for r in second]


def test_what_a_runner_says_of_itself(runners: dict[str, ModelRunner]) -> None:
    runner = runner_of("qwen3", runners)
    assert (runner.vocab_size, runner.max_model_len, runner.num_blocks) == (512, 1024, 512)
    assert runner.eos_token_ids == (257,)
    assert (runner.device, runner.dtype, runner.kv_cache_dtype) == ("cpu", "float32", "fp32")
    layers = runner.model.attention_layers()
    assert runner.memory_bytes["kv_cache"] == 3 * 2 * 512 * 16 * 2 * 64 * 4
    assert all(layer.k_cache.shape == (512, 16, 2, 64) for layer in layers)
    assert list(runner.startup_s) == ["load", "kv_cache", "compile", "warm_up"]
    assert "paged_attention" in runner.backends


def test_settings_that_cannot_work_are_refused() -> None:
    path = tiny_checkpoint("llama3")
    with pytest.raises(ModelError, match=r"max_model_len = 5000 exceeds the 1024 positions"):
        make_runner(make_config(path, max_model_len=5000))
    with pytest.raises(ConfigError, match=r"num_kvcache_blocks = \d+ takes .* at most"):
        make_runner(make_config(path, num_blocks=10**9))


def test_the_shortest_context_and_the_smallest_pool() -> None:
    config = make_config(tiny_checkpoint("llama3"), max_model_len=2, num_blocks=1, block_size=1)
    runner = make_runner(config)
    core = EngineCore(config, runner)
    assert [r.finish_reason for r in generate(core, [[5]], greedy(1))] == ["length"]


def plan_blocks(budget: int, **engine: object) -> tuple[int, str]:
    config = Config(engine=EngineConfig(**engine))  # type: ignore[arg-type]
    layout, reason = plan_caches(
        config, CacheBytes(1000), max_model_len=100, budget=budget, source="the budget"
    )
    return layout.num_blocks, reason


def test_kv_cache_sizes() -> None:
    assert plan_blocks(10_000) == (10, "the budget")
    # 512 sequences of 7 blocks each: more could never be used
    assert plan_blocks(10**9)[0] == 512 * 7
    assert plan_blocks(1, num_kvcache_blocks=77)[0] == 77
    with pytest.raises(ConfigError, match="a block needs 1,000 bytes and there are 999 bytes"):
        plan_blocks(999)


def test_cpu_budget() -> None:
    config = Config(engine=EngineConfig(kv_cache_memory_gb=2.0))
    assert memory.cpu_budget(config, 3 * memory.GIB)[0] == 2 * memory.GIB
    with pytest.raises(ConfigError, match=r"2 GiB but only 1\.0 GiB are free"):
        memory.cpu_budget(config, memory.GIB)
    assert memory.cpu_budget(Config(), 8 * memory.GIB)[0] == 2 * memory.GIB


def test_one_thread_per_physical_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 4, 5})
    monkeypatch.setattr(threads, "_core_of", lambda cpu: ("0", str(cpu // 2)))
    monkeypatch.setattr(threads, "usable_cpus", lambda: 6.0)
    assert threads.physical_cores() == 3
    assert threads.model_threads(0, 1) == 3
    assert threads.model_threads(0, 2) == 1
    assert threads.model_threads(5, 2) == 5
    monkeypatch.setattr(threads, "usable_cpus", lambda: 1.5)  # a container's quota
    assert threads.physical_cores() == 1


@pytest.mark.parametrize(
    ("size", "num_blocks", "device", "expected"),
    [
        (None, -1, "cpu", 4),
        (None, -1, "cuda", 16),
        (None, 100, "cpu", 16),  # the blocks are counted: they keep their usual size
        (1, -1, "cpu", 1),
        (8, -1, "cpu", 8),
        (1, -1, "cuda", 1),
        (48, -1, "cuda", 48),
    ],
)
def test_the_size_of_a_block(size: int | None, num_blocks: int, device: str, expected: int) -> None:
    engine = EngineConfig(kv_cache_block_size=size, num_kvcache_blocks=num_blocks)
    settled = settle.settle_block_size(Config(engine=engine), device)
    assert settled.engine.kv_cache_block_size == settled.engine.block_size == expected


def test_blocks_hold_whole_entries_of_compressed_caches() -> None:
    """DeepSeek V4 keeps one entry for 128 tokens."""
    assert settle.settle_block_size(Config(), "cpu", 128).engine.block_size == 128
    asked = Config(engine=EngineConfig(kv_cache_block_size=256))
    assert settle.settle_block_size(asked, "cuda", 128).engine.block_size == 256
    config = make_config(hub_checkpoint("deepseek_v4"), block_size=64)
    with pytest.raises(ConfigError, match="must be a multiple of 128 for this model, got 64"):
        make_runner(config)


def test_a_gpu_cannot_page_small_blocks() -> None:
    config = Config(engine=EngineConfig(kv_cache_block_size=8))
    with pytest.raises(ConfigError, match="1 or a multiple of 16 on a GPU, got 8"):
        settle.settle_block_size(config, "cuda")


def test_the_core_counts_in_the_runner_s_blocks() -> None:
    config = Config(
        model=ModelConfig(model=str(tiny_checkpoint("llama3")), dtype="float32"),
        engine=EngineConfig(device="cpu", num_threads=1, kv_cache_memory_gb=0.01),
    )
    core = EngineCore(config, make_runner(config))
    assert core.info.block_size == core.scheduler.blocks.block_size == 4
    prompts = [[*random_prompt(21, seed=3), i] for i in range(3)]
    results = generate(core, prompts, greedy(6))
    assert [r.num_cached_tokens for r in results] == [0, 20, 20]
    for prompt, result in zip(prompts, results, strict=True):
        path = tiny_checkpoint("llama3")
        assert result.token_ids == reference_greedy(path, prompt, 6)
