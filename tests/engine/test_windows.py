"""Window blocks: given step by step, let go behind the window, kept where a prefix ends."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from engine.engine_helpers import GREEDY, Engine, make_config

from atom.engine.cache_layout import least_window_blocks
from atom.engine.runner.fake import FakeOptions
from atom.engine.sampling_params import SamplingParams

BOTH_LOOPS = pytest.mark.parametrize("overlap", [False, True], ids=["sync", "overlap"])


def greedy(max_tokens: int, **fields: Any) -> SamplingParams:
    return msgspec.structs.replace(GREEDY, max_tokens=max_tokens, **fields)


def prompt(length: int, start: int = 0) -> list[int]:
    return [(start * 131 + i * 7) % 997 for i in range(length)]


def make_engine(*, window: int = 16, spare: int = 64, **config: Any) -> Engine:
    config = {"num_blocks": 2000, "max_num_seqs": 4, "max_num_batched_tokens": 32, **config}
    return Engine(make_config(**config), FakeOptions(window=window, spare_window_blocks=spare))


def windows(engine: Engine) -> Any:
    pool = engine.core.scheduler.blocks.windows
    assert pool is not None
    return pool


@pytest.mark.parametrize(
    ("window", "cached", "pinned"), [(1, 48, 0), (2, 48, 1), (5, 48, 1), (6, 48, 2), (100, 48, 12)]
)
def test_a_hit_takes_the_blocks_that_its_first_token_sees(
    window: int, cached: int, pinned: int
) -> None:
    engine = make_engine(window=window)
    engine.add("a", prompt(50), greedy(1))
    engine.run()
    engine.add("b", prompt(50), greedy(1))
    engine.step()
    assert engine.chunks["b"][0].num_cached_tokens == cached
    (blocks,) = engine.runner.launched[-1].new_window_blocks
    assert (blocks.start, len(blocks.block_ids)) == (12 - pinned, pinned + 1)


def test_a_long_sequence_holds_no_more_than_its_window() -> None:
    engine = make_engine(window=16, max_num_batched_tokens=20)
    engine.add("a", prompt(200), greedy(100))
    most = 0
    while engine.core.has_work:
        engine.step()
        most = max(most, windows(engine).num_used)
    assert most <= (16 + 20) // 4 + 2
    assert engine.tokens["a"] == engine.expected("a")


def test_windows_never_make_anybody_wait() -> None:
    """The least pool, full of idle blocks, under the heaviest load that fits the limits."""
    engine = make_engine(spare=0, overlap=True, window=9)
    size = windows(engine).size
    assert size == least_window_blocks(9, 4, 4, 32)
    for i in range(12):
        engine.add(f"r{i}", prompt(90, i), greedy(20))
    engine.run()
    assert all(engine.tokens[name] == engine.expected(name) for name in engine.requests)
    engine.check_idle()


def test_a_prefix_whose_window_was_evicted_is_computed_again_and_serves_again() -> None:
    engine = make_engine(spare=0, window=16, max_num_seqs=1, max_num_batched_tokens=8)
    engine.add("a", prompt(50), greedy(1))
    engine.run()
    pool = windows(engine)
    blocks = engine.core.scheduler.blocks
    for id_, entry in enumerate(list(pool._entries)):
        if entry is not None:
            pool.forget(id_)
            engine.runner.naive.overwrite_window(id_)
    assert blocks.num_cached == 12  # the full blocks are all there
    for name, cached in (("b", 0), ("c", 48)):
        engine.add(name, prompt(50), greedy(1))
        engine.run()
        assert engine.chunks[name][0].num_cached_tokens == cached
    assert blocks.num_cached == 12


def test_one_dead_block_of_the_window_shortens_the_hit_to_before_it() -> None:
    engine = make_engine(window=8)
    engine.add("a", prompt(50), greedy(1))
    engine.run()
    pool = windows(engine)
    dead = engine.runner.naive.entries[9].window_id
    pool.forget(dead)
    engine.runner.naive.overwrite_window(dead)
    engine.add("b", prompt(50), greedy(1))  # 12 and 11 need it or what follows: 12 needs 10, 11
    engine.add("c", prompt(46), greedy(1))  # 11 needs 9 and 10
    engine.run()
    assert engine.chunks["b"][0].num_cached_tokens == 48
    assert engine.chunks["c"][0].num_cached_tokens == 36


def test_a_long_prompt_does_not_drive_out_the_ends_of_other_prefixes() -> None:
    engine = make_engine(spare=16, window=16, max_num_seqs=1, max_num_batched_tokens=16)
    for i in range(2):
        engine.add(f"stem{i}", prompt(22, 10 + i), greedy(1))
        engine.run()
    engine.add("long", prompt(900), greedy(1))
    engine.run()
    for name, tokens, cached in (
        ("x", prompt(22, 10), 20),
        ("y", prompt(22, 11), 20),
        ("z", prompt(900), 896),
    ):
        engine.add(name, tokens, greedy(1))
        engine.run()
        assert engine.chunks[name][0].num_cached_tokens == cached


def test_where_prompts_part_the_window_is_kept() -> None:
    """The third prompt with a common head finds its window, although each ran far beyond it."""
    engine = make_engine(spare=8, window=16, max_num_seqs=1, max_num_batched_tokens=16)
    cached = []
    for i in range(3):
        engine.add(f"r{i}", [*prompt(40), *prompt(400, 50 + i)], greedy(1))
        engine.run()
        cached.append(engine.chunks[f"r{i}"][0].num_cached_tokens)
    assert cached == [0, 0, 40]


@BOTH_LOOPS
def test_a_shared_prefix_is_computed_once(overlap: bool) -> None:
    engine = make_engine(overlap=overlap, max_num_seqs=8, max_num_batched_tokens=64)
    for i in range(8):
        engine.add(f"r{i}", [*prompt(160), 900 + i], greedy(3))
    engine.run()
    assert engine.runner.prompt_tokens == 161 + 7
    engine.check_idle()


@BOTH_LOOPS
def test_preemption_and_abort_give_windows_back(overlap: bool) -> None:
    engine = make_engine(overlap=overlap, num_blocks=24, max_num_seqs=3, window=9)
    for i in range(4):
        engine.add(f"r{i}", prompt(20, i), greedy(40))
    for _ in range(12):
        engine.step()
    engine.abort("r0")
    engine.run()
    assert engine.core.stats().preemptions > 0
    assert engine.tokens["r3"] == engine.expected("r3")
    engine.check_idle()


def test_without_caching_a_window_block_is_free_once_it_is_passed() -> None:
    engine = make_engine(caching=False)
    engine.add("a", prompt(100), greedy(20))
    engine.run()
    assert windows(engine).num_cached == 0
    engine.check_idle()
