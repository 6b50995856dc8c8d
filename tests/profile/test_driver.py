"""The recorded steps are those asked for, all of them and nothing else, whatever the engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atom.config.schema import Config, EngineConfig, ModelConfig, SchedulerConfig
from atom.engine.core import EngineCore
from atom.engine.plan import StepOutput, StepPlan
from atom.engine.runner.fake import FakeOptions, FakeRunner
from atom.errors import RequestError
from atom.profile.driver import Driver
from atom.profile.shapes import Counts, Shape, runs_here


class Tape(FakeRunner):
    """A runner that knows, for each profile, the plans launched within it, and how many launched
    steps had not been waited for when it began and when it ended."""

    def __init__(self, config: Config, options: FakeOptions | None = None) -> None:
        super().__init__(config, options)
        self.plans: list[StepPlan] = []
        self.recorded: dict[str, list[StepPlan]] = {}
        self.in_flight = 0
        self.idle: list[bool] = []

    def launch(self, plan: StepPlan) -> Any:
        self.plans.append(plan)
        if self._profiling:
            self.recorded.setdefault(self._profiling, []).append(plan)
        self.in_flight += 1
        return Waited(super().launch(plan), self)

    def start_profile(self, stamp: str) -> None:
        self.idle.append(self.in_flight == 0)
        super().start_profile(stamp)

    def stop_profile(self) -> Callable[[], list[str]]:
        self.idle.append(self.in_flight == 0)
        return super().stop_profile()


class Waited:
    def __init__(self, done: Any, tape: Tape) -> None:
        self._done, self._tape = done, tape

    def wait(self) -> StepOutput:
        self._tape.in_flight -= 1
        output: StepOutput = self._done.wait()
        return output


def engine(
    *,
    block_size: int = 4,
    num_blocks: int = 256,
    overlap: bool = True,
    caching: bool = True,
    max_model_len: int = 256,
    options: FakeOptions | None = None,
    **scheduler: Any,
) -> tuple[EngineCore, Tape]:
    config = Config(
        model=ModelConfig(max_model_len=max_model_len),
        engine=EngineConfig(
            kv_cache_block_size=block_size,
            num_kvcache_blocks=num_blocks,
            overlap=overlap,
            enable_prefix_caching=caching,
        ),
        scheduler=SchedulerConfig(**scheduler),
    )
    tape = Tape(config, options)
    return EngineCore(config, tape), tape


def is_shape(shape: Shape, plan: StepPlan, number: int) -> bool:
    """Whether the recorded step `number` is one of the shape, computed from the plan alone."""
    if shape.kind == "prefill":
        fresh = len(plan.new_rows) == shape.batch and not plan.num_computed.any()
        return (
            fresh and (plan.num_scheduled == shape.tokens).all() and len(plan.rows) == shape.batch
        )
    one_each = (plan.num_scheduled == 1).all() and plan.samples.all() and not plan.new_rows
    seen = plan.num_computed + 1
    return one_each and len(plan.rows) == shape.batch and (seen == shape.tokens + number).all()


SHAPES = st.builds(
    Shape, st.sampled_from(["prefill", "decode"]), st.integers(1, 9), st.integers(1, 70)
)


@settings(max_examples=100, deadline=None)
@given(
    shapes=st.lists(SHAPES, min_size=1, max_size=3),
    counts=st.builds(Counts, st.integers(1, 5), st.integers(0, 3)),
    overlap=st.booleans(),
    caching=st.booleans(),
    block_size=st.sampled_from([1, 4, 16]),
    num_blocks=st.integers(4, 400),
    seqs=st.integers(1, 12),
    budget=st.integers(4, 200),
    policy=st.sampled_from(["auto", "prefill_first", "mixed", "throughput"]),
)
def test_exactly_the_steps_asked_for(
    shapes: list[Shape],
    counts: Counts,
    overlap: bool,
    caching: bool,
    block_size: int,
    num_blocks: int,
    seqs: int,
    budget: int,
    policy: str,
) -> None:
    core, tape = engine(
        overlap=overlap,
        caching=caching,
        block_size=block_size,
        num_blocks=num_blocks,
        max_num_seqs=seqs,
        max_num_batched_tokens=budget,
        policy=policy,
        scheduler_delay_factor=0.5,
    )
    limits = core.scheduler.state.limits
    driver = Driver(core, seed=3)
    for index, shape in enumerate(s for s in shapes if runs_here(s, core.info, counts)):
        made = driver.record(shape, counts, f"stamp{index}")
        assert made is not None
        assert (made.steps, made.asked) == (counts.steps, counts.steps)
        plans = tape.recorded[f"stamp{index}"]
        assert len(plans) == counts.steps
        assert all(is_shape(shape, plan, number) for number, plan in enumerate(plans))
        before = tape.plans[: next(i for i, p in enumerate(tape.plans) if p is plans[0])]
        assert counts.warmup == 0 or is_shape(shape, before[-1], -1)
        assert made.files == [f"rank_0/fake_ts_stamp{index}"]
        assert not core.has_work
        assert core.stats().num_used_blocks == 0
        core.check_invariants()
    assert all(tape.idle)  # no other step's work is in a recording
    assert core.scheduler.state.limits == limits


def test_prefills_follow_each_other_without_a_gap_where_two_fit() -> None:
    """In service the next step is launched before the one before it is collected."""
    core, tape = engine(max_num_seqs=4, max_num_batched_tokens=64)
    driver = Driver(core)
    most: list[int] = []
    launch = tape.launch

    def watched(plan: StepPlan) -> Any:
        done = launch(plan)
        most.append(tape.in_flight)
        return done

    tape.launch = watched  # type: ignore[method-assign]
    driver.record(Shape("prefill", 2, 16), Counts(4, 1), "a")
    assert max(most) == 2
    most.clear()
    driver.record(Shape("prefill", 3, 16), Counts(4, 1), "b")  # six sequences: no room
    assert max(most) == 1
    driver.record(Shape("decode", 4, 16), Counts(4, 1), "c")
    assert max(most) == 2


def test_steps_without_the_profiler_are_timed_after_the_recording() -> None:
    core, tape = engine(max_model_len=64)
    driver = Driver(core)
    made = driver.record(Shape("decode", 2, 40), Counts(8, 2), "a")
    assert made is not None
    assert made.plain_steps == 8
    assert made.plain_s > 0
    assert len(tape.recorded["a"]) == 8
    (last,) = (p.num_computed.max() for p in tape.plans[-1:])
    assert last == 40 + 16 - 2
    made = driver.record(Shape("decode", 2, 56), Counts(8, 2), "b")  # no room for more
    assert made is not None
    assert (made.steps, made.plain_steps) == (8, 0)


@pytest.mark.parametrize("kind", ["prefill", "decode"])
@pytest.mark.parametrize("after", range(0, 40, 3))
def test_a_stop_keeps_the_steps_that_were_recorded(kind: Any, after: int) -> None:
    core, tape = engine(max_num_batched_tokens=32)
    asked = 0

    def stopped() -> bool:
        nonlocal asked
        asked += 1
        return asked > after

    shape, counts = Shape(kind, 3, 10), Counts(6, 2)
    made = Driver(core, stopped=stopped).record(shape, counts, "a")
    plans = tape.recorded.get("a", [])
    if made is None:
        assert plans == []
    else:
        assert made.steps == len(plans) <= made.asked == 6
        assert tape.profiles == ["a"]
        assert all(is_shape(shape, plan, number) for number, plan in enumerate(plans))
    assert not core.has_work
    assert core.stats().num_used_blocks == 0
    assert not tape._profiling


def test_a_broken_engine_is_its_own_error_and_leaves_no_profile_running() -> None:
    core, tape = engine(options=FakeOptions(fail_at_step=5))
    with pytest.raises(RuntimeError, match="simulated device fault in step 5"):
        Driver(core).record(Shape("decode", 2, 20), Counts(8, 2), "a")
    assert not tape._profiling


def test_a_trace_that_cannot_be_written_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    core, tape = engine()

    def full() -> list[str]:
        raise RequestError("the trace could not be written: disk full", code="no_trace")

    def stop() -> Callable[[], list[str]]:
        tape._profiling = ""
        return full

    monkeypatch.setattr(tape, "stop_profile", stop)
    with pytest.raises(RequestError, match="disk full"):
        Driver(core).record(Shape("decode", 2, 20), Counts(2, 1), "a")
    assert not core.has_work


def test_prompts_differ() -> None:
    core, tape = engine(block_size=1)
    Driver(core, seed=1).record(Shape("prefill", 4, 16), Counts(3, 1), "a")
    prompts = [tuple(new.token_ids) for plan in tape.plans for new in plan.new_rows]
    assert len(set(prompts)) == len(prompts) >= 16
    other, again = engine(block_size=1)
    Driver(other, seed=1).record(Shape("prefill", 4, 16), Counts(3, 1), "a")
    assert [tuple(n.token_ids) for p in again.plans for n in p.new_rows][:4] == prompts[:4]
    assert np.unique([p[0] for p in prompts]).size > 1
