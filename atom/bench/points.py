"""The loads of a benchmark: what was typed becomes points, a point becomes a `Load` per repeat.

A list or range makes several points: a sweep. `1-16*2` is 1, 2, 4, 8, 16; `8-64+8` goes by eights.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from atom.bench.errors import BenchError
from atom.bench.types import Load, Workload

if TYPE_CHECKING:
    from atom.bench.workloads.arrivals import ArrivalSpec

DEFAULT_CONCURRENCY = 16
MOST_POINTS = 64
LEAST_REQUESTS = 16
# Of one repeat where no count is asked for. Five rounds of a closed loop leave a steady window of
# about four; twenty seconds of arrivals are longer than nearly any answer.
ROUNDS = 5
ARRIVALS_S = 20.0
AT_ONCE = 100  # requests of --request-rate inf
MOST_WARMUPS = 32

_NUMBER = r"\d+(?:\.\d+)?"
_RANGE = re.compile(rf"({_NUMBER})-({_NUMBER})(?:([*+])({_NUMBER}))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One load: `concurrency` for a closed loop, `arrivals` for an open one, neither: a trace."""

    concurrency: int | None = None
    arrivals: ArrivalSpec | None = None
    rate_text: str = ""  # of an open loop as it is typed: 4, inf, 2:20
    time_scale: float = 1.0  # of a trace
    max_in_flight: int | None = None
    num_requests: int | None = None
    duration_s: float | None = None
    workers: int | None = None

    @property
    def closed(self) -> bool:
        return self.concurrency is not None

    @property
    def stationary(self) -> bool:
        """Whether the load stays what it is, so that there is a steady state to look for."""
        if self.closed:
            return True
        return self.arrivals is not None and self.arrivals.ramp_to is None

    @property
    def level(self) -> float | None:
        """The number that a search or a chart orders points by."""
        if self.concurrency is not None:
            return float(self.concurrency)
        return None if self.arrivals is None else self.arrivals.rate

    def title(self) -> str:
        """For people: "concurrency 8", "4 req/s"."""
        if self.concurrency is not None:
            return f"concurrency {self.concurrency}"
        if self.arrivals is None:
            return "trace"
        if self.arrivals.rate == math.inf:
            return "all at once"
        ramp = self.rate_text.replace(":", " to ", 1).partition(":")[0]
        return f"{ramp} req/s"

    def describe(self) -> dict[str, Any]:
        """`RunResult.load`: what was asked, as the command line would say it."""
        told: dict[str, Any] = {"num_requests": self.num_requests, "duration_s": self.duration_s}
        if self.concurrency is not None:
            return {"mode": "closed", "concurrency": self.concurrency, **told}
        told["max_in_flight"] = self.max_in_flight
        if self.arrivals is None:
            return {"mode": "trace", "arrivals": "trace", "time_scale": self.time_scale, **told}
        rate = self.arrivals.rate
        plain = self.arrivals.ramp_to is None and rate is not None and rate < math.inf
        typed: Any = rate if plain else self.rate_text
        return {"mode": "open", **self.arrivals.describe(), "request_rate": typed, **told}

    def fit(self, workload: Workload, *, asked: bool) -> Point:
        """The point for a workload that may be shorter than what was meant.

        Raises `BenchError` where a number that the user `asked` for is more than there is.
        """
        length = workload.length
        count = self.num_requests
        # A timed run ends with its time, or with the data set.
        if length is None or (self.duration_s if count is None else count <= length):
            return self
        if asked and self.num_requests is not None:
            raise BenchError(
                f"--num-prompts {self.num_requests}: the data set {workload.name} has {length}; "
                "ask for at most that"
            )
        return replace(self, num_requests=length)

    def load(self, workload: Workload, seed: int, *, keep_text: bool = False) -> Load:
        """The load of the repeat with this seed."""
        if self.concurrency is not None:
            return Load(
                concurrency=self.concurrency,
                num_requests=self.num_requests,
                duration_s=self.duration_s,
                workers=self.workers,
                keep_text=keep_text,
            )
        from atom.bench.workloads.arrivals import arrival_times, trace_arrivals

        spec = self.arrivals
        if spec is None:
            spec = trace_arrivals(workload, self.time_scale)  # type: ignore[arg-type]
        count = self.num_requests if self.num_requests is not None else workload.length
        times = arrival_times(spec, seed, count, self.duration_s)
        return Load(
            arrivals_s=times,
            max_in_flight=self.max_in_flight,
            num_requests=len(times),
            duration_s=self.duration_s,
            workers=self.workers,
            keep_text=keep_text,
        )

    def warmups(self) -> int:
        """Warm-up requests where none are asked for: one per place, so that every batch size up to
        the measured one has been seen."""
        return min(self.concurrency or LEAST_REQUESTS, MOST_WARMUPS)


