"""The statistics against scipy's and against textbook values."""

from __future__ import annotations

import math
import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atom.bench.compare import stats
from atom.bench.compare.stats import Estimate, Part
from atom.bench.quantiles import wilson

COUNTS = st.integers(1, 60)


def sample(seed: int, count: int, spread: float) -> list[float]:
    rng = random.Random(seed)
    return [rng.gauss(0.3, spread) for _ in range(count)]


@pytest.mark.parametrize("seed", range(20))
def test_a_difference_of_means_is_welchs(seed: int) -> None:
    from scipy.stats import ttest_ind

    xs, ys = sample(seed, 5, 1.0), sample(seed + 100, 3 + seed % 5, 0.2 + seed)
    parts = [stats.scaled(stats.variance(v), 1 / len(v)) for v in (xs, ys)]
    error = stats.total(parts)
    found = Estimate(
        statistics.fmean(ys) - statistics.fmean(xs), math.sqrt(error.variance), error.df
    )
    expected = ttest_ind(ys, xs, equal_var=False)
    interval = expected.confidence_interval(0.9)
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-9)
    assert found.interval(0.9) == pytest.approx((interval.low, interval.high), rel=1e-9)


def test_known_variances_give_the_normal_distribution() -> None:
    found = Estimate(1.96, 1.0, math.inf)
    assert found.p_value == pytest.approx(0.05, abs=1e-4)
    assert found.interval(0.95) == pytest.approx((0.0, 3.92), abs=1e-3)


def test_without_any_spread_every_difference_is_real() -> None:
    assert Estimate(0.0, 0.0, math.inf).p_value == 1.0
    assert Estimate(1e-9, 0.0, math.inf).p_value == 0.0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_benjamini_hochberg_is_scipys(p_values: list[float]) -> None:
    from scipy.stats import false_discovery_control

    assert stats.adjusted(p_values) == pytest.approx(list(false_discovery_control(p_values)))


@settings(deadline=None)
@given(st.data(), COUNTS, COUNTS)
def test_fishers_test_is_scipys(data: st.DataObject, count_a: int, count_b: int) -> None:
    from scipy.stats import fisher_exact

    a, b = data.draw(st.integers(0, count_a)), data.draw(st.integers(0, count_b))
    expected = fisher_exact([[a, count_a - a], [b, count_b - b]]).pvalue
    assert stats.fisher_p(a, count_a, b, count_b) == pytest.approx(expected, rel=1e-6)


@settings(deadline=None)
@given(st.data(), COUNTS)
def test_wilsons_interval_is_scipys(data: st.DataObject, count: int) -> None:
    from scipy.stats import binomtest

    hits = data.draw(st.integers(0, count))
    expected = binomtest(hits, count).proportion_ci(0.9, method="wilson")
    assert wilson(hits / count, count, 0.9) == pytest.approx(
        (expected.low, expected.high), abs=1e-9
    )


def test_newcombes_interval_is_the_one_of_his_table() -> None:
    # Newcombe (1998), table II, case (a), method 10: 56/70 less 48/80.
    found = stats.share_difference(48, 80, 56, 70, 0.95)
    assert found == pytest.approx((0.0524, 0.3339), abs=5e-5)


def test_no_failures_anywhere_still_leave_doubt() -> None:
    low, high = stats.share_difference(0, 80, 0, 80, 0.95)
    assert low < 0 < high
    assert high > 0.03  # eighty good requests do not exclude three bad ones in a hundred


@pytest.mark.parametrize("seed", range(5))
def test_robust_spreads_find_the_true_one(seed: int) -> None:
    values = sample(seed, 2000, 3.0)
    assert stats.mad_sigma(values) == pytest.approx(3.0, rel=0.1)
    assert stats.successive_sigma(values) == pytest.approx(3.0, rel=0.1)


def test_a_change_of_level_hardly_moves_the_successive_spread() -> None:
    values = sample(1, 100, 1.0) + [v + 50 for v in sample(2, 100, 1.0)]
    assert statistics.stdev(values) > 20
    assert stats.successive_sigma(values) == pytest.approx(1.0, rel=0.25)


def test_pooling_weighs_by_what_is_known() -> None:
    assert stats.pooled([Part(1.0, 3.0), Part(4.0, 1.0)]) == Part(1.75, 4.0)
    assert stats.pooled([Part(9.0, 0.0)]) == Part(0.0, 0.0)
    assert stats.pooled([]) == Part(0.0, 0.0)


def test_a_sum_of_variances_is_no_better_known_than_its_parts() -> None:
    assert stats.total([Part(2.0, 4.0), Part(0.0, 4.0)]) == Part(2.0, 4.0)
    equal = stats.total([Part(1.0, 4.0), Part(1.0, 4.0)])
    assert equal == Part(2.0, 8.0)
    assert stats.total([Part(1.0, math.inf)]).df == math.inf


@given(st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=20))
def test_correlation_is_within_its_bounds(xs: list[float]) -> None:
    assert -1.0001 <= stats.correlation(xs, xs[::-1]) <= 1.0001
    assert stats.correlation(xs, [1.0] * len(xs)) == 0.0
