"""The paired tests against brute force, published figures and simulation by enumeration."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atom.eval import mcnemar
from atom.eval.mcnemar import Counts, difference_interval, exact_p, mid_p, power

small = st.integers(0, 12)


def enumerated_p(lost: int, won: int) -> Fraction:
    """All 2^n ways in which n questions may fall: the share of those no more even than this."""
    n = lost + won
    even = abs(lost - won)
    hits = sum(abs(2 * sum(sides) - n) >= even for sides in itertools.product((0, 1), repeat=n))
    return Fraction(hits, 2**n)


@settings(max_examples=60, deadline=None)
@given(lost=st.integers(0, 7), won=st.integers(0, 7))
def test_exact_p_is_the_enumeration(lost: int, won: int) -> None:
    assert exact_p(lost, won) == pytest.approx(float(enumerated_p(lost, won)), rel=1e-12)


@pytest.mark.parametrize(
    ("lost", "won"), [(0, 0), (1, 0), (0, 6), (1, 7), (9, 4), (45, 17), (400, 470)]
)
def test_mid_p_takes_half_of_what_was_seen(lost: int, won: int) -> None:
    seen = math.comb(lost + won, lost) / 2 ** (lost + won)
    expected = 1.0 if lost == won else exact_p(lost, won) - seen
    assert mid_p(lost, won) == pytest.approx(expected, rel=1e-9)
    assert mid_p(won, lost) == pytest.approx(mid_p(lost, won))


def test_figures_of_fagerland_lydersen_and_laake() -> None:
    """Airway hyper-responsiveness before and after stem cell transplantation (2013, table 1)."""
    counts = Counts(both=1, lost=7, won=1, neither=12)
    assert exact_p(7, 1) == pytest.approx(0.0703, abs=5e-5)
    assert mid_p(7, 1) == pytest.approx(0.0391, abs=5e-5)
    low, high = difference_interval(counts)
    assert (low, high) == (pytest.approx(-0.517, abs=5e-4), pytest.approx(-0.026, abs=5e-4))


def constrained_score(counts: Counts, difference: float) -> float:
    """Tango's statistic with the nuisance share found by trying many: no quadratic, no algebra."""
    lost, won, n = counts.lost, counts.won, counts.n
    most = (1 - abs(difference)) / 2
    shares = [max(0.0, -difference) + most * i / 20_000 for i in range(1, 20_000)]

    def likelihood(share: float) -> float:
        other, rest = share + difference, 1 - 2 * share - difference
        if min(share, other, rest) < 0 or (lost and share == 0) or (won and other <= 0):
            return -math.inf
        parts = ((lost, share), (won, other), (n - lost - won, rest))
        return sum((count * math.log(p) if p > 0 else -math.inf) for count, p in parts if count)

    best = max(shares, key=likelihood)
    variance = n * (2 * best + difference - difference**2)
    return (won - lost - n * difference) / math.sqrt(variance)


@pytest.mark.parametrize(
    "counts",
    [Counts(10, 3, 7, 5), Counts(1, 7, 1, 12), Counts(30, 0, 4, 10), Counts(5, 6, 6, 5)],
)
@pytest.mark.parametrize("confidence", [0.90, 0.95])
def test_the_ends_of_the_interval_are_where_the_score_test_rejects(
    counts: Counts, confidence: float
) -> None:
    z = {0.90: 1.6449, 0.95: 1.9600}[confidence]
    low, high = difference_interval(counts, confidence)
    assert constrained_score(counts, low) == pytest.approx(z, abs=5e-3)
    assert constrained_score(counts, high) == pytest.approx(-z, abs=5e-3)


@settings(max_examples=200, deadline=None)
@given(both=small, lost=small, won=small, neither=small)
def test_an_interval_holds_what_was_seen_and_mirrors(
    both: int, lost: int, won: int, neither: int
) -> None:
    if not both + lost + won + neither:
        return
    counts, mirrored = Counts(both, lost, won, neither), Counts(both, won, lost, neither)
    low, high = difference_interval(counts)
    assert -1 <= low <= counts.difference <= high <= 1
    assert difference_interval(mirrored) == (
        pytest.approx(-high, abs=1e-9), pytest.approx(-low, abs=1e-9)
    )  # fmt: skip
    narrow = difference_interval(counts, 0.8)
    assert low <= narrow[0] + 1e-12
    assert narrow[1] <= high + 1e-12


def test_no_question_answered_differently_still_leaves_room() -> None:
    """With z² / (n + z²): the rule of three of paired questions."""
    low, high = difference_interval(Counts(20, 0, 0, 30))
    assert (low, high) == (pytest.approx(-3.8415 / 53.8415, abs=1e-5), pytest.approx(-low))


def enumerated_power(n: int, discordant: float, difference: float) -> float:
    """All splits of n questions into lost, won and the rest, with their probabilities."""
    p_won, p_lost = (discordant + difference) / 2, (discordant - difference) / 2
    total = 0.0
    for lost in range(n + 1):
        for won in range(n + 1 - lost):
            if exact_p(lost, won) <= mcnemar.ALPHA:
                ways = math.comb(n, lost) * math.comb(n - lost, won)
                total += ways * p_lost**lost * p_won**won * (1 - discordant) ** (n - lost - won)
    return total


@pytest.mark.parametrize(
    ("n", "discordant", "difference"),
    [(12, 0.5, 0.5), (30, 0.4, 0.2), (40, 0.3, 0.0), (25, 1.0, 0.6), (8, 0.9, 0.9), (4, 1.0, 1.0)],
)
def test_power_is_the_enumeration(n: int, discordant: float, difference: float) -> None:
    expected = enumerated_power(n, discordant, difference)
    assert power(n, discordant, difference) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("n", "discordant"), [(1319, 0.05), (50, 0.2), (2376, 0.0), (100, 0.5)])
def test_the_smallest_difference_is_found_in_four_of_five_cases(n: int, discordant: float) -> None:
    least = mcnemar.smallest_difference(n, discordant)
    assert least is not None
    assert power(n, max(discordant, least), least) == pytest.approx(0.8, abs=2e-3)
    below = 0.9 * least
    assert power(n, max(discordant, below), below) < 0.8


@pytest.mark.parametrize(("n", "possible"), [(5, False), (6, True)])
def test_five_questions_can_show_nothing(n: int, possible: bool) -> None:
    assert (exact_p(0, n) < mcnemar.ALPHA) is possible
    assert (mcnemar.smallest_difference(n, 0.0) is not None) is possible


def test_paired_mean_is_students() -> None:
    scipy_stats = pytest.importorskip("scipy.stats")
    a, b = [0.3, 1.2, -0.7, 4.0, 2.2], [0.1, 1.9, -0.2, 4.4, 2.3]
    found = mcnemar.paired_mean([y - x for x, y in zip(a, b, strict=True)])
    expected = scipy_stats.ttest_rel(b, a)
    assert found.p_value == pytest.approx(expected.pvalue)
    ends = expected.confidence_interval(0.95)
    assert found.interval(0.95) == (pytest.approx(ends.low), pytest.approx(ends.high))


def test_the_smallest_mean_difference_is_found_in_four_of_five_cases() -> None:
    """By the normal distribution itself: P(|x| > 1.96 s) where x is normal around 2.8 s."""
    least = mcnemar.smallest_mean(0.25) / 0.25
    tail = 0.5 * math.erfc((1.959964 - least) / math.sqrt(2))
    assert tail == pytest.approx(0.8, abs=1e-6)
