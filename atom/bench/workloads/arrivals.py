"""When requests arrive in an open loop: every intended time, fixed before the run from the seed.

The first arrival is at 0. Gaps are scaled so that their mean is exactly what was asked: 100 Poisson
arrivals would otherwise miss the rate by 10% at random, and two runs would differ in load.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

from atom.bench.errors import BenchError
from atom.bench.workloads import draw
from atom.config.fields import nearest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Ramp = Literal["linear", "exponential"]
MOST = 10_000_000  # arrivals of one run; beyond it a list of times is no plan any more


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrivalSpec:
    """How requests arrive. Exactly one of `rate` and `timestamps` is set."""

    rate: float | None = None  # requests per second; inf: all at once
    burstiness: float = 1.0  # shape of the gamma gaps: 1 Poisson, <1 bursts, inf a constant gap
    ramp_to: float | None = None  # the rate goes from `rate` to this
    ramp: Ramp = "linear"  # over time, linearly or exponentially
    ramp_s: float | None = None  # for so long, then stays; None: over the whole run
    timestamps: Sequence[float] | None = None  # trace: seconds, ascending
    time_scale: float = 1.0  # trace: times are multiplied by this

    def __post_init__(self) -> None:
        if (self.rate is None) == (self.timestamps is None):
            raise BenchError("give either a request rate or a trace's times")
        if self.timestamps is not None:
            if not 0 < self.time_scale < math.inf:
                raise BenchError(f"time_scale is {self.time_scale}; it must be above 0")
            return
        rate = self.rate or 0.0
        if not rate > 0:
            raise BenchError(f"--request-rate is {self.rate}; it must be above 0, or inf")
        if not self.burstiness > 0:
            raise BenchError(f"--burstiness is {self.burstiness}; it must be above 0 (1: Poisson)")
        if self.ramp_to is not None and not (0 < self.ramp_to < math.inf and rate < math.inf):
            raise BenchError(
                f"--request-rate {rate:g}:{self.ramp_to:g}: both must be above 0 and finite"
            )
        if self.ramp not in get_args(Ramp):
            raise BenchError(f"ramp is {self.ramp!r}; it must be linear or exponential")
        if self.ramp_s is not None and not (self.ramp_to and 0 < self.ramp_s < math.inf):
            raise BenchError(
                f"ramp_s is {self.ramp_s}; it must be above 0 and needs a rate to reach"
            )

    def describe(self) -> dict[str, Any]:
        """Provenance, without the trace's times themselves. An infinite number is the text inf."""
        if self.timestamps is not None:
            return {"arrivals": "trace", "time_scale": self.time_scale}
        kind = {1.0: "poisson", math.inf: "constant"}.get(self.burstiness, "gamma")
        told = {
            "arrivals": "at once" if self.rate == math.inf else kind,
            "request_rate": _number(self.rate),
            "burstiness": _number(self.burstiness),
        }
        if self.ramp_to is not None:
            told |= {"ramp_to": self.ramp_to, "ramp": self.ramp, "ramp_s": self.ramp_s}
        return told


class HasArrivals(Protocol):
    def arrivals(self) -> Sequence[float]:
        """Seconds from the trace's begin, one per job."""
        ...


def trace_arrivals(workload: HasArrivals, time_scale: float) -> ArrivalSpec:
    """The arrivals that a trace workload recorded."""
    return ArrivalSpec(timestamps=workload.arrivals(), time_scale=time_scale)


def parse_rate(text: str, *, burstiness: float = 1.0) -> ArrivalSpec:
    """`8`, `inf`, a ramp `2:20` or `2:20:exponential` -> how requests arrive.

    Raises `BenchError` naming what is wrong.
    """
    parts = text.strip().split(":")
    ramps = get_args(Ramp)
    try:
        rates = [float(part) for part in parts[:2]]
    except ValueError:
        rates = []
    if not rates or len(parts) > 3 or any(math.isnan(rate) for rate in rates):
        raise BenchError(
            f"--request-rate {text}: write a number, inf, or a ramp as 2:20 or 2:20:exponential"
        )
    kind = parts[2] if len(parts) == 3 else "linear"
    kind = next((name for name in ramps if name.startswith(kind) and len(kind) >= 3), kind)
    if kind not in ramps:
        raise BenchError(
            f"--request-rate {text}: a ramp is linear or exponential{nearest(kind, ramps)}"
        )
    ramp_to = rates[1] if len(rates) == 2 else None
    return ArrivalSpec(rate=rates[0], burstiness=burstiness, ramp_to=ramp_to, ramp=kind)  # type: ignore[arg-type]


