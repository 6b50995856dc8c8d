"""The KV pool's size, the steps that are measured for it, and what is said when memory runs out."""

from __future__ import annotations

import dataclasses
import gc
import random
import re
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from serving import generate, greedy, make_config, make_runner
from tiny import random_prompt, tiny_checkpoint

from atom.config.schema import Config, EngineConfig, ModelConfig, ParallelConfig, SchedulerConfig
from atom.engine.cache_layout import CacheLayout
from atom.engine.core import EngineCore
from atom.engine.runner import capacity, compilation, dummy, oom, settle, started_runner
from atom.engine.runner.cache_sizes import CacheBytes, plan_caches
from atom.engine.runner.memory import GIB, Room
from atom.errors import ConfigError, OutOfMemory
from atom.layers.caches import CacheSpec
from atom.models.footprint import activation_bytes, count_parameters, kv_bytes_per_token
from atom.models.hf_config import HFConfig
from atom.models.source import resolve_source
from atom.parallel.state import SINGLE

CONFIGS = Path(__file__).parents[2] / "benchmarks" / "configs"


# -- sizing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(200))
def test_the_pool_never_exceeds_the_share(seed: int) -> None:
    rng = random.Random(seed)
    total = rng.randrange(8 * GIB, 192 * GIB)
    share = rng.uniform(0.05, 1.0)
    room = Room(
        total=total,
        limit=int(total * share),
        held=rng.randrange(total),  # our weights and whatever other processes hold
        activations=rng.randrange(4 * GIB),
        graphs=rng.randrange(2 * GIB),
    )
    block = rng.randrange(1 << 12, 1 << 24)
    scheduler = SchedulerConfig(max_num_seqs=1 << 20)
    config = Config(scheduler=scheduler)

    def plan() -> CacheLayout:
        return plan_caches(
            config,
            CacheBytes(block),
            max_model_len=4096,
            budget=room.kv_cache,
            source="the share",
        ).layout

    if room.kv_cache < block:
        with pytest.raises(ConfigError, match="no memory is left for the KV cache"):
            plan()
        return
    taken = plan().num_blocks * block
    assert room.held + room.activations + room.graphs + taken < room.limit
    assert room.limit - room.held - room.activations - room.graphs - taken < room.reserve + block


def test_what_others_hold_is_not_ours_to_use() -> None:
    alone = Room(total=100 * GIB, limit=90 * GIB, held=20 * GIB, activations=0, graphs=0)
    crowded = dataclasses.replace(alone, held=70 * GIB)
    assert alone.kv_cache - crowded.kv_cache == 50 * GIB
    assert "90.00 of 100.00 GiB less held 20.00" in alone.describe()


@dataclasses.dataclass
class Layer:
    """What the pool asks of an attention layer."""

    num_kv_heads: int = 2
    head_dim: int = 64
    kv_dtype: torch.dtype = torch.bfloat16
    k_cache: torch.Tensor | None = None
    v_cache: torch.Tensor | None = None

    def cache_specs(self) -> tuple[CacheSpec, ...]:
        shape = (16, self.num_kv_heads, self.head_dim)
        return tuple(CacheSpec(f"{x}_cache", "full", shape, self.kv_dtype) for x in "kv")


def pool(room: Room, agreed: Callable[[int], int], **engine: Any) -> tuple[int, dict[str, int]]:
    """(blocks, the memory table) of a pool sized on the CPU as if it were a GPU with `room`."""
    config = Config(engine=EngineConfig(**engine), scheduler=SchedulerConfig(max_num_seqs=100_000))
    table: dict[str, int] = {"weights": 3 * GIB}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settle, "least_over_ranks", lambda value, *_: agreed(value))
        made = capacity.make_kv_cache(
            config,
            [Layer(), Layer()],
            torch.device("cpu"),
            SINGLE,
            max_model_len=4096,
            room=room,
            memory_bytes=table,
        )
    return made.layout.num_blocks, table


