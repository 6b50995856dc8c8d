"""Arrival processes against their definitions."""

from __future__ import annotations

import hashlib
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.integrate import trapezoid

from atom.bench.errors import BenchError
from atom.bench.workloads import ArrivalSpec, arrival_times, parse_rate

RATES = st.floats(0.01, 1000)


def gaps(times: list[float]) -> np.ndarray:
    return np.diff(times)


@pytest.mark.parametrize("burstiness", [0.1, 0.5, 1.0, 4.0, math.inf])
def test_gaps_have_the_asked_mean_and_variation(burstiness: float) -> None:
    spec = ArrivalSpec(rate=8.0, burstiness=burstiness)
    found = gaps(arrival_times(spec, 3, count=20001))
    assert found.mean() == pytest.approx(1 / 8, rel=1e-9)  # exactly, not on average
    assert found.std() / found.mean() == pytest.approx(1 / math.sqrt(burstiness), abs=0.04)
    assert found.min() >= 0


@pytest.mark.parametrize("burstiness", [0.5, 1.0, 3.0])
def test_gaps_are_gamma_distributed(burstiness: float) -> None:
    found = gaps(arrival_times(ArrivalSpec(rate=2.0, burstiness=burstiness), 11, count=5001))
    law = stats.gamma(a=burstiness, scale=0.5 / burstiness)
    assert stats.kstest(found, law.cdf).pvalue > 0.01


def test_gaps_of_a_poisson_process_are_independent() -> None:
    found = gaps(arrival_times(ArrivalSpec(rate=1.0), 5, count=10001))
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.03


def rate_at(first: float, last: float, ramp: str, share: float) -> float:
    if ramp == "linear":
        return first + (last - first) * share
    return first * (last / first) ** share


