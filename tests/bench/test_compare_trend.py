"""Change points: found where they are, soon, and not where there is only noise."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from noisy_runs import noisy_run

from atom.bench.compare import ChangePoint, Point, Series, changepoints, series

RATE = "output_throughput"


def of(values: list[float] | np.ndarray, metric: str = RATE) -> Series:
    points = (
        Point(f"run{i:04d}", f"2026-01-01T{i:06d}", f"c{i}", float(v)) for i, v in enumerate(values)
    )
    return Series(metric, tuple(points))


def noise(seed: int, count: int, cv: float) -> np.ndarray:
    return 1000.0 * np.exp(np.random.default_rng([seed, count]).normal(0.0, cv, count))


def shifted(seed: int, count: int, cv: float, at: int, shift: float) -> np.ndarray:
    values = noise(seed, count, cv)
    values[at:] *= 1 + shift
    return values


def near(found: list[ChangePoint], index: int) -> bool:
    return any(abs(c.index - index) <= 2 for c in found)


def test_a_step_is_found_exactly() -> None:
    (change,) = changepoints(of([100.0] * 10 + [90.0] * 5))
    assert (change.index, change.run_id, change.last_run_id) == (10, "run0010", "run0009")
    assert change.commits == "c9..c10"
    assert (change.before, change.after) == (pytest.approx(100.0), pytest.approx(90.0))
    assert change.ratio.value == pytest.approx(0.9)
    assert change.verdict == "worse"


def test_which_way_is_worse_depends_on_the_metric() -> None:
    values = [100.0] * 10 + [120.0] * 5
    assert [c.verdict for c in changepoints(of(values))] == ["better"]
    assert [c.verdict for c in changepoints(of(values, "mean_ttft_ms"))] == ["worse"]


def test_several_changes_are_found_in_order() -> None:
    values = np.concatenate([noise(1, 30, 0.01), noise(2, 30, 0.01) * 0.9, noise(3, 30, 0.01)])
    found = changepoints(of(values))
    assert [c.index for c in found] == [30, 60]
    assert [c.verdict for c in found] == ["worse", "better"]


def test_a_night_that_was_bad_alone_is_no_change() -> None:
    for at in (0, 7, 28, 29):
        values = noise(4, 30, 0.01)
        values[at] *= 0.7
        assert changepoints(of(values)) == [], at


def test_two_bad_nights_that_pass_are_no_change_but_two_last_ones_are() -> None:
    values = noise(4, 30, 0.01)
    values[15:17] *= 0.9
    assert changepoints(of(values)) == []
    values = noise(4, 30, 0.01)
    values[28:] *= 0.9
    assert [c.index for c in changepoints(of(values))] == [28]


@pytest.mark.parametrize("count", [0, 1, 5])
def test_too_few_runs_tell_nothing(count: int) -> None:
    assert changepoints(of([100.0, 50.0, 100.0, 50.0, 50.0][:count])) == []


def test_equal_values_have_no_change() -> None:
    assert changepoints(of([100.0] * 50)) == []


def test_a_change_too_small_to_matter_is_not_reported() -> None:
    values = [100.0] * 20 + [99.0] * 20
    assert changepoints(of(values)) == []
    assert len(changepoints(of(values), min_change=0.005)) == 1


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.floats(1e-6, 1e6))
def test_units_do_not_matter(seed: int, scale: float) -> None:
    values = shifted(seed, 40, 0.02, 25, -0.08)
    one, other = changepoints(of(values)), changepoints(of(values * scale))
    assert [c.index for c in one] == [c.index for c in other]
    assert [c.ratio.value for c in one] == pytest.approx([c.ratio.value for c in other])


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(1.0, 1e6), min_size=0, max_size=60))
def test_any_series_has_an_answer(values: list[float]) -> None:
    found = changepoints(of(values))
    assert [c.index for c in found] == sorted({c.index for c in found})
    assert all(0 < c.index < len(values) for c in found)
    assert all(math.isfinite(c.ratio.low) and c.p_value <= 0.001 for c in found)


def test_noise_alone_hardly_ever_has_a_change() -> None:
    found = sum(len(changepoints(of(noise(s, 60, 0.03)))) for s in range(150))
    assert found <= 8  # measured over 400 series: 0.018 each


def test_five_per_cent_are_found_within_four_nights() -> None:
    found = sum(near(changepoints(of(shifted(s, 49, 0.02, 45, -0.05))), 45) for s in range(100))
    assert found >= 80  # measured over 400 series: 0.88


def test_five_per_cent_are_found_and_located_in_the_end() -> None:
    found = sum(near(changepoints(of(shifted(s, 60, 0.02, 45, -0.05))), 45) for s in range(100))
    assert found >= 93


def test_spikes_hide_no_change() -> None:
    hits = 0
    for s in range(40):
        values = shifted(s, 60, 0.01, 45, -0.05)
        values[np.random.default_rng(s).choice(40, 3, replace=False)] *= 0.8
        hits += near(changepoints(of(values)), 45)
    assert hits >= 37


def test_a_series_is_made_of_the_runs_that_went_well_oldest_first() -> None:
    runs = [noisy_run(1, night=i) for i in range(4)]
    runs[1] = msgspec.structs.replace(runs[1], status="interrupted")
    runs[2] = msgspec.structs.replace(runs[2], status="slo_missed")
    found = series(reversed_(runs), RATE)
    assert [p.run_id for p in found.points] == [runs[i].run_id for i in (0, 2, 3)]
    assert found.points[1].commit == "0000002"
    assert series(runs, "p99.9_ttft_ms").points == ()


def reversed_(runs: list) -> list:
    return runs[::-1]