ROOM = Room(total=10 * GIB, limit=9 * GIB, held=4 * GIB, activations=GIB // 2, graphs=GIB // 4)
BLOCK = 2 * 2 * 16 * 2 * 64 * 2  # two layers, keys and values, 16 tokens, 2 heads of 64 bfloat16


def test_the_memory_table_adds_up() -> None:
    small = dataclasses.replace(ROOM, limit=ROOM.held + ROOM.activations + ROOM.graphs + GIB)
    blocks, table = pool(small, lambda value: value)
    assert blocks == small.kv_cache // BLOCK
    assert table["kv_cache"] == blocks * BLOCK
    assert table["other"] == small.held - 3 * GIB
    assert table["reserve"] == 256 * 2**20 + int(0.05 * small.activations)
    parts = ("weights", "other", "activations", "graphs", "reserve", "kv_cache")
    assert small.limit - BLOCK < sum(table[name] for name in parts) <= small.limit
    assert table["total"] == small.total


def test_ranks_agree_on_the_least_and_refuse_together() -> None:
    blocks, _ = pool(ROOM, lambda value: value - 3 * GIB)
    assert blocks == (ROOM.kv_cache - 3 * GIB) // BLOCK
    with pytest.raises(ConfigError, match=r"there are 5 bytes .*10\.00 GiB less held 4\.00"):
        pool(ROOM, lambda value: 5)  # another rank has none: this one refuses too


def test_a_pool_of_a_given_size_must_fit_into_the_share() -> None:
    assert pool(ROOM, lambda value: value, num_kvcache_blocks=77)[0] == 77
    most = ROOM.kv_cache // BLOCK
    with pytest.raises(ConfigError, match=f"at most {most} blocks"):
        pool(ROOM, lambda value: value, num_kvcache_blocks=most + 1)


@pytest.mark.parametrize(
    ("budget", "seqs", "length"),
    [(16384, 512, 131072), (16384, 512, 64), (8, 512, 4096), (100, 3, 7), (1, 1, 1), (2048, 16, 2)],
)
def test_the_largest_steps_reach_every_limit(budget: int, seqs: int, length: int) -> None:
    scheduler = SchedulerConfig(max_num_batched_tokens=budget, max_num_seqs=seqs)
    plans = list(dummy.largest_steps(Config(scheduler=scheduler), length))
    for plan in plans:
        assert 0 < plan.num_tokens <= budget
        assert len(plan.rows) <= seqs
        assert int((plan.num_computed + plan.num_scheduled).max()) <= length
    odd = dummy.odd_step(Config(scheduler=scheduler), length)
    assert 0 < odd.num_tokens <= budget
    assert odd.num_scheduled.max() <= length
    longest, many, decode = plans
    assert longest.num_scheduled.max() == min(budget, length)
    assert len(many.rows) == min(seqs, budget)
    assert decode.num_tokens == len(many.rows)
    assert int(decode.num_computed.max()) == length - 1


def test_the_largest_steps_run_and_leave_no_trace() -> None:
    config = make_config(tiny_checkpoint("llama3"), max_num_batched_tokens=64, max_num_seqs=8)
    prompts = [random_prompt(n, seed=n) for n in (1, 20, 50)]
    expected = generate(EngineCore(config, make_runner(config)), prompts, greedy(6))
    runner = make_runner(config)
    for plan in dummy.largest_steps(config, runner.max_model_len):
        runner.launch(plan).wait()
    runner.launch(dummy.odd_step(config, runner.max_model_len)).wait()
    got = generate(EngineCore(config, runner), prompts, greedy(6))
    assert [r.token_ids for r in got] == [r.token_ids for r in expected]


# -- out of memory --------------------------------------------------------------------------------

TOTAL = 140 * GIB


class Card(oom.Explainer):
    """An explainer of a GPU that this machine has not."""

    def _card(self) -> oom.Card:
        return oom.Card(free=GIB // 2, total=TOTAL, ours=110 * GIB, split=0)


def llama(**engine: Any) -> tuple[Card, HFConfig, dict[str, int]]:
    model = ModelConfig(model=str(CONFIGS / "llama-3.1-8b"), load_dummy=True, max_model_len=8192)
    source = resolve_source(model)
    config = Config(model=model, engine=EngineConfig(**engine))
    table: dict[str, int] = {}
    return Card(config, source.config, torch.device("cuda"), table), source.config, table


def shortage(size: str = "2.00 GiB") -> torch.OutOfMemoryError:
    return torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size}. GPU 0 has a ...")


def said(error: OutOfMemory, change: str) -> float:
    """The GiB that the message says a change frees."""
    found = re.search(rf"{re.escape(change)} frees (?:about )?([\d.,]+) (GiB|MiB)", str(error))
    assert found is not None, str(error)
    return float(found[1].replace(",", "")) / (1 if found[2] == "GiB" else 1024)


def test_each_phase_says_what_to_change_with_this_model_s_numbers() -> None:
    explainer, hf, table = llama()
    loading = explainer.explain("load", shortage())
    assert "out of memory loading the weights (2.00 GiB wanted, 512 MiB of 140.00 GiB free" in str(
        loading
    )
    assert "other processes and the runtime 29.50 GiB" in str(loading)
    half = count_parameters(hf) * 2 / 2 / GIB
    assert said(loading, "tensor_parallel_size 1 -> 2") == pytest.approx(half, abs=0.01)
    table |= {"weights": 15 * GIB}
    profile = explainer.explain("profile", shortage())
    less = activation_bytes(hf, 16384, 512, 2) - activation_bytes(hf, 8192, 512, 2)
    change = "max_num_batched_tokens 16384 -> 8192"
    assert said(profile, change) == pytest.approx(less / GIB, abs=0.01)
    table |= {"kv_cache": 100 * GIB, "graphs": 2 * GIB, "total": TOTAL}
    for phase in ("kv_cache", "graphs", "compile", "warm_up"):
        error = explainer.explain(phase, shortage())
        assert said(error, "gpu_memory_utilization 0.90 -> 0.85") == pytest.approx(7.0)
        assert "KV cache 100.00 GiB" in str(error)
        assert "\n" not in str(error)
    captured = explainer.explain("graphs", shortage())
    assert said(captured, "cudagraph_mode none") == pytest.approx(2.0)
    rows = said(captured, "max_num_seqs 512 -> 256")
    assert rows >= 1.0 + 256 * 8192 * 4 / GIB - 0.01  # half of the graphs and of the token table
    # The largest saving comes first.
    saved = [float(x) for x in re.findall(r"frees (?:about )?([\d.]+) GiB", str(captured))]
    assert saved == sorted(saved, reverse=True)


def test_a_pool_of_a_given_size_is_what_gives_way() -> None:
    explainer, hf, _ = llama(num_kvcache_blocks=10_000, kv_cache_dtype="bf16")
    error = explainer.explain("kv_cache", shortage())
    size = 10_000 * 16 * kv_bytes_per_token(hf, "bfloat16")
    assert said(error, "num_kvcache_blocks 10000 -> 5000") == pytest.approx(
        size / 2 / GIB, abs=0.01
    )


def test_memory_in_pieces_is_mentioned() -> None:
    explainer, _, _ = llama()
    assert "expandable_segments" not in str(explainer.explain("step", shortage()))

    class Pieces(Card):
        def _card(self) -> oom.Card:
            return oom.Card(free=GIB // 2, total=TOTAL, ours=110 * GIB, split=5 * GIB)

    explainer.__class__ = Pieces
    assert "5.00 GiB are free in pieces" in str(explainer.explain("step", shortage()))


def test_only_shortages_are_explained() -> None:
    explainer, _, _ = llama()
    for error in (
        shortage(),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to ..."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
    ):
        with pytest.raises(OutOfMemory), explainer.during("load"):
            raise error
    with pytest.raises(RuntimeError, match="illegal"), explainer.during("load"):
        raise RuntimeError("CUDA error: an illegal memory access")


def fails_once(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    """The first call of `owner.name` runs out of memory."""
    real, failed = getattr(owner, name), []

    def call(*args: Any, **kwargs: Any) -> Any:
        if failed:
            return real(*args, **kwargs)
        failed.append(True)
        raise shortage("3.00 GiB")

    monkeypatch.setattr(owner, name, call)


@pytest.mark.parametrize(
    ("owner", "name", "doing"),
    [
        (started_runner, "load_model", "loading the weights"),
        (started_runner, "InputBatch", "allocating the tables of running sequences"),
        (capacity.kv_cache, "bind", "allocating the KV cache"),
        (compilation, "choose", "compiling the model"),
    ],
)
def test_a_start_that_runs_out_says_where_and_can_be_tried_again(
    owner: Any, name: str, doing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(tiny_checkpoint("llama3"))
    fails_once(monkeypatch, owner, name)
    with pytest.raises(OutOfMemory) as caught:
        make_runner(config)
    assert str(caught.value).startswith(f"out of memory {doing} (3.00 GiB wanted")
    runner = make_runner(config)
    assert len(generate(EngineCore(config, runner), [[5, 6]], greedy(2))[0].token_ids) == 2


def test_a_step_that_runs_out_says_how_large_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(tiny_checkpoint("llama3"), num_blocks=64)
    runner = make_runner(config)
    held: list[weakref.ref[torch.Tensor]] = []

    def too_much(*_: Any) -> Any:
        tensor = torch.zeros(1000)
        held.append(weakref.ref(tensor))
        raise shortage("1.50 GiB")

    monkeypatch.setattr(runner, "_run_model", too_much)
    core = EngineCore(config, runner)
    with pytest.raises(OutOfMemory) as caught:
        generate(core, [[5, 6, 7]], greedy(2))
    told = str(caught.value)
    assert told.startswith("out of memory running a step of 3 tokens in 1 sequences (1.50 GiB")
    assert "KV cache" in told
    gc.collect()
    assert held[0]() is None, "the failed step's tensors are still held"


def test_a_rank_says_what_its_share_is() -> None:
    explainer, hf, _ = llama()
    config = dataclasses.replace(explainer._config, parallel=ParallelConfig(tensor_parallel_size=2))
    two = Card(config, hf, torch.device("cuda"), {})
    saved = said(two.explain("load", shortage()), "tensor_parallel_size 2 -> 4")
    assert saved == pytest.approx(count_parameters(hf) * 2 / 4 / GIB, abs=0.01)