@settings(max_examples=60, deadline=None)
@given(RATES, RATES, st.sampled_from(["linear", "exponential"]), st.integers(2, 300))
def test_a_ramp_integrates_to_its_arrivals(a: float, b: float, ramp: str, count: int) -> None:
    """Between two arrivals of a constant process the integral of the rate is 1."""
    spec = ArrivalSpec(rate=a, ramp_to=b, ramp=ramp, burstiness=math.inf)  # type: ignore[arg-type]
    times = arrival_times(spec, 0, count=count)
    assert times[0] == 0
    # The whole ramp holds `count` arrivals: its length follows by integration alone.
    shares = np.linspace(0, 1, 4001)
    area = float(trapezoid([rate_at(a, b, ramp, s) for s in shares], shares))
    length = count / area
    for first, last in list(pairwise(times))[:: max(1, count // 20)]:
        inside = np.linspace(first / length, last / length, 401)
        found = trapezoid([rate_at(a, b, ramp, s) for s in inside], inside) * length
        # Times are kept to a nanosecond, which is `rate * 1e-9` arrivals.
        assert found == pytest.approx(1, rel=1e-3, abs=4e-9 * max(a, b))
    assert times[-1] < length


@pytest.mark.parametrize("ramp", ["linear", "exponential"])
def test_a_short_ramp_is_followed_by_its_last_rate(ramp: str) -> None:
    spec = ArrivalSpec(rate=1, ramp_to=10, ramp=ramp, ramp_s=20, burstiness=math.inf)  # type: ignore[arg-type]
    times = np.array(arrival_times(spec, 0, duration_s=60))
    late = gaps([t for t in times if t > 20])
    assert np.allclose(late, 0.1)
    expected = 110 if ramp == "linear" else 20 * 9 / math.log(10)
    assert (times < 20).sum() == math.ceil(expected)
    assert len(times) == math.ceil(expected + 400)


@settings(max_examples=60, deadline=None)
@given(RATES, st.floats(0.1, 20), st.floats(0.2, 5), st.integers(0, 9))
def test_a_duration_gives_its_product(
    rate: float, duration: float, burstiness: float, seed: int
) -> None:
    spec = ArrivalSpec(rate=rate, burstiness=burstiness)
    times = arrival_times(spec, seed, duration_s=duration)
    assert len(times) == math.ceil(round(rate * duration, 9)) or times[-1] > duration - 1e-8
    assert times == sorted(times)
    assert times[0] == 0
    assert times[-1] < duration


def test_count_and_duration_both_hold() -> None:
    spec = ArrivalSpec(rate=10.0, burstiness=math.inf)
    assert len(arrival_times(spec, 0, count=5, duration_s=60)) == 5
    assert len(arrival_times(spec, 0, count=500, duration_s=6)) == 60


def test_all_at_once() -> None:
    assert arrival_times(ArrivalSpec(rate=math.inf), 0, count=3) == [0.0, 0.0, 0.0]
    with pytest.raises(BenchError, match="needs --num-prompts"):
        arrival_times(ArrivalSpec(rate=math.inf), 0, duration_s=5)


def test_one_arrival_is_at_once() -> None:
    assert arrival_times(ArrivalSpec(rate=0.001), 0, count=1) == [0.0]


def test_a_trace_is_scaled_and_cut() -> None:
    spec = ArrivalSpec(timestamps=[0, 1.5, 4], time_scale=0.5)
    assert arrival_times(spec, 0) == [0, 0.75, 2]
    assert arrival_times(spec, 0, count=2) == [0, 0.75]
    assert arrival_times(spec, 0, duration_s=2) == [0, 0.75]


def test_seeds_differ_and_agree_with_themselves() -> None:
    spec = ArrivalSpec(rate=5.0)
    assert arrival_times(spec, 1, count=50) == arrival_times(spec, 1, count=50)
    assert arrival_times(spec, 1, count=50) != arrival_times(spec, 2, count=50)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (ArrivalSpec(rate=5.0), "598138aa"),
        (ArrivalSpec(rate=5.0, burstiness=0.5), "c816ec21"),
        (ArrivalSpec(rate=1.0, ramp_to=9.0), "78cc2544"),
        (ArrivalSpec(rate=1.0, ramp_to=9.0, ramp="exponential", burstiness=3.0), "8e45ae6b"),
    ],
)
def test_times_are_the_same_bytes_everywhere(spec: ArrivalSpec, expected: str) -> None:
    times = arrival_times(spec, 42, count=1000)
    assert hashlib.sha256(repr(times).encode()).hexdigest()[:8] == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8", ArrivalSpec(rate=8)),
        ("inf", ArrivalSpec(rate=math.inf)),
        ("2:20", ArrivalSpec(rate=2, ramp_to=20)),
        (" 2:20:linear ", ArrivalSpec(rate=2, ramp_to=20)),
        ("20:0.5:exp", ArrivalSpec(rate=20, ramp_to=0.5, ramp="exponential")),
    ],
)
def test_rates_are_read(text: str, expected: ArrivalSpec) -> None:
    assert parse_rate(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "write a number"),
        ("fast", "write a number"),
        ("nan", "write a number"),
        ("0", "above 0"),
        ("-3", "above 0"),
        ("2:inf", "finite"),
        ("2:0", "above 0"),
        ("2:3:cubic", "linear or exponential"),
        ("2:3:expnential", "did you mean exponential"),
        ("2:3:linear:4", "write a number"),
    ],
)
def test_wrong_rates_are_named(text: str, message: str) -> None:
    with pytest.raises(BenchError, match=message) as caught:
        parse_rate(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "limits", "message"),
    [
        (ArrivalSpec(rate=1), {}, "needs --num-prompts or --duration"),
        (ArrivalSpec(rate=1), {"count": 0}, "--num-prompts is 0"),
        (ArrivalSpec(rate=1), {"duration_s": 0}, "--duration is 0"),
        (ArrivalSpec(rate=1e6), {"duration_s": 60}, "at most 10000000"),
        (ArrivalSpec(rate=1, burstiness=1e-9), {"count": 9}, "leaves no gap"),
    ],
)
def test_plans_that_cannot_be_made(spec: ArrivalSpec, limits: dict, message: str) -> None:
    with pytest.raises(BenchError, match=message):
        arrival_times(spec, 0, **limits)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "either a request rate or a trace"),
        ({"rate": 1, "timestamps": [0]}, "either a request rate or a trace"),
        ({"rate": 1, "burstiness": 0}, "--burstiness"),
        ({"rate": 1, "ramp_s": 4}, "ramp_s"),
        ({"timestamps": [0], "time_scale": 0}, "time_scale"),
    ],
)
def test_contradictions_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(BenchError, match=message):
        ArrivalSpec(**fields)


def test_provenance_is_json() -> None:
    told = ArrivalSpec(rate=math.inf).describe()
    assert told == {"arrivals": "at once", "request_rate": "inf", "burstiness": 1.0}
    assert ArrivalSpec(rate=2, burstiness=math.inf).describe()["arrivals"] == "constant"
    assert ArrivalSpec(rate=2, ramp_to=4).describe()["ramp_to"] == 4
    assert ArrivalSpec(timestamps=[0]).describe() == {"arrivals": "trace", "time_scale": 1.0}
