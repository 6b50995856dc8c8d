"""What a summary is asked for: the kind of load, the percentiles, the objectives."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from atom.bench.errors import BenchError
from atom.bench.names import LATENCIES
from atom.config.fields import nearest

PERCENTILES = (90.0, 95.0, 99.0)

# What one request may be held to, in milliseconds.
GOODPUT = ("ttft", "tpot", "itl", "e2el", "client_queue", "server_queue", "first_text")

_STATISTIC = re.compile(r"(?:mean|median|std|p(\d{1,2}(?:\.\d+)?))_([a-z0-9_]+)_ms")


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricOptions:
    """How the records of one pass become metrics.

    Args:
        closed: Latencies count from `sent_s` (closed loop), not from `intended_s` (open loop).
        percentiles: Of every latency, between 0 and 100; those the objectives need are added.
        objectives: Metric name -> limit, as `names.parse_objectives` gives it.
        goodput: ttft, tpot, ... -> milliseconds one request may take. Empty: taken from the
            objectives (`ttft_p99=500ms` holds each request to 500 ms).
        num_gpus: Devices of the server; 0 (a CPU, or unknown) leaves out what is per GPU.
        stationary: False for a ramp, which has no steady state to look for.
        seed: Of this repeat; it goes into the result and seeds the resampling.
        server: The delta of the server's metrics page over this pass (`client.scrape`).
    """

    closed: bool
    percentiles: tuple[float, ...] = PERCENTILES
    objectives: Mapping[str, float] = field(default_factory=dict)
    goodput: Mapping[str, float] = field(default_factory=dict)
    num_gpus: int = 0
    stationary: bool = True
    seed: int = 0
    server: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for percent in self.percentiles:
            if not 0 <= percent <= 100:
                raise BenchError(f"percentile {percent:g}: it must be between 0 and 100")
            if percent == 100:
                raise BenchError("percentile 100: that is one request; ask for 99.9 at most")
        for what, limit in self.goodput.items():
            if what not in GOODPUT:
                raise BenchError(f"goodput {what}: not a latency{nearest(what, GOODPUT)}")
            if not limit > 0:
                raise BenchError(f"goodput {what}:{limit:g}: the limit must be above 0 ms")

    def all_percentiles(self) -> tuple[float, ...]:
        """Those asked for and those the objectives need, ascending."""
        needed = set(self.percentiles)
        for name in self.objectives:
            match = _STATISTIC.fullmatch(name)
            if match is not None and match[1] is not None:
                needed.add(float(match[1]))
        return tuple(sorted(needed))

    def goodput_limits(self) -> dict[str, float]:
        """What each request is held to: latency -> milliseconds; the tightest where several."""
        if self.goodput:
            return dict(self.goodput)
        limits: dict[str, float] = {}
        for name, limit in self.objectives.items():
            match = _STATISTIC.fullmatch(name)
            if match is None or match[2] not in LATENCIES or match[2] not in GOODPUT:
                continue
            if not name.startswith("std_"):
                limits[match[2]] = min(limit, limits.get(match[2], limit))
        return limits


def parse_goodput(pairs: list[str]) -> dict[str, float]:
    """The seeds' `--goodput ttft:500 tpot:50` (milliseconds) as latency -> limit.

    Raises `BenchError` for anything else.
    """
    limits: dict[str, float] = {}
    for pair in (p for text in pairs for p in re.split(r"[,\s]+", text) if p):
        what, sign, value = pair.partition(":")
        if not sign or re.fullmatch(r"\d+(\.\d+)?", value) is None:
            raise BenchError(f"--goodput {pair}: write latency:milliseconds, e.g. ttft:500")
        if what not in GOODPUT:
            raise BenchError(f"--goodput {pair}: not a latency{nearest(what, GOODPUT)}")
        if float(value) <= 0:
            raise BenchError(f"--goodput {pair}: the limit must be above 0 ms")
        limits[what] = float(value)
    return limits
