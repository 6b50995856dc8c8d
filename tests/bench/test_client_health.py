"""The verdict, the exact timer, the ticker."""

from __future__ import annotations

import asyncio
import re
from time import perf_counter, process_time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atom.bench.client.health import judge, median_gap_ms, percentile
from atom.bench.client.meter import TICK_S, Meter
from atom.bench.client.timer import ExactTimer
from atom.bench.client.wire import Final
from atom.bench.types import RequestRecord


def final(
    cpu: float = 0.1,
    waited: float = 0.0,
    lag_ms: float = 0.1,
    delay_ms: float = 0.1,
    elapsed: float = 10.0,
    kernel: int = 0,
    client: int = 0,
) -> Final:
    share = [0.0] * 95 + [lag_ms / 1000] * 5  # the worst 5 % of the ticks
    delays = [delay_ms / 1000] * 10
    return Final(elapsed, cpu * elapsed, waited * elapsed, 1000, share, delays, kernel, client)


def records(gap_ms: float, late_ms: float = 0.0) -> list[RequestRecord]:
    """Ten requests of 2 s with a TTFT of 100 ms; those that follow others begin late."""
    found = []
    for index in range(10):
        start = 2.0 * (index // 5)
        sent = start + (late_ms / 1000 if start else 0.05)
        times = [start + 0.1 + i * gap_ms / 1000 for i in range(20)]
        record = RequestRecord(index=index, token_times_s=times, ended_s=start + 2.0)
        record.intended_s, record.dispatched_s = start, sent
        found.append(record)
    return found


@pytest.mark.parametrize(
    ("one", "gap_ms", "open_loop", "reason"),
    [
        (final(), 20, True, None),
        (final(cpu=0.69), 20, False, None),
        (final(cpu=0.71), 20, False, "busy 71%"),
        (final(cpu=0.4, waited=0.4), 20, False, "busy 80%.*40% waiting for a CPU"),
        (final(lag_ms=1.9), 1, False, None),
        (final(lag_ms=2.1), 20, False, r"lag p99 2\.1 ms \(limit 2\.0\)"),
        (final(lag_ms=4.9), 100, False, None),
        (final(lag_ms=5.1), 100, False, r"lag p99 5\.1 ms \(limit 5\.0, 5% of the 100 ms"),
        # Of the median TTFT, 100 ms.
        (final(delay_ms=5.1), 20, True, r"5 ms .p99. after their arrival .limit 5"),
        (final(delay_ms=4.9), 20, True, None),
        (final(delay_ms=500), 20, False, None),
        # Moments by the kernel: lag only merges chunks, and waiting is judged by the lag.
        (final(kernel=1000, lag_ms=9.9), 20, False, None),
        (final(kernel=1000, lag_ms=10.1), 20, False, r"limit 10\.0, 50% of the 20 ms"),
        (final(kernel=1000, lag_ms=2.1), 3, False, r"lag p99 2\.1 ms \(limit 2\.0\)"),
        (final(kernel=1000, cpu=0.4, waited=0.5), 20, False, None),
        (final(kernel=1000, cpu=0.71), 20, False, "busy 71% of the time .limit 70%.;"),
        (final(kernel=1000, delay_ms=5.1), 20, True, "after their arrival"),
        (final(kernel=990, client=10, lag_ms=5), 20, False, None),
        (final(kernel=980, client=20, lag_ms=5), 20, False, "lag p99 5.*times: client"),
    ],
)
def test_each_limit_flips_the_verdict(
    one: Final, gap_ms: float, open_loop: bool, reason: str | None
) -> None:
    health = judge([final(), one], records(gap_ms), 0.3, open_loop)
    assert health.bound == (reason is not None), health.reason
    assert health.reason
    if reason is not None:
        assert re.search(reason, health.reason), health.reason
    assert health.workers == 2
    assert health.chunks_per_s == 200
    assert health.reason.endswith(f"arrival times: {health.arrival_clock}")


@pytest.mark.parametrize(
    ("late_ms", "open_loop", "bound"), [(39, False, False), (41, False, True), (41, True, False)]
)
def test_places_that_stand_empty(late_ms: float, open_loop: bool, bound: bool) -> None:
    """2 % of the 2 s that a request takes; the first ones, a second late, are the ramp."""
    health = judge([final()], records(20, late_ms), 0.3, open_loop)
    assert health.bound == bound
    assert ("places stood empty 2% of the time" in health.reason) == bound


@pytest.mark.parametrize(
    ("ramp_s", "open_loop", "bound"),
    [(0.05, False, False), (0.05, True, True), (0.03, False, True), (1.01, False, True)],
)
def test_lag_while_all_places_begin_is_the_loads(
    ramp_s: float, open_loop: bool, bound: bool
) -> None:
    one = final(kernel=1000)
    one.lags_s[:] = [0.020] * 5 + [0.0] * 95
    sample = records(20)
    for record in sample[:5]:
        record.dispatched_s = ramp_s
    assert judge([one], sample, 0.5, open_loop).bound == bound


def test_a_crowded_machine_is_named() -> None:
    assert "CPUs were 95% busy" in judge([final(cpu=0.9)], [], 0.95, False).reason
    assert "CPUs" not in judge([final()], [], 0.95, False).reason


def test_nothing_measured() -> None:
    health = judge([], [], 0.0, False)
    assert not health.bound
    assert median_gap_ms([]) is None


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 100))
def test_percentiles_are_numpys(values: list[float], percent: float) -> None:
    expected = float(np.percentile(values, percent))
    assert percentile(values, percent) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.floats(0, 0.02), min_size=1, max_size=20))
def test_the_timer_is_never_early_and_keeps_the_order(delays: list[float]) -> None:
    fired: list[tuple[float, float]] = []

    async def run() -> None:
        timer = ExactTimer(asyncio.get_running_loop())
        done = asyncio.Event()

        def at(when: float) -> None:
            fired.append((when, perf_counter()))
            if len(fired) == len(delays):
                done.set()

        start = perf_counter()
        for delay in delays:
            timer.at(start + delay, lambda when=start + delay: at(when))  # type: ignore[misc]
        await done.wait()
        await timer.until(start)  # the past
        timer.close()

    asyncio.run(run())
    assert all(now >= when for when, now in fired)
    assert [when for when, _ in fired] == sorted(when for when, _ in fired)


def test_a_stall_counts_as_every_tick_it_swallowed() -> None:
    async def run() -> Meter:
        timer = ExactTimer(asyncio.get_running_loop())
        ticked = asyncio.Event()
        meter = Meter(timer, ticked.set)
        meter.start()
        await ticked.wait()
        stalled = process_time() + 10 * TICK_S
        while process_time() < stalled:  # what a client bug, or a pinned core, does
            pass
        ticked.clear()
        await ticked.wait()
        meter.stop()
        timer.close()
        return meter

    meter = asyncio.run(run())
    swallowed = [lag for lag in meter.lags_s if lag > TICK_S]
    assert len(swallowed) >= 8
    assert max(swallowed) >= 8 * TICK_S
    assert meter.cpu_s >= 5 * TICK_S
