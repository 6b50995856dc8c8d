"""The steady window, on a simulated batching server whose true rate a long run tells."""

from __future__ import annotations

import random

import numpy as np
import pytest
from fake_load import Lengths, closed_loop, outcome, request

from atom.bench.metrics import MetricOptions, summarize
from atom.bench.metrics.window import closed_window, count_in, mean_flight, open_window, tokens_in
from atom.bench.types import RequestRecord

LENGTHS: dict[str, Lengths] = {
    "equal": lambda i, rng: 60,
    "near": lambda i, rng: rng.randint(48, 60),
    "any": lambda i, rng: rng.randint(1, 60),
}
OPTIONS = MetricOptions(closed=True)


def rates(records: list[RequestRecord]) -> tuple[float, float]:
    m = summarize(outcome(records), OPTIONS).metrics
    steady, whole = m["steady_output_throughput"], m["output_throughput"]
    assert steady is not None
    assert whole is not None
    return steady, whole


@pytest.mark.parametrize(("lengths", "bound"), [("equal", 0.001), ("near", 0.005), ("any", 0.015)])
@pytest.mark.parametrize("concurrency", [8, 32])
def test_closed_loop_rate_is_within_a_percent(lengths: str, bound: float, concurrency: int) -> None:
    """At the default of five requests a place; the whole-run rate is off by up to 12 %."""
    long = closed_loop(concurrency, 60 * concurrency, LENGTHS[lengths], seed=99)
    true, _ = rates(long)
    short = [
        rates(closed_loop(concurrency, 5 * concurrency, LENGTHS[lengths], seed=s))
        for s in range(24)
    ]
    error = np.mean([steady for steady, _ in short]) / true - 1
    worse = np.mean([whole for _, whole in short]) / true - 1
    assert abs(error) < bound
    assert worse < (0 if lengths == "equal" else -0.02)


def test_window_leaves_out_burst_and_drain() -> None:
    records = closed_loop(8, 40, LENGTHS["near"], seed=1)
    window = closed_window(records)
    assert window is not None
    ends = sorted(r.ended_s for r in records)
    assert ends[7] <= window.start <= ends[15]
    assert window.end == ends[31]  # the end that let the last job start
    assert mean_flight(records, *window) == pytest.approx(8, rel=1e-6)


@pytest.mark.parametrize(("count", "there"), [(20, False), (24, True), (8, False)])
def test_window_needs_three_requests_a_place(count: int, there: bool) -> None:
    result = summarize(outcome(closed_loop(8, count, LENGTHS["equal"], seed=0)), OPTIONS)
    assert (result.window_s is not None) == there
    assert (result.metrics["steady_output_throughput"] is not None) == there
    assert any("no steady state" in note for note in result.notes) != there


def test_requests_refused_at_once_do_not_upset_the_window() -> None:
    records = closed_loop(8, 80, LENGTHS["equal"], seed=0)
    refused = [
        RequestRecord(index=1000 + i, error="connect", ended_s=r.sent_s, intended_s=r.sent_s)
        for i, r in enumerate(records[:8])
    ]
    for r in refused:
        r.dispatched_s = r.intended_s
    window = closed_window([*refused, *records])
    assert window is not None
    plain = closed_window(records)
    assert plain is not None
    assert window.end == plain.end
    assert window.length > plain.length * 0.8


def test_a_conversation_is_one_job() -> None:
    """Its place is taken from its first turn to its last, thinking included."""
    records = []
    for index in range(12):
        for turn in range(3):
            at = index // 2 * 3.0 + turn
            records.append(request(index, at=at, turn=turn, tokens=5))
    window = closed_window(records)
    assert window is not None
    assert window.end == pytest.approx(12 + 2.14)  # the second last pair's third turn


def test_timed_run_counts_the_tokens_of_what_was_given_up() -> None:
    """The drain of a timed run is cut off: its requests have no end, but their tokens came."""
    whole = closed_loop(8, 80, LENGTHS["equal"], seed=3)
    cut = sorted(r.ended_s for r in whole)[60] + 0.05
    records = []
    for r in whole:
        if r.sent_s > cut:
            continue
        if r.ended_s > cut:
            r.error, r.ended_s, r.output_tokens = "cancelled", cut, None
            r.token_times_s = [t for t in r.token_times_s if t <= cut]
            r.token_counts = r.token_counts[: len(r.token_times_s)]
        records.append(r)
    result = summarize(outcome(records, cut), OPTIONS)
    true, _ = rates(closed_loop(8, 480, LENGTHS["equal"], seed=3))
    assert result.metrics["steady_output_throughput"] == pytest.approx(true, rel=0.01)
    for r in records:  # without continuous usage their chunks weigh like the others'
        if r.error:
            r.counted_by = "chunks"
        else:
            r.counted_by, r.output_tokens = "usage", 3 * len(r.token_times_s)
    again = summarize(outcome(records, cut), OPTIONS)
    assert again.metrics["steady_output_throughput"] == pytest.approx(3 * true, rel=0.01)


