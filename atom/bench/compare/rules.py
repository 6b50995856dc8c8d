"""What counts as a difference that matters, by metric; and facts about runs that verdicts need.

Every constant of the verdicts stands here, so that the guide, the tests and the simulations speak
of the same ones. The thresholds of throughput and latency are the original's (5 % and 10 %).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from atom.bench import names
from atom.bench.types import RunResult

Scale = Literal["ratio", "difference"]

CONFIDENCE = 0.95  # of the intervals shown
ALPHA = 0.05  # a difference is called real at this level, two-sided
EQUAL_ALPHA = 0.10  # "same": each side's chance to be beyond the margin is at most this
# A difference is worth a verdict from this share of the margin on: half of a per cent, however well
# proven, is nothing that anyone acts upon.
FLOOR = 0.6

MARGIN_RATE = 0.05  # throughput: a loss of more is a regression
MARGIN_LATENCY = 0.10
MARGIN_SHARE = 0.05  # of goodput and acceptance, in points of the share
MARGIN_SCORE = 0.02  # of an accuracy, in points
MARGIN_ERRORS = 0.01  # of failed requests, in points

# Standard deviation of a metric's logarithm between two starts of the same server, assumed where no
# history tells; and for how many degrees of freedom that assumption stands once some history does.
PRIOR_START_SIGMA = 0.005
PRIOR_START_DF = 3.0

# Latencies of a queue that is nearly empty: a factor of two of 0.1 ms is no news.
QUEUE_FLOOR_MS = 1.0

TRADE_OFF = 0.05  # a latency that rises while throughput rises by this much is a choice, not a loss


class Judged(NamedTuple):
    """How one metric is compared."""

    scale: Scale
    margin: float  # "same" within it: of the logarithm's ratio, or of the difference
    floor: float  # "better" and "worse" from it on
    absolute: float = 0.0  # and only if the values differ by this much


def judged(name: str, margin: float | None = None) -> Judged | None:
    """The rule for a metric; None: it has no good side and is not judged.

    `margin` replaces the margin of throughputs and latencies (a share: 0.03 is 3 %).
    """
    if names.better(name) == "neither" or name == "failed":  # error_rate says it
        return None
    if name == "error_rate":
        return Judged("difference", MARGIN_ERRORS, 0.0)
    if name in names.PLAIN and names.unit(name) == "share":
        return Judged("difference", MARGIN_SHARE, FLOOR * MARGIN_SHARE)
    if not names.is_name(name):
        return Judged("difference", MARGIN_SCORE, FLOOR * MARGIN_SCORE)
    latency = names.unit(name) == "ms"
    wide = margin if margin is not None else MARGIN_LATENCY if latency else MARGIN_RATE
    queue = name.endswith(("_client_queue_ms", "_server_queue_ms"))
    return Judged("ratio", wide, FLOOR * wide, QUEUE_FLOOR_MS if queue else 0.0)


def is_open_loop(run: RunResult) -> bool:
    """Whether arrivals, not the server's speed, set the rate of requests."""
    if run.load.get("concurrency") is not None or run.load.get("mode") == "closed":
        return False
    return run.load.get("request_rate") not in (None, "inf", math.inf) or (
        run.load.get("mode") == "trace"
    )


def throughput_name(*runs: RunResult) -> str:
    """The output throughput to judge by: of the steady state where all these runs have one."""
    for name in ("steady_output_throughput", "output_throughput", "total_token_throughput"):
        if all(known(run, name) for run in runs):
            return name
    return "request_throughput"


def known(run: RunResult, name: str) -> bool:
    """Whether every repeat has this metric; without repeats: whether the run has."""
    if run.repeats:
        return all(usable(repeat.metrics.get(name)) for repeat in run.repeats)
    return name in run.metrics and usable(run.metrics[name].value)


def usable(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def samples(run: RunResult, name: str) -> list[float]:
    """The metric in each repeat that has it."""
    values = (repeat.metrics.get(name) for repeat in run.repeats)
    return [v for v in values if v is not None and math.isfinite(v)]


def typical(run: RunResult, name: str) -> float | None:
    """The median over the repeats: one disturbed repeat does not move it."""
    values = samples(run, name)
    if values:
        return statistics.median(values)
    interval = run.metrics.get(name)
    return interval.value if interval is not None and usable(interval.value) else None


def get(tree: Mapping[str, Any] | Any, *path: str) -> Any:
    """A value deep in a mapping, None where the path ends early."""
    for key in path:
        if not isinstance(tree, Mapping):
            return None
        tree = tree.get(key)
    return tree
