"""Since when a series of runs has another level: change points, each with its first bad run.

Candidates come from ruptures' exact segmentation (PELT, squared error); each must then pass a
t-test between its two sides against the spread within all segments, so that the answer does not
hang on the segmentation's penalty. Slow drift over many nights shows as one change near its middle.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from typing import Literal, NamedTuple

import msgspec

from atom.bench import names
from atom.bench.compare import rules
from atom.bench.compare.gate import COUNTED
from atom.bench.compare.stats import Estimate, successive_sigma
from atom.bench.history.runs import commit_of, started_at
from atom.bench.types import Interval, RunResult

MIN_POINTS = 6
MIN_LAST = 2  # runs on the newest level, the least that can be called one
MIN_SEGMENT = 3  # of any other: two bad nights that pass are no level
SIGNIFICANCE = 0.001
MIN_CHANGE = 0.02
# Of the segmentation, in units of variance x ln(points): low, since the test decides.
PENALTY = 3.0
SPIKE_SIGMAS = 4.0
SHORT = 4  # points; of a shorter segment each must be nearer to its level than to the other


class Point(NamedTuple):
    """One run of a series."""

    run_id: str
    at: str  # ISO 8601, UTC
    commit: str
    value: float


class Series(NamedTuple):
    """One metric over runs of one fingerprint, oldest first."""

    metric: str
    points: tuple[Point, ...]


class ChangePoint(msgspec.Struct, frozen=True, kw_only=True):
    """From `index` on the series has another level."""

    metric: str
    index: int  # in the series: of the first run on the new level
    run_id: str
    at: str
    commit: str
    last_run_id: str  # the last run on the old level
    last_commit: str
    before: float  # geometric means of the two levels
    after: float
    ratio: Interval  # after / before, 95 %
    p_value: float
    verdict: Literal["better", "worse"]

    @property
    def commits(self) -> str:
        """For `git log`: what came in with the change; "" where a commit is not known."""
        return f"{self.last_commit}..{self.commit}" if self.last_commit and self.commit else ""


def series(runs: Sequence[RunResult], metric: str) -> Series:
    """The metric (median over the repeats) of the runs that went well and have it."""
    points = [
        Point(run.run_id, started_at(run), commit_of(run), value)
        for run in runs
        if run.status in COUNTED and (value := rules.typical(run, metric)) and value > 0
    ]
    return Series(metric, tuple(sorted(points, key=lambda p: (p.at, p.run_id))))


def changepoints(
    found: Series, *, significance: float = SIGNIFICANCE, min_change: float = MIN_CHANGE
) -> list[ChangePoint]:
    """Changes of level that are significant and at least `min_change`, oldest first.

    Fewer than six runs tell nothing; a single run off the level is a spike, not a change.
    """
    if len(found.points) < MIN_POINTS:
        return []
    logs = _without_spikes([math.log(p.value) for p in found.points])
    bounds = _candidates(logs)
    while bounds:
        tests = _tests(logs, bounds)
        weakest = max(
            range(len(bounds)), key=lambda i: (abs(tests[i].value) < min_change, tests[i].p_value)
        )
        if tests[weakest].p_value <= significance and abs(tests[weakest].value) >= min_change:
            return [_change_point(found, logs, bounds, i, test) for i, test in enumerate(tests)]
        del bounds[weakest]
    return []


def _without_spikes(values: Sequence[float]) -> list[float]:
    """A value far from both its neighbours, on the same side, becomes their mean.

    The first and the last have one neighbour: a jump in the last run is the gate's business, and a
    change once the next run agrees.
    """
    limit = SPIKE_SIGMAS * successive_sigma(values)
    cleaned = list(values)
    for i, value in enumerate(values):
        near = [values[j] for j in (i - 1, i + 1) if 0 <= j < len(values)]
        steps = [value - other for other in near]
        if all(s > limit for s in steps) or all(s < -limit for s in steps):
            cleaned[i] = statistics.fmean(near)
    return cleaned


def _candidates(values: Sequence[float]) -> list[int]:
    import numpy as np
    import ruptures

    sigma = successive_sigma(values)
    if sigma == 0.0:  # more than half of the steps are none at all
        steps = [abs(b - a) for a, b in itertools.pairwise(values)]
        sigma = max(statistics.fmean(steps), 1e-12)
    signal = np.asarray(values).reshape(-1, 1) / sigma
    search = ruptures.KernelCPD(kernel="linear", min_size=MIN_LAST).fit(signal)
    ends = search.predict(pen=PENALTY * math.log(len(values)))
    return [int(end) for end in ends[:-1]]


def _tests(values: Sequence[float], bounds: Sequence[int]) -> list[Estimate]:
    """The step at each bound with its error, from the spread within all segments."""
    edges = [0, *bounds, len(values)]
    segments = [values[i:j] for i, j in itertools.pairwise(edges)]
    means = [statistics.fmean(s) for s in segments]
    squares = sum((v - m) ** 2 for s, m in zip(segments, means, strict=True) for v in s)
    df = len(values) - len(segments)
    spread = math.sqrt(squares / df)
    return [
        Estimate(means[i + 1] - means[i], spread * math.sqrt(1 / len(a) + 1 / len(b)), df)
        if _are_levels(a, b, means[i], means[i + 1], last=i == len(bounds) - 1)
        else Estimate(0.0, 1.0, df)
        for i, (a, b) in enumerate(itertools.pairwise(segments))
    ]


def _are_levels(
    a: Sequence[float], b: Sequence[float], level_a: float, level_b: float, *, last: bool
) -> bool:
    """Whether both sides are long enough, and no short one is a far point beside usual ones."""
    if len(a) < MIN_SEGMENT or len(b) < (MIN_LAST if last else MIN_SEGMENT):
        return False
    middle = (level_a + level_b) / 2
    return all(
        (value - middle) * (level - middle) > 0
        for segment, level in ((a, level_a), (b, level_b))
        if len(segment) < SHORT
        for value in segment
    )


def _change_point(
    found: Series, logs: Sequence[float], bounds: Sequence[int], i: int, test: Estimate
) -> ChangePoint:
    edges = [0, *bounds, len(logs)]
    first, last = found.points[bounds[i]], found.points[bounds[i] - 1]
    low, high = test.interval(rules.CONFIDENCE)
    improved = (test.value > 0) == (names.better(found.metric) == "higher")
    return ChangePoint(
        metric=found.metric,
        index=bounds[i],
        run_id=first.run_id,
        at=first.at,
        commit=first.commit,
        last_run_id=last.run_id,
        last_commit=last.commit,
        before=math.exp(statistics.fmean(logs[edges[i] : edges[i + 1]])),
        after=math.exp(statistics.fmean(logs[edges[i + 1] : edges[i + 2]])),
        ratio=Interval(math.exp(test.value), math.exp(low), math.exp(high)),
        p_value=test.p_value,
        verdict="better" if improved else "worse",
    )
