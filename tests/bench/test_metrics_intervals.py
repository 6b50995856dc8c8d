"""Intervals hold the truth as often as they say, and say what they rest on."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from fake_load import noisy_run, outcome, request

from atom.bench.metrics import MetricOptions, combine, precision, summarize
from atom.bench.types import Interval, RepeatResult, RequestRecord

OPTIONS = MetricOptions(closed=True)
# Of `fake_load.noisy_run`: lognormal means are exp(sigma^2 / 2).
TRUE = {
    "mean_ttft_ms": 100 * math.exp((0.4**2 + 0.015**2) / 2),
    "median_ttft_ms": 100.0,
    "p90_ttft_ms": 100 * math.exp(1.2816 * math.hypot(0.4, 0.015)),
    "mean_tpot_ms": 10 * math.exp((0.1**2 + 0.015**2) / 2),
}


def measure(runs: list[list[RequestRecord]]) -> dict[str, Interval]:
    repeats = [summarize(outcome(records), OPTIONS) for records in runs]
    return combine(repeats, runs, OPTIONS)


def test_five_repeats_cover_the_truth() -> None:
    trials = 80
    hits = dict.fromkeys(TRUE, 0)
    for trial in range(trials):
        rng = random.Random(trial)
        metrics = measure([noisy_run(rng, count=40) for _ in range(5)])
        for name, truth in TRUE.items():
            hits[name] += metrics[name].low <= truth <= metrics[name].high
    # 95 % of 80 is 76; fewer than 70 has a probability below 1 % for a true 95 % interval.
    assert {name for name, count in hits.items() if count < 70} == set(), hits


def test_one_repeat_knows_its_own_noise_only() -> None:
    """Means over requests are covered; what varies from run to run cannot be."""
    hits = 0
    for trial in range(20):
        metrics = measure([noisy_run(random.Random(trial), count=40, noise=0.0)])
        interval = metrics["mean_ttft_ms"]
        hits += interval.low <= 100 * math.exp(0.4**2 / 2) <= interval.high
    assert hits >= 16


def test_no_interval_is_upside_down_or_negative() -> None:
    for runs in (1, 2, 5):
        rng = random.Random(runs)
        metrics = measure([noisy_run(rng, count=24) for _ in range(runs)])
        for name, interval in metrics.items():
            assert 0 <= interval.low <= interval.value <= interval.high, name
            for bound in (interval.low, interval.value, interval.high):
                assert type(bound) is float, name


def test_more_repeats_are_narrower() -> None:
    rng = random.Random(0)
    runs = [noisy_run(rng, count=40) for _ in range(12)]
    names = ("mean_ttft_ms", "steady_output_throughput")
    assert precision(measure(runs), names) < precision(measure(runs[:3]), names)


def test_percentiles_are_of_all_requests() -> None:
    """The p99 of 5 x 40 requests, not the mean of five maxima."""
    rng = random.Random(3)
    runs = [noisy_run(rng, count=40) for _ in range(5)]
    ttfts = [(r.token_times_s[0] - r.sent_s) * 1000 for records in runs for r in records]
    assert measure(runs)["p99_ttft_ms"].value == pytest.approx(float(np.percentile(ttfts, 99)))


def test_counts_are_summed_and_shares_pooled() -> None:
    good = [request(i) for i in range(10)]
    mixed = [request(i) for i in range(5)]
    bad = [RequestRecord(index=9, error="http", status=500, ended_s=0.1) for _ in range(5)]
    metrics = measure([good, mixed + bad])
    assert metrics["completed"] == Interval(15, 15, 15)
    assert metrics["failed"] == Interval(5, 5, 5)
    assert metrics["error_rate"].value == 0.25
    assert metrics["error_rate"].high <= 1


def test_no_failure_does_not_prove_a_rate_of_zero() -> None:
    rate = measure([[request(i) for i in range(100)]] * 4)["error_rate"]
    assert rate.value == rate.low == 0
    assert rate.high == pytest.approx(0.0095, abs=0.0002)  # Wilson, 0 of 400


def test_half_width_is_students() -> None:
    def repeat(rate: float) -> RepeatResult:
        made = summarize(outcome([request()]), OPTIONS)
        made.metrics = {"request_throughput": rate}
        return made

    interval = combine([repeat(9.0), repeat(10.0), repeat(11.0)], [], OPTIONS)["request_throughput"]
    assert interval.value == 10
    assert interval.high - 10 == pytest.approx(4.302653 * 1.0 / math.sqrt(3), rel=1e-6)


def test_a_metric_that_one_repeat_lacks_is_left_out() -> None:
    told, untold = [request()], [request(server={"queue_s": 0.1})]
    assert "mean_server_queue_ms" not in measure([told, untold])
    assert "mean_server_queue_ms" in measure([untold, untold])


def test_inverse_and_quotients_follow() -> None:
    rng = random.Random(7)
    runs = [noisy_run(rng, count=40) for _ in range(3)]
    options = MetricOptions(closed=True, num_gpus=4)
    repeats = [summarize(outcome(records), options) for records in runs]
    m = combine(repeats, runs, options)
    tpot, user = m["mean_tpot_ms"], m["output_throughput_per_user"]
    assert (user.low, user.high) == (
        pytest.approx(1000 / tpot.high),
        pytest.approx(1000 / tpot.low),
    )
    whole, each = m["steady_output_throughput"], m["output_throughput_per_gpu"]
    assert each.high == pytest.approx(whole.high / 4)


def test_same_input_same_intervals() -> None:
    records = noisy_run(random.Random(1), count=30)
    assert measure([records]) == measure([records])


def test_precision() -> None:
    metrics = {"a": Interval(100, 99, 101), "b": Interval(10, 9, 11), "zero": Interval(0, 0, 0)}
    assert precision(metrics, ["a"]) == 0.01
    assert precision(metrics, ["a", "b", "zero"]) == 0.1
    assert precision(metrics, ["a", "missing"]) == math.inf
    assert precision({"c": Interval(0, 0, 1)}, ["c"]) == math.inf


@pytest.mark.parametrize("closed", [True, False])
def test_throughput_of_one_repeat_has_a_width(closed: bool) -> None:
    records = noisy_run(random.Random(5), count=60)
    options = MetricOptions(closed=closed)
    metrics = combine([summarize(outcome(records), options)], [records], options)
    assert 0.001 < precision(metrics, ["output_throughput"]) < 0.3
