"""Recurrent state: where chunks end for a checkpoint, who waits for one, what a hit restores."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from engine.engine_helpers import GREEDY, Engine, make_config

from atom.engine.cache_layout import CacheLayout
from atom.engine.checkpoints import save_points
from atom.engine.messages import GenerateRequest
from atom.engine.runner.fake import FakeOptions
from atom.engine.sampling_params import SamplingParams
from atom.engine.sequence import Sequence

BOTH_LOOPS = pytest.mark.parametrize("overlap", [False, True], ids=["sync", "overlap"])


def greedy(max_tokens: int, **fields: Any) -> SamplingParams:
    return msgspec.structs.replace(GREEDY, max_tokens=max_tokens, **fields)


def prompt(length: int, start: int = 0) -> list[int]:
    return [(start * 131 + i * 7) % 997 for i in range(length)]


def make_engine(
    *,
    least: int = 8,
    checkpoints: int = 50,
    interval: int = 0,
    window: int = 0,
    eos_after: int | None = None,
    **config: Any,
) -> Engine:
    config = {"num_blocks": 400, **config}
    options = FakeOptions(
        window=window,
        has_state=True,
        num_checkpoints=checkpoints,
        checkpoint_interval=interval,
        eos_after=eos_after,
    )
    engine = Engine(make_config(**config), options)
    state = engine.core.scheduler.state
    state.limits = state.limits._replace(min_checkpoint_tokens=least)
    return engine


def steps(engine: Engine) -> list[list[int]]:
    return [plan.num_scheduled.tolist() for plan in engine.runner.launched]


def saved(engine: Engine) -> list[int]:
    """Tokens of the states that were saved, in order."""
    tokens = []
    for plan in engine.runner.launched:
        ends = (plan.num_computed + plan.num_scheduled).tolist()
        at = dict(zip(plan.rows.tolist(), ends, strict=True))
        tokens += [at[copy.source] for copy in plan.saves]
    return tokens


# -- where ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "start", "branch", "interval", "least", "points"),
    [
        (100, 0, 0, 0, 8, (96,)),  # the last whole block that an equal prompt may be given
        (97, 0, 0, 0, 8, (96,)),
        (96, 0, 0, 0, 8, (92,)),
        (100, 0, 0, 32, 8, (32, 64, 96)),
        (128, 0, 0, 32, 8, (32, 64, 96, 124)),
        (130, 0, 0, 32, 8, (32, 64, 96, 128)),
        (132, 0, 0, 32, 8, (32, 64, 96, 128)),
        (100, 40, 0, 32, 8, (64, 96)),
        (100, 60, 0, 32, 8, (96,)),  # 64 is too near to what was restored
        (100, 0, 52, 0, 8, (52, 96)),
        (100, 0, 92, 0, 8, (92,)),  # the end is too near to where prompts part
        (100, 52, 52, 0, 8, (96,)),
        (100, 0, 0, 0, 97, ()),  # short: not cut
        (5, 0, 0, 0, 1, (4,)),
        (4, 0, 0, 0, 1, ()),
    ],
)
def test_where_a_prompts_state_is_saved(
    length: int, start: int, branch: int, interval: int, least: int, points: tuple[int, ...]
) -> None:
    seq = Sequence(GenerateRequest("s", prompt(length), GREEDY), GREEDY, 0, 0.0)
    layout = CacheLayout(100, 4, has_state=True, num_checkpoints=9, checkpoint_interval=interval)
    assert save_points(seq, start, branch, layout, least) == points


def test_chunks_end_where_the_state_is_saved() -> None:
    engine = make_engine(interval=32, max_num_batched_tokens=256)
    engine.add("a", prompt(75), greedy(1))
    engine.run()
    assert steps(engine) == [[32], [32], [8], [3]]
    assert saved(engine) == [32, 64, 72]


def test_a_short_prompt_is_not_cut() -> None:
    engine = make_engine(least=32)
    engine.add("a", prompt(30), greedy(1))
    engine.run()
    assert steps(engine) == [[30]]
    assert engine.core.stats().checkpoint_saves == 0


@BOTH_LOOPS
def test_a_decode_that_reaches_the_interval_is_saved(overlap: bool) -> None:
    engine = make_engine(interval=16, overlap=overlap)
    engine.add("a", prompt(14), greedy(40))
    engine.run()
    assert saved(engine) == [12, 16, 32, 48]
    dialogue = [*prompt(14), *engine.tokens["a"], 3]
    engine.add("b", dialogue, greedy(2))
    engine.run()
    assert engine.chunks["b"][0].num_cached_tokens == 48
    assert engine.tokens["b"] == engine.expected("b")


def test_scored_prompts_save_where_the_context_ends() -> None:
    engine = make_engine(least=8)
    for choice in range(3):
        score = greedy(0, prompt_logprobs=1, logprobs_start=22)
        engine.add(f"c{choice}", [*prompt(22), 900 + choice, 5], score)
    engine.run()
    assert [engine.chunks[f"c{i}"][0].num_cached_tokens for i in range(3)] == [0, 20, 20]


# -- hits -----------------------------------------------------------------------------------------


@BOTH_LOOPS
def test_an_equal_prompt_goes_on_from_the_last_checkpoint(overlap: bool) -> None:
    engine = make_engine(overlap=overlap)
    for name in "ab":
        engine.add(name, prompt(50), greedy(3))
        engine.run()
    assert engine.chunks["b"][0].num_cached_tokens == 48
    assert engine.tokens["a"] == engine.tokens["b"] == engine.expected("a")
    assert engine.core.stats().checkpoint_restores == 1


def test_without_its_checkpoint_a_prefix_is_no_hit() -> None:
    engine = make_engine()
    engine.add("a", prompt(50), greedy(1))
    engine.run()
    blocks = engine.core.scheduler.blocks
    assert blocks.checkpoints is not None
    (id_,) = [i for i, e in enumerate(blocks.checkpoints._entries) if e is not None]
    blocks.checkpoints.forget(id_)
    engine.runner.naive.overwrite_checkpoint(512 + id_)
    engine.add("b", prompt(50), greedy(1))
    engine.run()
    assert engine.chunks["b"][0].num_cached_tokens == 0
    engine.add("c", prompt(50), greedy(1))  # the entry that lost it got b's
    engine.run()
    assert engine.chunks["c"][0].num_cached_tokens == 48


@BOTH_LOOPS
def test_where_prompts_part_the_second_saves_and_the_others_wait_for_it(overlap: bool) -> None:
    """A system prompt under many questions: its end is no end of any prompt."""
    engine = make_engine(overlap=overlap, max_num_batched_tokens=512, block_size=4)
    for i in range(8):
        engine.add(f"r{i}", [*prompt(102), *prompt(30, 40 + i)], greedy(2))
    engine.run()
    cached = [engine.chunks[f"r{i}"][0].num_cached_tokens for i in range(8)]
    assert cached == [0, 0, *[100] * 6]
    assert all(engine.tokens[name] == engine.expected(name) for name in engine.requests)


def test_nobody_waits_for_a_prefix_that_no_checkpoint_will_end() -> None:
    engine = make_engine(least=200, max_num_batched_tokens=512)
    for i in range(3):
        engine.add(f"r{i}", [*prompt(100), i, i + 1], greedy(2))
    engine.step()
    assert steps(engine) == [[102, 102, 102]]
    engine.run()


@BOTH_LOOPS
def test_equal_prompts_wait_for_the_checkpoint(overlap: bool) -> None:
    engine = make_engine(overlap=overlap)
    for i in range(4):
        engine.add(f"r{i}", prompt(50), greedy(2))
    engine.run()
    assert engine.runner.prompt_tokens == 50 + 3 * 2
    engine.check_idle()


@BOTH_LOOPS
def test_those_who_wait_go_on_when_the_leader_is_aborted(overlap: bool) -> None:
    engine = make_engine(overlap=overlap, max_num_batched_tokens=16)
    for i in range(3):
        engine.add(f"r{i}", prompt(50), greedy(2))
    engine.step()
    engine.step()
    engine.abort("r0")
    engine.run(max_steps=60)
    assert engine.finished == {"r0": "abort", "r1": "length", "r2": "length"}
    engine.check_idle()


def test_a_state_saved_for_one_that_left_is_not_published() -> None:
    engine = make_engine(overlap=True)
    engine.add("a", prompt(50), greedy(9))
    engine.step()  # launched: 48 tokens and the save
    engine.abort("a")
    engine.run()
    stats = engine.core.stats()
    assert (len(saved(engine)), stats.checkpoint_saves, stats.num_cached_checkpoints) == (1, 0, 0)
    engine.check_idle()


def test_a_state_saved_by_a_surplus_step_is_not_published() -> None:
    engine = make_engine(interval=16, overlap=True, eos_after=2)
    engine.add("a", prompt(14), SamplingParams(temperature=0.0, max_tokens=20))
    engine.run()
    assert engine.finished["a"] == "stop"
    stats = engine.core.stats()
    assert saved(engine) == [12, 16]  # the second one after the end was sampled
    assert (stats.checkpoint_saves, stats.num_cached_checkpoints) == (1, 1)
    engine.check_idle()


def test_a_state_is_published_only_when_its_step_is_collected() -> None:
    engine = make_engine(overlap=True)
    engine.add("a", prompt(50), greedy(9))
    engine.step()
    assert engine.core.stats().num_cached_checkpoints == 0
    engine.step()
    assert engine.core.stats().num_cached_checkpoints == 1


def test_equal_states_saved_at_once_are_kept_once() -> None:
    engine = make_engine(max_num_batched_tokens=512)
    limits = engine.core.scheduler.state.limits
    engine.core.scheduler.state.limits = limits._replace(min_shared_tokens=1000)
    engine.add("a", prompt(50), greedy(2))
    engine.add("b", prompt(50), greedy(2))
    engine.run()
    assert saved(engine) == [48, 48]
    assert engine.core.stats().num_cached_checkpoints == 1
    engine.check_idle()


def test_a_state_that_is_kept_already_is_not_saved_again() -> None:
    engine = make_engine(max_num_batched_tokens=32)
    limits = engine.core.scheduler.state.limits
    engine.core.scheduler.state.limits = limits._replace(min_shared_tokens=1000)
    engine.add("a", prompt(50), greedy(2))
    engine.add("b", prompt(50), greedy(2))
    engine.run()
    assert steps(engine)[:3] == [[32], [16, 16], [2, 30]]
    assert saved(engine) == [48]
    engine.check_idle()


def test_a_reset_forgets_checkpoints_and_those_on_their_way() -> None:
    engine = make_engine(overlap=True, max_num_batched_tokens=32, interval=16)
    engine.add("a", prompt(50), greedy(9))
    engine.step()
    engine.step()
    assert engine.core.stats().num_cached_checkpoints == 1
    engine.reset_prefix_cache()
    assert engine.core.stats().num_cached_checkpoints == 0
    engine.run()
    engine.add("b", prompt(50), greedy(2))
    engine.run()
    assert engine.chunks["b"][0].num_cached_tokens == 0


@BOTH_LOOPS
def test_preempted_it_goes_on_from_its_own_checkpoint(overlap: bool) -> None:
    engine = make_engine(overlap=overlap, num_blocks=26, max_num_seqs=2, interval=8)
    engine.add("a", prompt(40), greedy(24))
    engine.add("b", prompt(30, 5), greedy(24))
    engine.run()
    assert engine.core.stats().preemptions > 0
    assert engine.tokens["b"] == engine.expected("b")
    engine.check_idle()


# -- which checkpoint gives way -------------------------------------------------------------------


def test_a_long_prompts_inner_checkpoints_give_way_before_the_ends_of_others() -> None:
    engine = make_engine(checkpoints=4, interval=16, max_num_batched_tokens=512)
    for i in range(2):
        engine.add(f"short{i}", prompt(14, 10 + i), greedy(1))
        engine.run()
    engine.add("long", prompt(200), greedy(1))
    engine.run()
    for name, tokens in (("x", prompt(14, 10)), ("y", prompt(14, 11)), ("z", prompt(200))):
        engine.add(name, tokens, greedy(1))
        engine.run()
    cached = [engine.chunks[name][0].num_cached_tokens for name in "xyz"]
    assert cached == [12, 12, 192]


def test_where_prompts_parted_outlives_their_ends() -> None:
    engine = make_engine(checkpoints=3, max_num_batched_tokens=512)
    for i in range(2):
        engine.add(f"r{i}", [*prompt(102), *prompt(30, 40 + i)], greedy(1))
        engine.run()
    assert saved(engine) == [128, 100, 128]
    engine.add("other", prompt(50, 77), greedy(1))
    engine.run()
    engine.add("r2", [*prompt(102), *prompt(30, 42)], greedy(1))
    engine.run()
    assert engine.chunks["r2"][0].num_cached_tokens == 100


def test_with_every_checkpoint_being_written_a_save_is_left_out_and_counted() -> None:
    engine = make_engine(checkpoints=1, max_num_batched_tokens=512)
    engine.add("a", prompt(50), greedy(1))
    engine.add("b", prompt(50, 9), greedy(1))
    engine.run()
    stats = engine.core.stats()
    assert (stats.checkpoint_saves, stats.checkpoint_skips) == (1, 1)


# -- when nothing is reused -----------------------------------------------------------------------


def test_without_checkpoints_nothing_is_reused_and_the_reason_is_said() -> None:
    engine = make_engine(checkpoints=0)
    info = engine.core.info
    assert not info.prefix_caching
    assert "no memory is left for checkpoints" in info.prefix_caching_reason
    engine.add("a", prompt(50), greedy(1))
    engine.run()
    assert steps(engine) == [[50]]
    assert engine.core.stats().prefix_cache_queries == 0


@BOTH_LOOPS
def test_windows_and_state_together(overlap: bool) -> None:
    engine = make_engine(window=10, overlap=overlap, interval=16)
    for i in range(6):
        engine.add(f"r{i}", [*prompt(64), *prompt(i, 3)], greedy(30))
        engine.run()
    cached = [engine.chunks[f"r{i}"][0].num_cached_tokens for i in range(6)]
    assert cached == [0, 60, 60, 60, 60, 60]
    assert all(engine.tokens[name] == engine.expected(name) for name in engine.requests)
