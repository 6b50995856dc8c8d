"""How memory is shared out between blocks, windows and states."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest
import torch

from atom.config.schema import Config, EngineConfig, SchedulerConfig
from atom.engine.cache_layout import CacheLayout, least_window_blocks
from atom.engine.plan import StateCopy
from atom.engine.runner import kv_cache
from atom.engine.runner.cache_sizes import CacheBytes, check_fits, plan_caches
from atom.engine.runner.memory import GIB
from atom.errors import ConfigError
from atom.layers.caches import FULL, STATE, WINDOW, CacheSpec

MIB = 2**20
CONTEXT = 4096


def config(rows: int = 16, caching: bool = True, **engine: Any) -> Config:
    return Config(
        engine=EngineConfig(kv_cache_block_size=16, enable_prefix_caching=caching, **engine),
        scheduler=SchedulerConfig(max_num_seqs=rows, max_num_batched_tokens=2048),
    )


def layout(sizes: CacheBytes, budget: int, settings: Config | None = None) -> CacheLayout:
    settings = settings or config()
    plan = plan_caches(settings, sizes, max_model_len=CONTEXT, budget=budget, source="the budget")
    return plan.layout


@pytest.mark.parametrize("seed", range(300))
def test_what_is_shared_out_fits_and_nothing_waits_for_a_window(seed: int) -> None:
    rng = random.Random(seed)
    sizes = CacheBytes(
        block=rng.choice([0, 1, 40]) * 4096,
        window_block=rng.choice([0, 1, 40]) * 4096,
        slot=rng.choice([0, 1, 75]) * MIB,
        window=128,
    )
    if not sizes.window_block:
        sizes = sizes._replace(window=0)
    settings = config(rng.choice([1, 16, 300]), rng.random() < 0.7)
    budget = rng.choice([1, 50, 1000, 60_000]) * MIB
    rows = settings.scheduler.max_num_seqs
    pair = sizes.block + sizes.window_block
    if budget - rows * sizes.slot < 2 * pair:  # with a share of it for checkpoints
        with pytest.raises(ConfigError, match=r"lower max_num_seqs|no memory is left"):
            layout(sizes, budget, settings)
        return
    got = layout(sizes, budget, settings)
    assert sizes.total(got, rows) <= budget
    check_fits(settings, sizes, got, budget)
    useful = rows * CONTEXT // 16
    assert 1 <= got.num_blocks <= useful
    if sizes.window_block:
        enough = least_window_blocks(128, 16, rows, 2048)
        assert min(enough, got.num_blocks) <= got.num_window_blocks <= got.num_blocks
    if not settings.engine.enable_prefix_caching:
        assert got.num_checkpoints == 0
    if sizes.slot:
        assert got.checkpoint_interval % 16 == 0
        assert got.checkpoint_interval >= 256
    # Nothing to speak of is left over, unless there is more than could be used.
    each = sizes.block + sizes.window_block + sizes.slot
    left = budget - sizes.total(got, rows)
    assert left <= 3 * each + 1 or got.num_blocks == useful


def test_plain_models_get_blocks_alone() -> None:
    got = layout(CacheBytes(1000), 10_000)
    assert got == CacheLayout(num_blocks=10, block_size=16)


def test_a_window_that_holds_everything_costs_what_full_attention_does() -> None:
    """Mistral's first model: windows of 4096 tokens would exceed the memory for all rows."""
    sizes = CacheBytes(0, window_block=2 * MIB, window=4096)
    got = layout(sizes, 1000 * MIB)
    assert got.num_blocks == got.num_window_blocks == 500


def test_small_windows_leave_the_memory_to_blocks() -> None:
    """GPT-OSS: every second layer sees 128 tokens."""
    got = layout(CacheBytes(MIB, window_block=MIB, window=128), 4 * GIB)
    least = least_window_blocks(128, 16, 16, 2048)
    share = (4096 - 2 * least) // 10
    assert got.num_window_blocks == least + share
    assert got.num_blocks == 4096 - got.num_window_blocks


def test_a_checkpoint_is_about_as_large_as_the_blocks_of_its_interval() -> None:
    """Qwen3-Next: 75 MiB of state beside 24 KiB for each token."""
    sizes = CacheBytes(16 * 24 * 1024, slot=75 * MIB)
    got = layout(sizes, 40 * GIB, config(256))
    assert got.checkpoint_interval == 3200
    spent = got.num_checkpoints * sizes.slot
    assert 0.29 < spent / (40 * GIB - 256 * sizes.slot) <= 0.3
    assert layout(sizes, 40 * GIB, config(256, caching=False)).num_checkpoints == 0


def test_states_of_too_many_rows_are_refused() -> None:
    sizes = CacheBytes(4096, slot=75 * MIB)
    with pytest.raises(ConfigError, match=r"max_num_seqs = 300 .* take 21.97 GiB .* 10.00 GiB"):
        layout(sizes, 10 * GIB, config(300))


def test_a_given_number_of_blocks_brings_its_windows_and_checkpoints() -> None:
    sizes = CacheBytes(MIB, window_block=MIB, slot=MIB, window=128)
    settings = config(num_kvcache_blocks=1000)
    got = layout(sizes, 10 * GIB, settings)
    assert got.num_blocks == 1000
    assert got.num_window_blocks == least_window_blocks(128, 16, 16, 2048) + 100
    assert got.num_checkpoints >= 32
    check_fits(settings, sizes, got, 10 * GIB)
    with pytest.raises(ConfigError, match=r"num_kvcache_blocks = 1000 takes .* at most"):
        check_fits(settings, sizes, got, GIB)


@dataclasses.dataclass
class Layer:
    specs: tuple[CacheSpec, ...]

    def cache_specs(self) -> tuple[CacheSpec, ...]:
        return self.specs


def test_layers_get_their_caches_and_states_are_copied() -> None:
    f32 = torch.float32
    conv, memory = CacheSpec("conv", STATE, (3,), f32), CacheSpec("memory", STATE, (2, 2), f32)
    layers = [
        Layer((CacheSpec("k_cache", FULL, (16, 2), torch.bfloat16),)),
        Layer((conv, memory)),
        Layer((CacheSpec("ring", WINDOW, (16,), torch.float8_e4m3fn, 8),)),
        Layer((conv, memory)),
    ]
    sizes = kv_cache.cache_bytes(layers)
    assert sizes == CacheBytes(64, 16, 2 * (12 + 16), 8)
    caches: Any = kv_cache.bind(layers, kv_cache.Counts(5, 4, 3), torch.device("cpu"))
    assert caches.nbytes == 5 * 64 + 4 * 16 + 3 * 56
    given: list[Any] = list(layers)
    assert given[0].k_cache.shape == (5, 16, 2)
    assert given[2].ring.shape == (4, 16)
    assert given[1].memory.shape == (3, 2, 2)
    assert given[1].memory.is_contiguous()
    kv_cache.zero(layers)
    for value, layer in ((1.0, given[1]), (2.0, given[3])):
        layer.conv[0], layer.memory[0] = value, -value
    caches.copy_states([StateCopy(0, 2), StateCopy(2, 1)])
    for value, layer in ((1.0, given[1]), (2.0, given[3])):
        assert layer.conv.tolist() == [[value] * 3] * 3
        assert layer.memory.unique().tolist() == [-value]
    kv_cache.release(layers)
    assert not hasattr(given[1], "conv")