def poisson(rate: float, count: int, seed: int, stay: float = 0.5) -> list[RequestRecord]:
    rng = random.Random(seed)
    now, records = 0.0, []
    for index in range(count):
        now += rng.expovariate(rate)
        records.append(request(index, at=now, ttft=0.1, itl=(stay - 0.1) / 9))
    return records


def test_open_loop_window_is_filled_and_not_draining() -> None:
    records = poisson(20, 400, seed=2)
    window = open_window(records)
    assert window is not None
    assert window.start == pytest.approx(0.5)
    assert window.end == max(r.intended_s for r in records)
    m = summarize(outcome(records), MetricOptions(closed=False)).metrics
    assert m["steady_request_throughput"] == pytest.approx(20, rel=0.12)
    assert m["steady_output_throughput"] == pytest.approx(
        (m["steady_request_throughput"] or 0) * 10, rel=0.02
    )


def test_open_loop_window_waits_for_the_slow_ones() -> None:
    records = [request(i, at=i / 10, itl=0.01 * (1 + i % 20)) for i in range(400)]
    window = open_window(records)
    assert window is not None
    stays = [r.token_times_s[-1] - r.intended_s for r in records]
    assert window.start == pytest.approx(float(np.percentile(stays, 95)))
    assert window.start > 1.7


def test_open_loop_too_short_or_ramp_has_no_window() -> None:
    short = poisson(20, 20, seed=2, stay=5.0)
    result = summarize(outcome(short), MetricOptions(closed=False))
    assert result.window_s is None
    assert any("no steady state" in note for note in result.notes)
    ramp = summarize(outcome(poisson(20, 400, 2)), MetricOptions(closed=False, stationary=False))
    assert ramp.window_s is None
    assert not ramp.notes


def test_requests_that_pile_up_are_told() -> None:
    """A server of two requests a second, asked for ten."""
    records = []
    for index in range(200):
        arrives, free = index / 10, index / 2
        records.append(request(index, at=arrives, ttft=max(free - arrives, 0) + 0.5, itl=0.0001))
    result = summarize(outcome(records), MetricOptions(closed=False))
    if result.window_s is None:
        assert any("no steady state" in note for note in result.notes)
    half = [r for r in records if r.index % 2]  # five a second: a third of them in time
    for r in half:
        r.ended_s = r.intended_s + 0.2 + r.intended_s * 0.2
        r.token_times_s, r.token_counts = [r.ended_s], [1]
    result = summarize(outcome(half), MetricOptions(closed=False))
    assert any("pile up" in note for note in result.notes)


def test_burst_note() -> None:
    """Eight requests sent at once wait for each other's prompts; later ones do not."""
    result = summarize(outcome(closed_loop(16, 80, LENGTHS["any"], 1, prefill_s=0.5)), OPTIONS)
    assert any("sent at once at the start" in note for note in result.notes)
    result = summarize(outcome(closed_loop(1, 40, LENGTHS["any"], 1, prefill_s=0.5)), OPTIONS)
    assert not result.notes


def test_length_notes() -> None:
    longer = [request(i, input_tokens=104, asked_input=100) for i in range(10)]
    short = [request(i, tokens=5, asked_output=10) for i in range(10)]
    said = summarize(outcome(longer + short), OPTIONS).notes
    assert any("102.0 tokens on average where 100.0 were asked for" in note for note in said)
    assert any("10 of 20 answers ended before their limit" in note for note in said)


def test_slices_are_open_below_and_closed_above() -> None:
    edges = np.array([0.0, 1.0, 2.0])
    assert count_in([0.0, 1.0, 1.0, 1.0, 2.0, 2.5], edges).tolist() == [3, 1]
    records = [request(0, at=-0.1, itl=1.0, tokens=3, token_counts=[5, 7, 9], output_tokens=21)]
    made = tokens_in(records, edges)  # at 0, 1 and 2
    assert made is not None
    assert made.tolist() == [7, 9]
