"""One metric in two runs: the difference, its error, and how many repeats a decision would take.

Verdicts are not made here, since they depend on how many metrics are judged together.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from atom.bench.compare import rules
from atom.bench.compare.noise import Noise, noise_of, paired, transformed
from atom.bench.compare.stats import (
    Estimate,
    Part,
    fisher_p,
    pooled,
    scaled,
    share_difference,
    total,
    variance,
)
from atom.bench.quantiles import t_quantile
from atom.bench.types import Interval, RunResult

MAX_REPEATS = 50  # what is ever recommended
Z95 = 1.959964


class Measured(NamedTuple):
    """B's metric less A's, on the rule's scale: of the logarithms where that is a ratio."""

    name: str
    rule: rules.Judged
    a: float  # means over the repeats
    b: float
    repeats: tuple[int, int]
    paired: bool
    value: float | None  # None: there is no ratio
    wide: tuple[float, float] | None  # the 95 % interval; None: the noise is not known
    narrow: tuple[float, float] | None  # the 80 % interval, for `rules.EQUAL_ALPHA`
    p_value: float | None
    unknown: str  # why there is no interval
    repeats_needed: int | None
    assumed: bool = False  # the part of the error between starts; else the history tells it

    @property
    def change(self) -> Interval | None:
        """B / A with its interval, or B - A; without an interval the ends are equal."""
        if self.value is None:
            return None
        ends = self.wide or (self.value, self.value)
        if self.rule.scale == "difference":
            return Interval(self.value, *ends)
        return Interval(math.exp(self.value), math.exp(ends[0]), math.exp(ends[1]))


def measure(
    a: RunResult, b: RunResult, name: str, rule: rules.Judged, history: Sequence[RunResult]
) -> Measured:
    """Both runs must have the metric; `history` are other runs like A."""
    if name == "error_rate":
        counted = _error_rate(a, b, rule)
        if counted is not None:
            return counted
    xs, ys = _values(a, name), _values(b, name)
    bare = Measured(
        name, rule, statistics.fmean(xs), statistics.fmean(ys), (len(xs), len(ys)),
        False, None, None, None, None, "", None,
    )  # fmt: skip
    tx, ty = transformed(xs, rule.scale), transformed(ys, rule.scale)
    if not tx or not ty:
        return bare._replace(unknown="it is 0 in one of the runs: there is no ratio")
    value = statistics.fmean(ty) - statistics.fmean(tx)
    noise = noise_of(history, name, rule.scale)
    together = paired(a, b, tx, ty)
    error = _error(a, b, name, tx, ty, together, noise)
    if error is None:
        return bare._replace(value=value, unknown="one repeat each and no history: noise unknown")
    estimate = Estimate(value, math.sqrt(error.variance), error.df)
    return bare._replace(
        assumed=noise.runs == 0,
        paired=together,
        value=value,
        wide=estimate.interval(rules.CONFIDENCE),
        narrow=estimate.interval(1 - 2 * rules.EQUAL_ALPHA),
        p_value=estimate.p_value,
        repeats_needed=_repeats_needed(
            value, rule, _within(tx, ty, together, noise), noise, max(len(xs), len(ys))
        ),
    )


def _values(run: RunResult, name: str) -> list[float]:
    return rules.samples(run, name) or [run.metrics[name].value]


def _error(
    a: RunResult,
    b: RunResult,
    name: str,
    tx: Sequence[float],
    ty: Sequence[float],
    together: bool,
    noise: Noise,
) -> Part | None:
    """The variance of the difference of the means; None where nothing tells it."""
    if not names_repeat(a) and not names_repeat(b):  # scores: the interval is all there is
        spreads = [_from_interval(run.metrics[name]) for run in (a, b)]
        return total(spreads) if all(s.variance > 0 for s in spreads) else None
    starts = scaled(noise.start, 2.0)
    if together:
        steps = [y - x for x, y in zip(tx, ty, strict=True)]
        return total([scaled(variance(steps), 1.0 / len(steps)), starts])
    within = [_moderated(values, other, noise) for values, other in ((tx, ty), (ty, tx))]
    if any(part.df == 0 for part in within) and noise.runs == 0:
        return None
    means = [scaled(part, 1.0 / len(v)) for part, v in zip(within, (tx, ty), strict=True)]
    return total([*(part for part in means if part.df), starts])


def names_repeat(run: RunResult) -> bool:
    return bool(run.repeats)


def _from_interval(interval: Interval) -> Part:
    return Part(((interval.high - interval.low) / (2 * Z95)) ** 2, math.inf)


def _moderated(own: Sequence[float], other: Sequence[float], noise: Noise) -> Part:
    """A run's variance between repeats, steadied by the history's; a single repeat borrows."""
    known = pooled([variance(own), noise.within])
    return known if known.df else variance(other)


def _within(tx: Sequence[float], ty: Sequence[float], together: bool, noise: Noise) -> float:
    """What one more repeat of each run averages over: the variance of one pair's difference."""
    if together:
        return variance([y - x for x, y in zip(tx, ty, strict=True)]).variance
    return _moderated(tx, ty, noise).variance + _moderated(ty, tx, noise).variance


def _repeats_needed(
    value: float, rule: rules.Judged, within: float, noise: Noise, have: int
) -> int | None:
    """The fewest repeats of each run that would decide if the difference stays as it is seen.

    Degrees of freedom are those of the worst case, a run whose spread is all there is.
    """
    for count in range(max(3, have + 1), MAX_REPEATS + 1):
        error = math.sqrt(within / count + 2.0 * noise.start.variance)
        df = count - 1.0
        proven = abs(value) >= max(rule.floor, t_quantile(1 - rules.ALPHA / 2, df) * error)
        equal = abs(value) + t_quantile(1 - rules.EQUAL_ALPHA, df) * error <= rule.margin
        if proven or equal:
            return count
    return None


def _error_rate(a: RunResult, b: RunResult, rule: rules.Judged) -> Measured | None:
    """Failed requests are counted, not averaged: exact where they are few."""
    counts = [_counts(run) for run in (a, b)]
    if counts[0] is None or counts[1] is None:
        return None
    (bad_a, all_a), (bad_b, all_b) = counts[0], counts[1]
    value = bad_b / all_b - bad_a / all_a
    return Measured(
        name="error_rate",
        rule=rule,
        a=bad_a / all_a,
        b=bad_b / all_b,
        repeats=(max(1, len(a.repeats)), max(1, len(b.repeats))),
        paired=False,
        value=value,
        wide=share_difference(bad_a, all_a, bad_b, all_b, rules.CONFIDENCE),
        narrow=share_difference(bad_a, all_a, bad_b, all_b, 1 - 2 * rules.EQUAL_ALPHA),
        p_value=fisher_p(bad_a, all_a, bad_b, all_b),
        unknown="",
        repeats_needed=None,
    )


def _counts(run: RunResult) -> tuple[int, int] | None:
    """Failed and all requests over the repeats."""
    failed, completed = rules.samples(run, "failed"), rules.samples(run, "completed")
    if not run.repeats or not len(failed) == len(completed) == len(run.repeats):
        return None
    bad, good = round(sum(failed)), round(sum(completed))
    return (bad, bad + good) if bad + good else None
