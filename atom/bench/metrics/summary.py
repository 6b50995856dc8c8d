"""One pass of load, summarised: records in, `RepeatResult` out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timezone

import numpy as np

from atom.bench.metrics.notes import notes
from atom.bench.metrics.options import MetricOptions
from atom.bench.metrics.samples import Outcome, latencies, split, within
from atom.bench.metrics.statistics import Sample, describe
from atom.bench.metrics.window import (
    Window,
    closed_window,
    count_in,
    flight,
    mean_flight,
    open_window,
    tokens_in,
)
from atom.bench.names import LATENCIES, PLAIN, latency
from atom.bench.types import LoadOutcome, RepeatResult, RequestRecord

Metrics = dict[str, float | None]

# Distinct causes shown; the rest is counted together.
MAX_CAUSES = 12
# What tells two equal errors apart without saying anything: ids, times, addresses.
_IDS = re.compile(r"0x[0-9a-f]+|\b[0-9a-f]{8}[0-9a-f-]*\b|\d{5,}")


def summarize(outcome: LoadOutcome, options: MetricOptions) -> RepeatResult:
    """The metrics of one pass, by the names of `atom.bench.names`; None: the run cannot tell.

    Latencies: all completed requests of the pass. `*_throughput`: over the whole pass, as the
    original has it. `steady_*`: over the steady window (see `window`). Requests that were given up
    at the end of a timed run (`cancelled`) are in neither the latencies nor the error rate; the
    tokens they got within the steady window count there.
    """
    parts = split(outcome.records)
    samples = latencies(parts.completed, options.closed)
    window = find_window(outcome.records, options)
    metrics: Metrics = dict.fromkeys(PLAIN)
    metrics.update(_totals(parts, outcome.duration_s))
    metrics.update(_concurrency(outcome.records, outcome.duration_s))
    metrics.update(_steady(outcome.records, window))
    metrics.update(_goodput(parts, options, outcome.duration_s))
    metrics.update(_latency_metrics(samples, options))
    metrics.update(_from_server(metrics, options))
    metrics.update(_per_device_and_user(metrics, options.num_gpus))
    return RepeatResult(
        seed=options.seed,
        started_at=datetime.fromtimestamp(outcome.wall_clock, timezone.utc).isoformat(),
        duration_s=outcome.duration_s,
        metrics={n: None if v is None else float(v) for n, v in metrics.items()},
        errors=causes(parts.failed),
        health=outcome.health,
        window_s=None if window is None else (window.start, window.end),
        server=dict(options.server),
        notes=notes(outcome, parts, samples, window, metrics, options),
    )


def find_window(records: Sequence[RequestRecord], options: MetricOptions) -> Window | None:
    """The steady window of a pass; None for a ramp, or where the run is too short for one."""
    if not records or not options.stationary:
        return None
    return closed_window(records) if options.closed else open_window(records)


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _output_tokens(completed: Sequence[RequestRecord]) -> int | None:
    """None as soon as one request's are unknown: a sum over the others would be too low."""
    counts = [r.output_tokens for r in completed]
    return None if None in counts else sum(c for c in counts if c is not None)


def _input_tokens(completed: Sequence[RequestRecord]) -> int | None:
    counts = [r.input_tokens for r in completed]
    return None if None in counts else sum(c for c in counts if c is not None)


def _totals(parts: Outcome, duration_s: float) -> Metrics:
    done, failed = len(parts.completed), len(parts.failed)
    given, made = _input_tokens(parts.completed), _output_tokens(parts.completed)
    both = None if given is None or made is None else given + made
    cached = [(r.cached_tokens, r.input_tokens) for r in parts.completed]
    known = [(c, n) for c, n in cached if c is not None and n is not None]
    chunks = sum(len(r.token_times_s) for r in parts.completed)

    def rate(count: float | None) -> float | None:
        return None if count is None or duration_s <= 0 else count / duration_s

    return {
        "completed": done,
        "failed": failed,
        "error_rate": _share(failed, done + failed),
        "total_input_tokens": given,
        "total_output_tokens": made,
        "mean_input_tokens": None if given is None else _share(given, done),
        "mean_output_tokens": None if made is None else _share(made, done),
        "request_throughput": rate(done),
        "output_throughput": rate(made),
        "total_token_throughput": rate(both),
        "cached_token_share": _share(sum(c for c, _ in known), sum(n for _, n in known)),
        "tokens_per_chunk": None if made is None else _share(made, chunks),
    }