def arrival_times(
    spec: ArrivalSpec, seed: int, count: int | None = None, duration_s: float | None = None
) -> list[float]:
    """Intended start of job 0, 1, ... in seconds from the run's begin, ascending.

    At most `count` of them, all before `duration_s`; one of the two must be given except for a
    trace, which ends by itself. A rate with a duration alone gives its product, rounded up. Raises
    `BenchError` where the plan cannot be made.
    """
    if count is not None and count < 1:
        raise BenchError(f"--num-prompts is {count}; it must be at least 1")
    if duration_s is not None and not 0 < duration_s < math.inf:
        raise BenchError(f"--duration is {duration_s}; it must be above 0 seconds")
    if spec.timestamps is not None:
        return _replayed(spec, count, duration_s)
    if count is None and duration_s is None:
        raise BenchError("a request rate needs --num-prompts or --duration")
    assert spec.rate is not None
    if spec.rate == math.inf:
        if count is None:
            raise BenchError("--request-rate inf needs --num-prompts: all are sent at once")
        return [0.0] * count
    course = _Course.of(spec, count, duration_s)
    total = count if duration_s is None else math.ceil(round(course.expected(duration_s), 9))
    total = total if count is None else min(total or count, count)
    assert total is not None
    if total > MOST:
        raise BenchError(f"that is {total} requests; a run has at most {MOST}")
    # Nanoseconds: the same bytes whatever the last bit of a platform's logarithm is.
    times = [round(float(t), 9) for t in course.invert(_steps(spec.burstiness, seed, total))]
    return times if duration_s is None else [t for t in times if t < duration_s]


def _replayed(spec: ArrivalSpec, count: int | None, duration_s: float | None) -> list[float]:
    assert spec.timestamps is not None
    times = [round(t * spec.time_scale, 9) for t in spec.timestamps[:count]]
    assert all(a <= b for a, b in itertools.pairwise(times))
    return times if duration_s is None else [t for t in times if t < duration_s]


def _steps(burstiness: float, seed: int, total: int) -> NDArray[np.float64]:
    """[total] arrivals of a process whose gaps have the mean 1, from 0 to exactly total - 1."""
    import numpy as np

    if burstiness == math.inf or total < 2:
        return np.arange(total, dtype=np.float64)
    u = draw.uniforms(total - 1, seed, "arrivals")
    if burstiness == 1.0:
        gaps = -np.log1p(-u)
    else:
        from scipy.special import gammaincinv

        gaps = gammaincinv(burstiness, u) / burstiness
    steps = np.concatenate(([0.0], np.cumsum(gaps)))
    if not steps[-1] > 0:  # a burstiness so small that every gap underflows
        raise BenchError(
            f"--burstiness {burstiness:g} leaves no gap between arrivals; take a larger one"
        )
    scaled: NDArray[np.float64] = steps * ((total - 1) / steps[-1])
    return scaled


@dataclass(frozen=True, slots=True)
class _Course:
    """The rate over time: from `first` to `last` within `length_s`, `last` from then on."""

    first: float
    last: float
    ramp: Ramp
    length_s: float

    @classmethod
    def of(cls, spec: ArrivalSpec, count: int | None, duration_s: float | None) -> _Course:
        assert spec.rate is not None
        if spec.ramp_to is None or spec.ramp_to == spec.rate:
            return cls(spec.rate, spec.rate, "linear", 0.0)
        course = cls(spec.rate, spec.ramp_to, spec.ramp, 1.0)
        length_s = spec.ramp_s or duration_s
        if length_s is None:  # over `count` arrivals, whose number grows with the ramp's length
            assert count is not None
            length_s = count / course.expected(1.0)
        return cls(spec.rate, spec.ramp_to, spec.ramp, length_s)

    def expected(self, time_s: float) -> float:
        """Arrivals to be expected until then: the integral of the rate."""
        a, b, length = self.first, self.last, self.length_s
        within = min(time_s, length)
        if not length:
            return b * time_s
        if self.ramp == "linear":
            area = a * within + (b - a) * within * within / (2 * length)
        else:
            growth = math.log(b / a)
            area = a * length / growth * math.expm1(growth * within / length)
        return area + b * (time_s - within)

    def invert(self, steps: NDArray[np.float64]) -> NDArray[np.float64]:
        """The times at which so many arrivals are expected."""
        import numpy as np

        a, b, length = self.first, self.last, self.length_s
        if not length:
            return steps / b
        in_ramp = self.expected(length)
        inside = np.minimum(steps, in_ramp)
        if self.ramp == "linear":
            slope = (b - a) / length
            # The root without cancellation: it holds for rising and falling ramps.
            times = 2 * inside / (a + np.sqrt(np.maximum(a * a + 2 * slope * inside, 0.0)))
        else:
            growth = math.log(b / a)
            times = np.log1p(inside * growth / (a * length)) * length / growth
        times = np.minimum(times, length)
        result: NDArray[np.float64] = times + np.maximum(steps - in_ramp, 0.0) / b
        return result


def _number(value: float | None) -> float | str | None:
    return "inf" if value == math.inf else value
