"""How much a metric varies without a cause: within a run, and from start to start of a server.

The repeats of one run share a server process, a page cache and a temperature. What varies between
them says nothing of what changes with the next start, so a test on repeats alone finds differences
between two starts of the same code. That part is estimated from earlier runs of the same
fingerprint, and assumed (`rules.PRIOR_START_SIGMA`) where there are none.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from atom.bench.compare import rules
from atom.bench.compare.stats import Part, correlation, pooled, successive_sigma, variance
from atom.bench.types import RunResult

MIN_RUNS = 4
RECENT = 20  # older runs tell of another machine
# The successive differences' median absolute deviation uses about a third of what a sample holds.
MAD_EFFICIENCY = 0.37
# The history's spread may outweigh a run's own, but not silence it.
MAX_HISTORY_DF = 8.0


class Noise(NamedTuple):
    """Variances of one metric: of its logarithm where the scale is a ratio."""

    within: Part  # between the repeats of a run
    start: Part  # between the starts of a server
    runs: int  # of the history that this rests on; 0: assumed


def assumed() -> Noise:
    return Noise(Part(0.0, 0.0), Part(rules.PRIOR_START_SIGMA**2, math.inf), 0)


def noise_of(history: Sequence[RunResult], name: str, scale: rules.Scale) -> Noise:
    """From runs of one fingerprint in any order; changes of level among them do little harm."""
    columns = [
        values
        for run in sorted(history, key=lambda r: r.run_id)[-RECENT:]
        if (values := transformed(rules.samples(run, name), scale))
    ]
    if len(columns) < MIN_RUNS:
        return assumed()
    within = _typical([part for values in columns if (part := variance(values)).df])
    repeats = statistics.harmonic_mean([len(values) for values in columns])
    seen = successive_sigma([statistics.fmean(values) for values in columns]) ** 2
    start = max(0.0, seen - within.variance / repeats)
    prior = Part(rules.PRIOR_START_SIGMA**2, rules.PRIOR_START_DF)
    return Noise(
        Part(within.variance, min(within.df, MAX_HISTORY_DF)),
        pooled([prior, Part(start, MAD_EFFICIENCY * (len(columns) - 1))]),
        len(columns),
    )


def _typical(parts: Sequence[Part]) -> Part:
    """The median of the runs' variances: one run that was disturbed says nothing of the others.

    A median of estimates with few degrees of freedom is low; Wilson and Hilferty's approximation of
    the chi-square distribution (1931) mends that.
    """
    if not parts:
        return Part(0.0, 0.0)
    lift = (1.0 - 2.0 / (9.0 * statistics.median(p.df for p in parts))) ** 3
    return Part(statistics.median(p.variance for p in parts) / lift, sum(p.df for p in parts))


def transformed(values: Sequence[float], scale: rules.Scale) -> list[float]:
    """Logarithms for a ratio; nothing where they do not exist."""
    if scale == "difference":
        return list(values)
    return [math.log(v) for v in values] if all(v > 0 for v in values) else []


PAIRED_FROM = 0.7  # correlation; five unrelated pairs reach it once in ten


def paired(a: RunResult, b: RunResult, xs: Sequence[float], ys: Sequence[float]) -> bool:
    """Whether repeat r of both had the same requests and shows it: then their differences count."""
    seeds_a, seeds_b = ([repeat.seed for repeat in run.repeats] for run in (a, b))
    if seeds_a != seeds_b or not len(xs) == len(ys) == len(seeds_a) or len(xs) < 3:
        return False
    return correlation(xs, ys) >= PAIRED_FROM