def _concurrency(records: Sequence[RequestRecord], duration_s: float) -> Metrics:
    if not records or duration_s <= 0:
        return {"mean_concurrency": 0.0, "peak_concurrency": 0.0}
    return {
        "mean_concurrency": mean_flight(records, 0.0, duration_s),
        "peak_concurrency": float(max(flight(records)[1])),
    }


class Slices:
    """Work done between consecutive edges: what throughput over a window is made of."""

    def __init__(self, records: Sequence[RequestRecord], edges: Sequence[float]) -> None:
        at = np.asarray(edges, dtype=np.float64)
        done = [r for r in records if r.error is None]
        self.seconds = np.diff(at)
        self.requests = count_in([r.ended_s for r in done], at)
        self.output = tokens_in(records, at)
        # A prompt counts when its first token shows that it has been read.
        read = [r for r in done if r.token_times_s]
        told = all(r.input_tokens is not None for r in read)
        sizes = [float(r.input_tokens or 0) for r in read]
        self.input = count_in([r.token_times_s[0] for r in read], at, sizes) if told else None

    def rates(self) -> dict[str, np.ndarray[tuple[int], np.dtype[np.float64]] | None]:
        """Per slice, by the name of the steady metric."""
        output, given = self.output, self.input
        both = None if output is None or given is None else output + given
        return {
            "steady_request_throughput": self.requests / self.seconds,
            "steady_output_throughput": None if output is None else output / self.seconds,
            "steady_total_token_throughput": None if both is None else both / self.seconds,
        }


def _steady(records: Sequence[RequestRecord], window: Window | None) -> Metrics:
    if window is None:
        return {}
    rates = Slices(records, [window.start, window.end]).rates()
    return {name: None if rate is None else float(rate[0]) for name, rate in rates.items()}


def _goodput(parts: Outcome, options: MetricOptions, duration_s: float) -> Metrics:
    limits = options.goodput_limits()
    everyone = len(parts.completed) + len(parts.failed)
    if not limits or not everyone or duration_s <= 0:
        return {}
    verdicts = [within(record, limits, options.closed) for record in parts.completed]
    if None in verdicts:  # some request's tokens are not known
        return {}
    good = sum(bool(v) for v in verdicts)
    return {"request_goodput": good / duration_s, "goodput_share": good / everyone}


def _latency_metrics(samples: dict[str, Sample], options: MetricOptions) -> Metrics:
    percentiles = options.all_percentiles()
    made: Metrics = {}
    for what in LATENCIES:
        if what in samples:
            for statistic, value in describe(samples[what], percentiles).items():
                made[latency(statistic, what)] = value
    return made


def _from_server(metrics: Metrics, options: MetricOptions) -> Metrics:
    """What its metrics page tells; its mean queue time only where no answer told it."""
    names = ["acceptance_rate", "accept_length"]
    if "mean_server_queue_ms" not in metrics:
        names.append("mean_server_queue_ms")
    return {name: options.server[name] for name in names if name in options.server}


def _per_device_and_user(metrics: Metrics, num_gpus: int) -> Metrics:
    made: Metrics = {}
    tpot = metrics.get("mean_tpot_ms")
    made["output_throughput_per_user"] = 1000.0 / tpot if tpot else None
    for kind in ("output", "total_token"):
        whole, steady = metrics[f"{kind}_throughput"], metrics[f"steady_{kind}_throughput"]
        best = whole if steady is None else steady
        known = best is not None and num_gpus > 0
        made[f"{kind}_throughput_per_gpu"] = best / num_gpus if known and best is not None else None
    return made


def causes(failed: Sequence[RequestRecord]) -> dict[str, int]:
    """Failed requests by cause, most first: "http 503: queue is full" -> 7. The sum is all of them.

    Ids and long numbers in messages are masked, so that equal errors count as one cause.
    """
    counts = Counter(_cause(record) for record in failed)
    if len(counts) <= MAX_CAUSES:
        return dict(counts.most_common())
    shown = dict(counts.most_common(MAX_CAUSES))
    rest = Counter(_kind(record) for record in failed if _cause(record) not in shown)
    for kind, count in rest.most_common():
        shown[f"{kind}: other messages"] = count
    return shown


def _kind(record: RequestRecord) -> str:
    if record.error == "http" and record.status:
        return f"http {record.status}"
    return str(record.error)


def _cause(record: RequestRecord) -> str:
    message = _IDS.sub("#", " ".join(record.message.split()))
    if len(message) > 100:
        message = message[:99] + "…"
    return f"{_kind(record)}: {message}" if message else _kind(record)
