"""Who runs in a step: budgets, policies, delay, preemption, fairness, shared prefixes, stops."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from engine.engine_helpers import GREEDY, Clock, Engine, make_config

from atom.engine.block_manager import BlockManager
from atom.engine.cache_layout import CacheLayout
from atom.engine.core import (
    DEFAULT_PREFILL_CHUNK,
    MAX_PROMPT_STEP,
    EngineCore,
    resolve_limits,
)
from atom.engine.messages import GenerateRequest
from atom.engine.plan import StepPlan
from atom.engine.runner.fake import FakeOptions, FakeRunner, reference_tokens
from atom.engine.sampling_params import SamplingParams
from atom.engine.scheduler import Scheduler
from atom.engine.sequence import Sequence
from atom.errors import NeverFitError, RequestError

BOTH_LOOPS = pytest.mark.parametrize("overlap", [False, True], ids=["sync", "overlap"])
POLICIES = pytest.mark.parametrize("policy", ["prefill_first", "mixed", "throughput"])


def greedy(max_tokens: int, **fields: Any) -> SamplingParams:
    return msgspec.structs.replace(GREEDY, max_tokens=max_tokens, **fields)


def prompt(length: int, start: int = 0) -> list[int]:
    """Distinct prompts for distinct starts: token i of each is another one."""
    return [(start * 131 + i * 7) % 997 for i in range(length)]


def scheduled(plan: StepPlan) -> dict[int, int]:
    return dict(zip(plan.rows.tolist(), plan.num_scheduled.tolist(), strict=True))


def counts(engine: Engine) -> list[list[int]]:
    """Tokens scheduled in each launched step."""
    return [sorted(plan.num_scheduled.tolist(), reverse=True) for plan in engine.runner.launched]


# -- budget and policies --------------------------------------------------------------------------


def test_prefill_first_alternates_chunks_with_decodes() -> None:
    engine = Engine(make_config(max_num_batched_tokens=100, max_prefill_chunk=10))
    engine.add("stream", prompt(4), greedy(9))
    engine.step()
    engine.add("long", prompt(25, 1), greedy(1))
    engine.run()
    # No stream waits for more than one chunk between two tokens.
    assert counts(engine)[:8] == [[4], [1], [10], [1], [10], [1], [5], [1]]


def test_prefill_first_fills_the_budget_when_no_stream_runs() -> None:
    engine = Engine(make_config(max_num_batched_tokens=40, max_prefill_chunk=10))
    engine.add("long", prompt(55), greedy(2))
    engine.add("short", prompt(3, 1), greedy(2))
    engine.run()
    assert counts(engine)[:3] == [[40], [15, 3], [1, 1]]


def test_prompts_that_come_together_do_not_wait_for_the_last_of_many() -> None:
    engine = Engine(make_config(num_blocks=2000))  # a token budget of 16384
    for i in range(10):
        engine.add(f"r{i}", prompt(256, i), greedy(9))
    engine.run()
    assert counts(engine)[:4] == [[256, 256], [1, 1], [256], [1, 1, 1]]


def test_mixed_decodes_first_and_fills_the_same_step_with_chunks() -> None:
    engine = Engine(make_config(policy="mixed", max_num_batched_tokens=12, max_prefill_chunk=50))
    engine.add("a", prompt(4), greedy(9))
    engine.add("b", prompt(4, 1), greedy(9))
    engine.step()
    engine.add("long", prompt(25, 2), greedy(1))
    engine.step()
    plan = engine.runner.launched[-1]
    assert plan.num_scheduled.tolist() == [1, 1, 10]  # decodes stand first in the step
    engine.run()
    assert counts(engine)[1:4] == [[10, 1, 1], [10, 1, 1], [5, 1, 1]]


def test_throughput_fills_whole_steps_with_prompts_then_mixes_the_rest() -> None:
    engine = Engine(make_config(policy="throughput", num_blocks=99, max_num_batched_tokens=40))
    for i in range(9):
        engine.add(f"r{i}", prompt(10, i), greedy(3))
    engine.run()
    # Two whole steps although streams wait; the last prompt alone fills none and joins them.
    assert counts(engine) == [[10] * 4, [10] * 4, [10, *[1] * 8], [1] * 9, [1]]


def test_throughput_mixes_what_the_rows_let_in() -> None:
    engine = Engine(make_config(policy="throughput", max_num_seqs=2, max_num_batched_tokens=20))
    for i, length in enumerate([10, 10, 6]):
        engine.add(f"r{i}", prompt(length, i), greedy(2 + i))
    engine.run()
    assert counts(engine) == [[10, 10], [1, 1], [6, 1], [1], [1], [1]]


def test_who_waits_for_whom_by_default() -> None:
    """Streams are protected in the server; offline, prompts fill the device."""
    for device in ("cpu", "cuda"):
        served = resolve_limits(make_config(), device)
        offline = resolve_limits(make_config(policy="throughput"), device)
        assert served.policy == "prefill_first"
        assert served.max_prefill_chunk == DEFAULT_PREFILL_CHUNK[device]
        assert offline.max_prefill_chunk == offline.max_prompt_step
        assert offline.max_prompt_step == min(16384, MAX_PROMPT_STEP[device])
    asked = resolve_limits(make_config(policy="throughput", max_prefill_chunk=100), "cuda")
    assert asked.max_prefill_chunk == 100


def test_256_prompts_of_1024_tokens_are_admitted_16_a_step() -> None:
    config = make_config(policy="throughput", num_blocks=20_000, block_size=16)
    limits = resolve_limits(config, "cuda")
    scheduler = Scheduler(limits, BlockManager(CacheLayout(20_000, 16), True), ())
    sampling = greedy(128)
    for i in range(256):
        tokens = [i + 1, *prompt(1023, i)]
        scheduler.add(Sequence(GenerateRequest(f"r{i}", tokens, sampling), sampling, 0, 0.0))
    steps = []
    for _ in range(17):
        schedule = scheduler.plan(0.0, in_flight=bool(steps))
        assert not schedule.collect_first
        plan = scheduler.apply(schedule, 0.0)
        assert plan is not None
        steps.append((len(plan.rows), plan.num_tokens))
    assert steps == [*[(16, 16384)] * 16, (256, 256)]


@POLICIES
def test_max_num_seqs_counts_everything_that_runs(policy: str) -> None:
    engine = Engine(make_config(policy=policy, max_num_seqs=3, max_num_batched_tokens=64))
    for i in range(8):
        engine.add(f"r{i}", prompt(5, i), greedy(4 + i))
    most = 0
    while engine.core.has_work:
        engine.step()
        most = max(most, engine.core.scheduler.num_running)
    assert most == 3
    assert list(engine.finished) == sorted(engine.finished, key=lambda name: int(name[1:]))


def test_more_sequences_than_the_token_budget_never_run() -> None:
    engine = Engine(make_config(policy="mixed", max_num_seqs=64, max_num_batched_tokens=4))
    assert engine.core.info.max_num_seqs == 4
    for i in range(6):
        engine.add(f"r{i}", prompt(6, i), greedy(5))
    engine.run()
    assert len(engine.finished) == 6


def test_prefix_hits_are_not_charged_to_the_budget() -> None:
    engine = Engine(make_config(max_num_batched_tokens=24, max_num_seqs=8))
    engine.add("first", prompt(20), greedy(1))
    engine.run()
    for i in range(4):
        engine.add(f"r{i}", [*prompt(20), 500 + i], greedy(1))
    engine.step()
    assert counts(engine)[-1] == [1, 1, 1, 1]


@POLICIES
@BOTH_LOOPS
def test_planning_changes_nothing(policy: str, overlap: bool) -> None:
    engine = Engine(make_config(policy=policy, overlap=overlap, num_blocks=20, max_num_seqs=4))
    for i in range(6):
        engine.add(f"r{i}", [*prompt(13), i, i + 1], greedy(12))
    scheduler = engine.core.scheduler
    while engine.core.has_work:
        before = state_of(engine)
        first = scheduler.plan(engine.clock.now, in_flight=False)
        second = scheduler.plan(engine.clock.now, in_flight=False)
        assert repr(first) == repr(second)
        assert state_of(engine) == before
        engine.step()


def state_of(engine: Engine) -> list[Any]:
    scheduler = engine.core.scheduler
    blocks, table, state = scheduler.blocks, scheduler.table, scheduler.state
    seqs = [*state.waiting, *state.running]
    return [
        list(blocks._ref_counts),
        list(blocks._idle),
        list(blocks._free),
        dict(blocks._by_hash),
        dict(blocks._pending),
        [table.num_computed.tolist(), table.num_tokens.tolist(), table.capacity.tolist()],
        [list(seq.block_table) for seq in seqs],
        [(seq.request_id, seq.held_on, seq.row, list(seq.block_hashes)) for seq in seqs],
        state.running_rows.tolist(),
        state.last_was_prefill,
    ]


# -- the delay factor -----------------------------------------------------------------------------


def test_delay_factor_holds_a_prompt_back_while_streams_run() -> None:
    engine = Engine(make_config(scheduler_delay_factor=2.0))
    engine.add("stream", prompt(4), greedy(100))
    engine.step()
    engine.core.scheduler.record_prompt_step(0.5)
    engine.add("late", prompt(4, 1), greedy(2))
    for _ in range(5):
        engine.step()
    assert engine.core.scheduler.num_waiting == 1
    engine.clock.now += 1.0  # exactly the delay is not beyond it
    engine.step()
    assert engine.core.scheduler.num_waiting == 1
    engine.clock.now += 0.01
    engine.step()
    assert engine.core.scheduler.num_waiting == 0


def test_delay_factor_does_not_hold_when_nothing_runs() -> None:
    engine = Engine(make_config(scheduler_delay_factor=1000.0))
    engine.core.scheduler.record_prompt_step(1000.0)
    engine.add("only", prompt(4), greedy(2))
    engine.run(max_steps=5)
    assert engine.finished == {"only": "length"}


def test_the_delay_counts_in_measured_prompt_steps() -> None:
    config = make_config(scheduler_delay_factor=1.0)
    clock = Clock()

    class Slow(FakeRunner):
        def launch(self, plan: StepPlan) -> Any:
            clock.now += 3.0
            return super().launch(plan)

    core = EngineCore(config, Slow(config), clock=clock)
    core.add(GenerateRequest("a", prompt(4), greedy(3)))
    core.step()
    core.step()  # a decode step is not a prompt step
    assert core.scheduler.state.last_prompt_s == 3.0


# -- preemption and fairness ----------------------------------------------------------------------


@POLICIES
@BOTH_LOOPS
def test_the_last_in_is_preempted_first_and_recomputed(policy: str, overlap: bool) -> None:
    engine = Engine(
        make_config(policy=policy, overlap=overlap, num_blocks=12, caching=False, max_num_seqs=3)
    )
    for i in range(3):
        engine.add(f"r{i}", prompt(8, i), greedy(30))
    preempted = []
    scheduler = engine.core.scheduler
    while engine.core.has_work:
        waiting = {seq.request_id for seq in scheduler.state.waiting}
        engine.step()
        preempted += [
            seq.request_id
            for seq in scheduler.state.waiting
            if seq.request_id not in waiting and seq.preemptions
        ]
    assert preempted[0] == "r2"
    assert "r0" not in preempted  # the first in always goes on
    assert list(engine.finished) == ["r0", "r1", "r2"]
    for name in engine.requests:
        assert engine.tokens[name] == engine.expected(name)
    timings = engine.chunks["r2"][-1].timings
    assert timings is not None
    assert timings.preemptions == preempted.count("r2")


def test_preemption_under_overlap_waits_for_the_tokens_in_flight() -> None:
    engine = Engine(make_config(overlap=True, num_blocks=6, caching=False))
    engine.add("a", prompt(8), greedy(17))
    engine.add("b", prompt(8, 1), greedy(17))
    scheduler = engine.core.scheduler
    saw = False
    while engine.core.has_work:
        schedule = scheduler.plan(engine.clock.now, in_flight=True)
        if engine.core._in_flight is not None and schedule.collect_first:
            saw = True
            assert schedule.empty
        engine.step()
    assert saw
    assert engine.tokens["b"] == engine.expected("b")


def test_a_big_request_at_the_head_is_not_starved() -> None:
    engine = Engine(make_config(num_blocks=16, caching=False, max_num_seqs=8))
    for i in range(3):
        engine.add(f"small{i}", prompt(8, i), greedy(6))
    engine.step()
    engine.add("big", prompt(48, 50), greedy(4))
    number = 3
    for _ in range(60):
        engine.add(f"small{number}", prompt(8, number), greedy(6))  # the queue never runs dry
        number += 1
        engine.step()
        if "big" in engine.finished:
            break
    assert "big" in engine.finished
    assert "small3" not in engine.finished  # nobody overtook it
    engine.abort(*[name for name in engine.requests if name not in engine.finished])
    engine.run()
    engine.check_idle()


# -- never-fit ------------------------------------------------------------------------------------


def test_a_request_that_can_never_fit_is_refused_with_its_numbers() -> None:
    engine = Engine(make_config(num_blocks=8, block_size=4, max_model_len=1000))
    with pytest.raises(NeverFitError, match=r"30 prompt tokens \+ max_tokens 4 .* 32 .*at most 3"):
        engine.add("x", prompt(30), greedy(4))
    with pytest.raises(NeverFitError, match="33 tokens, more than the KV cache's 32"):
        engine.add("y", prompt(33), greedy(1))
    assert not engine.core.has_work


@BOTH_LOOPS
def test_a_request_that_just_fits_runs_to_its_end(overlap: bool) -> None:
    engine = Engine(make_config(num_blocks=8, block_size=4, overlap=overlap))
    engine.add("full", prompt(30), greedy(3))  # 32 slots: the last token needs none
    engine.add("other", prompt(5, 1), greedy(20))
    engine.run()
    assert engine.tokens["full"] == engine.expected("full")
    assert engine.tokens["other"] == engine.expected("other")


def test_the_core_refuses_what_the_doors_should_have_refused() -> None:
    engine = Engine(make_config())
    engine.add("a", prompt(3))
    for bad, words in (
        (GenerateRequest("a", [1], GREEDY), "in use"),
        (GenerateRequest("b", [], GREEDY), "empty"),
        (GenerateRequest("c", [1, 1000], GREEDY), "token 1000, outside the vocabulary"),
        (GenerateRequest("d", [-1], GREEDY), "token -1"),
        (GenerateRequest("e", [2**40], GREEDY), "outside the vocabulary"),
        (GenerateRequest("f", [1], greedy(1, top_p=0.0)), "top_p"),
    ):
        with pytest.raises(RequestError, match=words):
            engine.core.add(bad)
    engine.run()
    assert engine.finished == {"a": "length"}


# -- shared prefixes ------------------------------------------------------------------------------


@POLICIES
@BOTH_LOOPS
def test_a_shared_prefix_is_computed_once(policy: str, overlap: bool) -> None:
    engine = Engine(
        make_config(
            policy=policy, overlap=overlap, num_blocks=200, block_size=16, max_num_batched_tokens=64
        )
    )
    stem = prompt(160)
    for i in range(8):
        engine.add(f"r{i}", [*stem, 900 + i], greedy(3))
    engine.run()
    assert engine.runner.prompt_tokens == 161 + 7  # the stem once, its own last token each
    for name in engine.requests:
        assert engine.tokens[name] == engine.expected(name)


def test_equal_prompts_leave_one_token_to_compute() -> None:
    engine = Engine(make_config(block_size=16))
    for i in range(4):
        engine.add(f"r{i}", prompt(32), greedy(2))
    engine.run()
    assert engine.runner.prompt_tokens == 32 + 3 * 16  # the last block is never taken whole


@BOTH_LOOPS
def test_a_held_prompt_goes_on_when_the_one_it_waits_for_is_aborted(overlap: bool) -> None:
    engine = Engine(
        make_config(overlap=overlap, num_blocks=100, block_size=16, max_num_batched_tokens=32)
    )
    stem = prompt(160)
    for i in range(3):
        engine.add(f"r{i}", [*stem, 900 + i], greedy(3))
    engine.step()
    engine.step()
    assert engine.core.scheduler.num_waiting == 2
    engine.abort("r0")
    engine.run(max_steps=60)
    assert engine.finished == {"r0": "abort", "r1": "length", "r2": "length"}
    assert engine.tokens["r2"] == engine.expected("r2")
    engine.check_idle()


def test_others_overtake_a_held_prompt() -> None:
    engine = Engine(make_config(block_size=16, num_blocks=100, max_num_batched_tokens=64))
    engine.add("leader", [*prompt(100), 1], greedy(3))
    engine.add("held", [*prompt(100), 2], greedy(3))
    engine.add("other", prompt(20, 9), greedy(3))
    engine.step()
    engine.step()
    running = [seq.request_id for seq in engine.core.scheduler.state.running]
    assert running == ["leader", "other"]


def test_prompt_logprobs_neither_read_the_cache_nor_wait_for_it() -> None:
    engine = Engine(make_config(block_size=4))
    engine.add("first", prompt(20), greedy(2))
    engine.run()
    engine.add("asks", prompt(20), greedy(2, prompt_logprobs=0))
    engine.add("asks too", prompt(20), greedy(2, prompt_logprobs=0))
    engine.step()
    assert counts(engine)[-1] == [20, 20]
    engine.run()
    first = engine.chunks["asks"][0]
    assert first.num_cached_tokens == 0
    assert first.prompt_logprobs is not None
    assert len(first.prompt_logprobs) == 20


@pytest.mark.parametrize(
    ("start", "cached"), [(0, 0), (4, 0), (5, 4), (16, 12), (17, 16), (20, 16)]
)
def test_the_cache_serves_what_stands_before_the_scored_tokens(start: int, cached: int) -> None:
    engine = Engine(make_config(block_size=4))
    engine.add("first", prompt(20), greedy(2))
    engine.run()
    engine.add("asks", prompt(20), greedy(0, prompt_logprobs=0, logprobs_start=start))
    engine.run()
    (chunk,) = engine.chunks["asks"]
    assert chunk.num_cached_tokens == cached
    assert chunk.prompt_logprobs is not None
    first = max(1, start)
    assert chunk.prompt_logprobs[:first] == [None] * first
    scored = [entry.token_ids[0] for entry in chunk.prompt_logprobs[first:] if entry is not None]
    assert scored == prompt(20)[first:]
    assert engine.core.stats().prefix_cache_hits == cached


@POLICIES
@BOTH_LOOPS
def test_the_choices_of_a_question_share_its_blocks(policy: str, overlap: bool) -> None:
    """Scoring requests of one batch: the context is computed by the first alone."""
    engine = Engine(make_config(policy=policy, overlap=overlap, num_blocks=200, block_size=4))
    asked = []
    for question in range(6):
        context = prompt(22, 40 * question)
        for choice in range(4):
            tokens = [*context, 900 + choice, 901 + choice, 902 + choice]
            score = greedy(0, prompt_logprobs=1, logprobs_start=len(context))
            engine.add(f"q{question} c{choice}", tokens, score)
            asked.append(tokens)
    engine.run()
    # 21 tokens of 22 may be read, in blocks of 4: 20; each choice computes 25 - 20.
    assert engine.runner.prompt_tokens == 6 * (25 + 3 * 5)
    # One step for the leaders, one for those that waited for them.
    assert engine.runner.steps == 2
    for name, tokens in zip(engine.requests, asked, strict=True):
        entries = engine.chunks[name][0].prompt_logprobs
        assert entries is not None
        assert [e.token_ids[0] for e in entries[22:] if e is not None] == tokens[22:]


def test_preempted_before_its_first_token_it_is_scored_anew() -> None:
    """Entries of a first, unfinished pass are not delivered twice."""
    engine = Engine(
        make_config(
            policy="mixed",
            num_blocks=9,
            block_size=4,
            max_num_batched_tokens=12,
            max_prefill_chunk=1,
        )
    )
    engine.add("stream", prompt(6), greedy(24))
    engine.step()
    engine.step()
    engine.add("asks", prompt(20, 50), greedy(1, prompt_logprobs=0, logprobs_start=7))
    engine.run()
    assert engine.core.stats().preemptions > 0
    entries = engine.chunks["asks"][0].prompt_logprobs
    assert entries is not None
    assert [e and e.token_ids[0] for e in entries] == [None] * 7 + prompt(20, 50)[7:]


# -- the end of a sequence ------------------------------------------------------------------------


@BOTH_LOOPS
def test_max_tokens_zero_computes_the_prompt_alone(overlap: bool) -> None:
    engine = Engine(make_config(overlap=overlap))
    engine.add("echo", prompt(9), greedy(0, prompt_logprobs=1))
    engine.run()
    (chunk,) = engine.chunks["echo"]
    assert chunk.token_ids == []
    assert chunk.finish_reason == "length"
    assert chunk.prompt_logprobs is not None
    assert len(chunk.prompt_logprobs) == 9
    engine.check_idle()


def test_no_surplus_step_for_an_end_that_is_known() -> None:
    engine = Engine(make_config(overlap=True))
    engine.add("a", prompt(5), greedy(6))
    engine.run()
    assert engine.runner.steps == 6
    assert engine.runner.computed_tokens == 5 + 5


def test_one_surplus_token_after_an_eos_is_thrown_away() -> None:
    options = FakeOptions(eos_after=4)
    engine = Engine(make_config(overlap=True), options)
    engine.add("a", prompt(5), SamplingParams(temperature=0, max_tokens=50))
    engine.run()
    assert engine.tokens["a"][-1] == 2
    assert engine.finished["a"] == "stop"
    assert len(engine.tokens["a"]) == 4
    assert engine.runner.steps == 5  # 4 and the surplus one
    assert engine.core.stats().generation_tokens == 4
    engine.check_idle()


def test_blocks_of_an_ended_sequence_wait_for_the_last_step_that_uses_them() -> None:
    engine = Engine(make_config(overlap=True, caching=False), FakeOptions(eos_after=2))
    engine.add("a", prompt(5), SamplingParams(temperature=0, max_tokens=50))
    while "a" not in engine.finished:
        engine.step()
    assert engine.core.scheduler.blocks.num_used == 2  # the surplus step still runs
    assert engine.core.has_work
    engine.step()
    engine.check_idle()


@BOTH_LOOPS
def test_an_abort_in_flight_frees_everything_once(overlap: bool) -> None:
    engine = Engine(make_config(overlap=overlap, max_num_seqs=4))
    for i in range(6):
        engine.add(f"r{i}", prompt(10, i), greedy(30))
    for _ in range(4):
        engine.step()
    engine.abort("r0", "r5", "unknown")
    engine.abort("r0")
    engine.step()
    assert engine.finished == {"r0": "abort", "r5": "abort"}
    engine.run()
    assert engine.tokens["r4"] == engine.expected("r4")
    engine.check_idle()


def test_min_tokens_defers_every_stop() -> None:
    options = FakeOptions(vocab_size=5, eos_token_ids=(2,))
    sampling = SamplingParams(temperature=0, max_tokens=30, min_tokens=20, stop_token_ids=(1,))
    engine = Engine(make_config(), options)
    engine.add("a", [3, 4], sampling)
    engine.run()
    assert 20 <= len(engine.tokens["a"]) < 30
    assert not set(engine.tokens["a"][:19]) & {1, 2}


def test_timings_are_taken_from_the_clock() -> None:
    engine = Engine(make_config(max_num_seqs=1))
    engine.add("first", prompt(3), greedy(2))
    engine.add("a", prompt(3, 1), greedy(3))
    for _ in range(5):
        engine.step()
        engine.clock.now += 1.0
    timings = engine.chunks["a"][-1].timings
    assert timings is not None
    # "first" took the steps at 0 and 1 s; "a" was scheduled at 2 s and had tokens at 2, 3 and 4 s.
    assert (timings.queued_s, timings.prefill_s, timings.decode_s) == (2.0, 0.0, 2.0)
    assert engine.chunks["a"][0].queued_s == 2.0


def test_drawn_seeds_repeat_with_the_configured_seed_and_differ_per_request() -> None:
    sampling = SamplingParams(max_tokens=6, ignore_eos=True)

    def run_two() -> list[list[int]]:
        engine = Engine(make_config())
        engine.add("a", prompt(4), sampling)
        engine.add("b", prompt(4), sampling)
        engine.run()
        return [engine.tokens["a"], engine.tokens["b"]]

    first = run_two()
    assert first == run_two()
    assert first[0] != first[1]
    assert reference_tokens(prompt(4), sampling, FakeOptions(), seed=0) not in first


def test_stats_add_up() -> None:
    engine = Engine(make_config())
    engine.add("a", prompt(9), greedy(4))
    engine.run()
    engine.add("b", [*prompt(9), 5], greedy(2))
    engine.run()
    stats = engine.core.stats()
    assert stats.prefix_cache_queries == 19
    assert stats.prefix_cache_hits == 8
    assert stats.prompt_tokens == 9 + 2
    assert stats.generation_tokens == 6
    assert stats.steps == 6
    assert stats.finished == {"length": 2}
    assert (stats.num_running, stats.num_waiting, stats.num_used_blocks) == (0, 0, 0)