def closed_points(texts: Sequence[str], where: str) -> list[Point]:
    """The points of --concurrency; raises `BenchError` with `where` as its subject."""
    points = []
    for level in _unique(level for text in texts for level in levels(text, where)):
        if level != int(level) or level < 1:
            raise BenchError(f"{where} {level:g}: it must be a whole number from 1 on")
        points.append(closed_point(int(level)))
    return _few(points, where)


def closed_point(concurrency: int) -> Point:
    return Point(concurrency=concurrency, num_requests=max(LEAST_REQUESTS, ROUNDS * concurrency))


def open_points(
    texts: Sequence[str], where: str, *, burstiness: float, max_in_flight: int | None
) -> list[Point]:
    """The points of --request-rate; raises `BenchError` with `where` as its subject."""
    points = []
    for text in texts:
        found = [text]
        if ":" not in text and text not in ("inf", "infinity"):
            found = [f"{level:g}" for level in levels(text, where)]
        points += [open_point(rate, burstiness, max_in_flight) for rate in found]
    return _few(list(_unique(points)), where)


def open_point(rate: str, burstiness: float, max_in_flight: int | None) -> Point:
    """A point of one rate, as typed: 4, inf, 2:20, 2:20:exponential."""
    from atom.bench.workloads.arrivals import parse_rate

    spec = parse_rate(rate, burstiness=burstiness)
    assert spec.rate is not None
    count = AT_ONCE
    if spec.rate < math.inf:
        mean = spec.rate if spec.ramp_to is None else (spec.rate + spec.ramp_to) / 2
        count = max(LEAST_REQUESTS, math.ceil(ARRIVALS_S * mean))
    return Point(arrivals=spec, rate_text=rate, max_in_flight=max_in_flight, num_requests=count)


def levels(text: str, where: str) -> list[float]:
    """`8`, `1-4`, `1-16*2`, `8-64+8` -> the numbers; raises `BenchError`."""
    text = text.strip()
    if re.fullmatch(_NUMBER, text):
        return [float(text)]
    match = _RANGE.fullmatch(text)
    if match is None:
        raise BenchError(f"{where} {text}: write a number, 1,2,4, or a range: 1-8, 1-16*2, 8-64+8")
    low, high = float(match[1]), float(match[2])
    sign, step = match[3] or "+", float(match[4] or 1)
    if low > high or (sign == "*" and (step <= 1 or low == 0)) or (sign == "+" and step <= 0):
        raise BenchError(f"{where} {text}: this range has no end; write it as 1-16*2 or 8-64+8")
    found = [low]
    while len(found) <= MOST_POINTS:
        last = found[-1]
        following = last * step if sign == "*" else low + len(found) * step
        if following > high * (1 + 1e-9):
            break
        found.append(following)
    return found


def span(texts: Sequence[str], where: str) -> tuple[float, float] | None:
    """`1-256` -> its ends, for a search; None when nothing was given."""
    if not texts:
        return None
    match = _RANGE.fullmatch(texts[0].strip())
    if len(texts) != 1 or match is None or match[3]:
        raise BenchError(f"{where} {','.join(texts)}: --find-max searches one range, e.g. 1-256")
    low, high = float(match[1]), float(match[2])
    if not 0 < low < high:
        raise BenchError(f"{where} {texts[0]}: the range must begin above 0 and end higher")
    return low, high


def _unique(items: Any) -> list[Any]:
    kept: list[Any] = []
    for item in items:
        if item not in kept:
            kept.append(item)
    return kept


def _few(points: list[Point], where: str) -> list[Point]:
    if len(points) > MOST_POINTS:
        raise BenchError(
            f"{where}: that is more than {MOST_POINTS} points; double the steps, e.g. 1-64*2"
        )
    return points
