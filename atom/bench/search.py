"""The highest load that meets the objectives, in few runs.

The load (requests per second, or jobs in flight) is searched on a logarithmic scale. Each measured
point has a *margin*: the largest log(value / limit) over the objectives (log(limit / value) where
higher is better), negative when all are met. Margins rise with the load, so the answer is where
they cross zero. A point costs minutes; all that is known of it is used:

* Margins are interpolated between the ends of the bracket, in the terms in which they are about
  straight: latencies grow linearly with jobs in flight, as in a queue with the rate of arrivals.
  An end that stays is believed less and less (the Illinois rule), so that both ends move.
* A served rate below the offered one is the server's capacity: the answer lies below it.
* Points that contradict each other (noise) are pooled by their weights (isotonic regression).

The search ends when the highest load that met the objectives and the lowest that did not are within
`tolerance`, when neighbouring whole numbers are reached, or when the budget is spent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from atom.bench import names
from atom.bench.errors import BenchError
from atom.bench.types import Interval

Metrics = Mapping[str, Interval]
Measure = Callable[[float], Metrics]
Verdict = Literal["meets", "misses"]

TOLERANCE = 0.03
BUDGET = 8
MAX_ERROR_RATE = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchPoint:
    """One measured load."""

    load: float
    metrics: Metrics
    margin: float  # log distance from the nearest objective; negative: all are met
    noise: float  # one standard error of the margin
    limiting: str  # the metric nearest to (or furthest over) its limit
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchReport:
    """What a search found.

    Attributes:
        best: The highest measured load that meets the objectives; None: none does.
        above: The lowest measured load above it that misses them; None: none was found.
        points: Every measured load in the order of measuring.
        limiting: The objective that stops the load from rising.
        reason: One sentence: why the search ended.
    """

    best: float | None
    above: float | None
    points: tuple[SearchPoint, ...]
    objectives: Mapping[str, float] = field(default_factory=dict)
    limiting: str = ""
    reason: str = ""


def find_max(
    measure: Measure,
    objectives: Mapping[str, float],
    *,
    low: float,
    high: float,
    integer: bool,
    budget: int = BUDGET,
    tolerance: float = TOLERANCE,
    max_error_rate: float = MAX_ERROR_RATE,
) -> SearchReport:
    """Search [low, high] for the highest load whose metrics meet all objectives.

    Args:
        measure: Runs one load and gives its metrics with intervals (`metrics.combine`).
        objectives: Metric name -> limit, as `names.parse_objectives` gives it.
        integer: The load is a number of jobs in flight, else a rate.
        budget: Runs at most.
        tolerance: Relative distance of the two ends at which the search ends.
        max_error_rate: Failed requests a point may have, whatever its latencies.

    Raises `BenchError` for objectives that no load can be searched by.
    """
    assert low > 0
    if high <= low:
        raise BenchError(f"--find-max: the range {low:g} to {high:g} is empty")
    if budget < 1:
        raise BenchError(f"--find-max: {budget} runs; it needs at least 1")
    ceilings = _ceilings(objectives)
    search = _Search(low, high, integer=integer, tolerance=tolerance)
    reason = ""
    while len(search.points) < budget and not reason:
        load = search.propose()
        if any(point.load == load for point in search.points):
            reason = "no load between is left to measure"
            break
        metrics = measure(load)
        search.add(_point(load, metrics, objectives, ceilings, max_error_rate))
        reason = search.finished()
    return search.report(objectives, reason or f"the budget of {budget} runs is spent")


# Rise with the load by nature: a floor under one is kept by going up, not by going down.
RISING = frozenset(
    f"{prefix}{what}_throughput{suffix}"
    for what in ("request", "output", "total_token")
    for prefix in ("", "steady_")
    for suffix in ("", "_per_gpu")
)


def _ceilings(objectives: Mapping[str, float]) -> dict[str, float]:
    """The objectives that keep the load from rising."""
    for name in objectives:
        if name == "request_goodput":
            raise BenchError(
                "--find-max by request_goodput: it rises and falls with the load; use goodput_share"
            )
        if names.better(name) == "neither":
            raise BenchError(f"--find-max by {name}: neither more nor less of it is better")
    ceilings = {n: limit for n, limit in objectives.items() if n not in RISING}
    if not ceilings:
        raise BenchError(
            "--find-max: no objective limits the load; add a latency, e.g. --slo ttft_p99=500ms"
        )
    return ceilings


def _point(
    load: float,
    metrics: Metrics,
    objectives: Mapping[str, float],
    ceilings: Mapping[str, float],
    max_error_rate: float,
) -> SearchPoint:
    margins = _error_margin(metrics, max_error_rate)
    for name, limit in ceilings.items():
        if name in metrics:
            margins[name] = _margin(name, metrics[name], limit)
        elif not margins:
            raise BenchError(f"--find-max by {name}: this server does not tell it")
    limiting = max(margins, key=lambda name: margins[name][0])
    margin, noise = margins[limiting]
    met = margin <= 0 and all(
        name in metrics and names.meets(name, metrics[name].value, limit)
        for name, limit in objectives.items()
    )
    return SearchPoint(
        load=load,
        metrics=metrics,
        margin=margin,
        noise=noise,
        limiting=limiting,
        verdict="meets" if met else "misses",
    )


def _error_margin(metrics: Metrics, limit: float) -> dict[str, tuple[float, float]]:
    """Too many errors are a miss by themselves; few enough are no margin to search by."""
    rate = metrics.get("error_rate")
    if rate is None or rate.value <= limit:
        return {}
    return {"error_rate": (math.log(rate.value / limit) if limit > 0 else CLIP, 0.0)}


def _margin(name: str, interval: Interval, limit: float) -> tuple[float, float]:
    """Margin and its standard error, both of logarithms."""
    tiny = 1e-9 * max(limit, 1e-9)
    value = max(interval.value, tiny)
    sign = 1.0 if names.better(name) == "lower" else -1.0
    margin = sign * math.log(value / max(limit, tiny))
    return margin, (interval.high - interval.low) / (2 * 1.96 * value)


# A margin that says "far off" and no more.
CLIP = 3.0
# Interpolation takes no margin for larger than this: far in overload a line holds no more.
TRUSTED = 1.0
# A served rate below this share of the offered one is the server's capacity.
SATURATED = 0.92
SERVED = ("steady_request_throughput", "request_throughput")
# The served rate of an overloaded server is its capacity but for noise, filling and draining.
CAPACITY_SLACK = 1.1
# A measured miss within this log distance above the capacity is the better end.
CAPACITY_BLUR = 0.15
# A new point keeps this share of the bracket's logarithm from its ends.
GUARD = 0.12


class _End(NamedTuple):
    """One end of the bracket."""

    at: float  # log of the load
    margin: float
    measured: bool  # else a bound, and its margin a guess


class _Search:
    """The points so far, the bracket they make and the next load to measure."""

    def __init__(self, low: float, high: float, *, integer: bool, tolerance: float) -> None:
        self.low = float(math.ceil(low)) if integer else low
        self.high = float(math.floor(high)) if integer else high
        self.integer, self.width = integer, math.log1p(tolerance)
        self.points: list[SearchPoint] = []
        self.kept = [0, 0]  # how many points in a row left each end where it was

    def add(self, point: SearchPoint) -> None:
        before = self.bracket()
        self.points.append(point)
        after = self.bracket()
        same = [a.at == b.at for a, b in zip(after, before, strict=True)]
        self.kept = [n + 1 if s else 0 for n, s in zip(self.kept, same, strict=True)]

    def bracket(self) -> tuple[_End, _End]:
        """The ends between which the margin crosses zero."""
        below = _End(math.log(self.low), -CLIP, measured=False)
        above = _End(math.log(self.high), CLIP, measured=False)
        capacity = self.capacity()
        if capacity is not None and below.at < math.log(capacity) < above.at:
            above = _End(math.log(capacity), CLIP, measured=False)
        for load, margin in pooled_margins(self.points):
            if margin <= 0:
                below = _End(math.log(load), margin, measured=True)
            else:
                if math.log(load) <= above.at + CAPACITY_BLUR or above.at <= below.at:
                    above = _End(math.log(load), margin, measured=True)
                break
        return below, above

    def capacity(self) -> float | None:
        """Served rate of overloaded points: an upper bound of any rate that can be kept up."""
        if self.integer:
            return None
        served = []
        for point in self.points:
            rates = [point.metrics.get(name) for name in SERVED]
            known = [rate.value for rate in rates if rate is not None]
            if point.margin > 0 and known and 0 < known[0] < SATURATED * point.load:
                served.append(max(known) * CAPACITY_SLACK)
        return min(served, default=None)

    def finished(self) -> str:
        """Why the search is over; empty: it is not."""
        below, above = self.bracket()
        tried = {point.load for point in self.points}
        if not below.measured and self.low in tried:
            return f"even the lowest load, {self.low:g}, misses the objectives"
        if not above.measured and self.high in tried:
            return f"the highest load allowed, {self.high:g}, meets the objectives"
        if not (below.measured and above.measured):
            return ""
        if self.integer and round(math.exp(above.at)) - round(math.exp(below.at)) <= 1:
            return "the next load up misses the objectives"
        if above.at - below.at <= self.width * 1.001:
            return f"a load {math.expm1(above.at - below.at):.1%} higher misses the objectives"
        return ""

    def propose(self) -> float:
        """The load to measure next: within the bracket, and none that was measured before."""
        below, above = self.bracket()
        if not self.points:
            at = (below.at + above.at) / 2
        elif not below.measured and above.at - below.at < 2 * GUARD:
            at = below.at
        elif above.at == math.log(self.high) and above.at - below.at < 2 * GUARD:
            at = above.at
        else:
            at = self.near(self.crossing(below, above), below, above)
        return self.rounded(math.exp(at), below, above)

    def crossing(self, below: _End, above: _End) -> float:
        """Where the margin should be zero, as a logarithm, kept off the ends.

        Jobs in flight: latencies grow about linearly, value = a + b load. Rates: they grow as in a
        queue, limit / value = a - b load. A straight line through two points in those terms.
        """
        middle = (below.at + above.at) / 2
        at = middle
        if below.measured and above.measured:
            at = self.straight(below, above)
        elif self.integer and (below.measured or above.measured):
            at = self.beyond(below if below.measured else above)
        elif above.at < math.log(self.high):  # a capacity that was seen, and nothing that met
            at = self.straight(below, above) if below.measured else above.at - self.retreat()
        keep = GUARD * (above.at - below.at)
        return min(max(at, below.at + keep), above.at - keep)

    def retreat(self) -> float:
        """How far to go down, as a logarithm, while every rate missed: ever further."""
        return 0.2 * 2.0 ** min(max(len(self.points) - 2, 0), 4)

    def straight(self, below: _End, above: _End) -> float:
        sign = 1.0 if self.integer else -1.0
        x0, x1 = math.exp(below.at), math.exp(above.at)
        # An end that stays is believed half as much each time, or a curve would never let it go.
        y0, y1 = (
            (math.exp(sign * min(max(end.margin, -TRUSTED), TRUSTED)) - 1.0)
            * 0.5 ** max(kept - 1, 0)
            for end, kept in zip((below, above), self.kept, strict=True)
        )
        if y0 == y1:
            return (below.at + above.at) / 2
        at = x0 - (x1 - x0) * y0 / (y1 - y0)
        return math.log(at) if at > 0 else -math.inf

    def beyond(self, end: _End) -> float:
        """Jobs in flight, with points on one side only: a line through the two next to the end, or
        through the origin (value proportional to load, the steepest a linear latency can be)."""
        others = [p for p in self.points if math.log(p.load) != end.at]
        proportional = end.at - end.margin
        if not others:
            return proportional
        next_one = min(others, key=lambda p: abs(math.log(p.load) - end.at))
        other = _End(math.log(next_one.load), next_one.margin, measured=True)
        low, high = sorted((end, other))
        if low.margin >= high.margin:
            return proportional
        at = self.straight(low, high)
        # A step too far costs one run, and so does one too short; aim a little beyond.
        slack = 0.05 if end.margin <= 0 else -0.05
        return max(at, proportional) + slack if end.margin <= 0 else min(at, proportional) + slack

    def near(self, at: float, below: _End, above: _End) -> float:
        """Close to a measured end, step over the crossing so that the bracket closes."""
        step = 0.95 * self.width
        if above.at - below.at <= 2 * step:
            return (below.at + above.at) / 2
        if below.measured and at - below.at < 0.7 * step:
            return below.at + step
        if above.measured and above.at - at < 0.7 * step:
            return above.at - step
        return at

    def rounded(self, load: float, below: _End, above: _End) -> float:
        if not self.integer:
            short = float(f"{load:.4g}")  # a rate that a person would type
            return min(max(short, self.low), self.high)
        whole = float(round(load))
        least = math.exp(below.at) + (1 if below.measured else 0)
        most = math.exp(above.at) - (1 if above.measured else 0)
        return float(round(min(max(whole, least), most)))

    def report(self, objectives: Mapping[str, float], reason: str) -> SearchReport:
        _, above = self.bracket()
        edge = math.exp(above.at) * (1 - 1e-9) if above.measured else math.inf
        good = [p for p in self.points if p.verdict == "meets" and p.load < edge]
        best = max(good, key=lambda p: p.load, default=None)
        worse = [p for p in self.points if best is None or p.load > best.load]
        misses = [p for p in worse if p.verdict == "misses"]
        first = min(misses, key=lambda p: p.load, default=None)
        return SearchReport(
            best=None if best is None else best.load,
            above=None if first is None else first.load,
            points=tuple(self.points),
            objectives=dict(objectives),
            limiting=first.limiting if first is not None else "",
            reason=reason,
        )


def pooled_margins(points: Sequence[SearchPoint]) -> list[tuple[float, float]]:
    """(load, margin) ascending, margins made to rise with the load: where noise contradicts that,
    neighbours share their weighted mean (isotonic regression by pooling adjacent violators)."""
    blocks: list[tuple[list[float], float, float]] = []  # loads, mean margin, weight
    for point in sorted(points, key=lambda p: p.load):
        margin = min(max(point.margin, -CLIP), CLIP)
        weight = 1.0 / (point.noise**2 + 1e-4)
        blocks.append(([point.load], margin, weight))
        while len(blocks) > 1 and blocks[-2][1] > blocks[-1][1]:
            loads, mean, heavy = blocks.pop()
            others, other, weight = blocks.pop()
            total = heavy + weight
            blocks.append((others + loads, (mean * heavy + other * weight) / total, total))
    return [(load, margin) for loads, margin, _ in blocks for load in loads]
