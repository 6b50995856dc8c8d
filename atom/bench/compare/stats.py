"""The statistics of comparison and gate: estimates with their error, intervals, corrections.

Owns numbers only: it knows no runs and no metric names. Sources: Welch (1947) and Satterthwaite
(1946) for means of unequal spread, Newcombe (1998) for shares, Benjamini and Hochberg (1995) for
many tests at once.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from atom.bench.quantiles import t_quantile, wilson

MAD_TO_SIGMA = 1.4826  # of a normal distribution


class Part(NamedTuple):
    """A variance that enters a sum, and how well it is known."""

    variance: float
    df: float  # degrees of freedom; math.inf for one that is given


class Estimate(NamedTuple):
    """A difference, the standard error of it, and the degrees of freedom of that error."""

    value: float
    error: float
    df: float

    def interval(self, confidence: float) -> tuple[float, float]:
        """Two-sided, of Student's t."""
        half = t_quantile(0.5 + confidence / 2, self.df) * self.error
        return self.value - half, self.value + half

    @property
    def p_value(self) -> float:
        """Two-sided: how likely a value so far from 0 is where there is no difference."""
        if self.error == 0.0:
            return 1.0 if self.value == 0.0 else 0.0
        return 2.0 * t_tail(abs(self.value) / self.error, self.df)


def t_tail(t: float, df: float) -> float:
    """P(T > t)."""
    from scipy.special import ndtr, stdtr

    return float(ndtr(-t) if math.isinf(df) else stdtr(df, -t))


def variance(values: Sequence[float]) -> Part:
    """Of a sample; nothing is known from fewer than two values."""
    if len(values) < 2:
        return Part(0.0, 0.0)
    return Part(statistics.variance(values), len(values) - 1.0)


def pooled(parts: Sequence[Part]) -> Part:
    """One variance from several estimates of it."""
    df = sum(p.df for p in parts)
    if df == 0:
        return Part(0.0, 0.0)
    return Part(sum(p.variance * p.df for p in parts if p.df) / df, df)


def total(parts: Sequence[Part]) -> Part:
    """The variance of a sum of independent terms, with Satterthwaite's degrees of freedom."""
    whole = sum(p.variance for p in parts)
    loose = sum(p.variance**2 / p.df for p in parts if p.variance > 0 and not math.isinf(p.df))
    return Part(whole, whole**2 / loose if loose > 0 else math.inf)


def scaled(part: Part, factor: float) -> Part:
    return Part(part.variance * factor, part.df)


def correlation(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Pearson's; 0 where one of the two does not vary."""
    mean_x, mean_y = statistics.fmean(xs), statistics.fmean(ys)
    dx = [x - mean_x for x in xs]
    dy = [y - mean_y for y in ys]
    scale = math.sqrt(sum(d * d for d in dx) * sum(d * d for d in dy))
    return sum(a * b for a, b in zip(dx, dy, strict=True)) / scale if scale > 0 else 0.0


def mad_sigma(values: Sequence[float]) -> float:
    """Standard deviation of the bulk of a sample: 1.4826 x median absolute deviation."""
    middle = statistics.median(values)
    return MAD_TO_SIGMA * statistics.median(abs(v - middle) for v in values)


def successive_sigma(values: Sequence[float]) -> float:
    """Standard deviation from successive differences: a change of level counts once, not always."""
    steps = [abs(b - a) for a, b in itertools.pairwise(values)]
    return MAD_TO_SIGMA * statistics.median(steps) / math.sqrt(2.0) if steps else 0.0


def adjusted(p_values: Sequence[float]) -> list[float]:
    """Benjamini-Hochberg: those below q form a list of which at most the share q is false."""
    count = len(p_values)
    order = sorted(range(count), key=lambda i: p_values[i])
    result = [1.0] * count
    least = 1.0
    for rank in range(count, 0, -1):
        index = order[rank - 1]
        least = min(least, p_values[index] * count / rank)
        result[index] = least
    return result


def share_difference(
    a_hits: int, a_count: int, b_hits: int, b_count: int, confidence: float
) -> tuple[float, float]:
    """Newcombe's interval (1998, method 10) of b's share less a's; sound at 0 and 1 too."""
    pa, pb = a_hits / a_count, b_hits / b_count
    low_a, high_a = wilson(pa, a_count, confidence)
    low_b, high_b = wilson(pb, b_count, confidence)
    difference = pb - pa
    return (
        difference - math.hypot(pb - low_b, high_a - pa),
        difference + math.hypot(high_b - pb, pa - low_a),
    )


def fisher_p(a_hits: int, a_count: int, b_hits: int, b_count: int) -> float:
    """Fisher's exact test, two-sided: all tables no likelier than this one."""
    hits, count = a_hits + b_hits, a_count + b_count

    def log_likelihood(in_a: int) -> float:
        return _log_choose(a_count, in_a) + _log_choose(b_count, hits - in_a)

    whole = _log_choose(count, hits)
    seen = log_likelihood(a_hits)
    tables = range(max(0, hits - b_count), min(hits, a_count) + 1)
    likelihoods = [log_likelihood(k) for k in tables]
    return min(1.0, sum(math.exp(v - whole) for v in likelihoods if v <= seen + 1e-9))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
