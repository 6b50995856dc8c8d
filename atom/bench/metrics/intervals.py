"""Confidence intervals over the repeats of a run.

The repeat is the unit that varies by itself: requests of one pass share a server's state, its
neighbours and its clock. So with two repeats or more the half-width is Student's t with (repeats -
1) degrees of freedom times the standard error of the repeats' own values; this holds the noise
between runs as well as within them. The centre is

* the pooled statistic over all requests for latencies (a p99 of 5 x 80 requests, not the mean of
  five p99 of 80 each, which are hardly more than maxima),
* the pooled share for `error_rate` and `goodput_share`, with at least Wilson's interval (no failure
  among 400 requests does not prove a rate of zero),
* the mean of the repeats for everything else; counts are summed and have no width.

A single repeat can only tell the noise within itself: latencies and means per request by the
percentile bootstrap over requests. Throughput in closed loop is places x work / time in flight
(Little's law), a quotient of sums over requests, and is resampled with them, since slices of time
would see the waves of requests that run in step; in open loop it is by batch means (ten slices of
the steady window). What neither covers has no width then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from atom.bench.metrics.options import MetricOptions
from atom.bench.metrics.samples import latencies, split
from atom.bench.metrics.statistics import Array, Sample, Sorted, describe, percentile, pool
from atom.bench.metrics.summary import Slices, find_window
from atom.bench.names import LATENCIES, latency, percentile_name
from atom.bench.quantiles import t_quantile, wilson
from atom.bench.types import Interval, RepeatResult, RequestRecord

COUNTS = ("completed", "failed", "total_input_tokens", "total_output_tokens")
SHARES = ("error_rate", "goodput_share")
SLICES = 10  # of a single repeat's steady window
DRAWS = 400
MANY = 200_000  # samples from which on fewer draws are taken


def combine(
    repeats: Sequence[RepeatResult],
    records: Sequence[Sequence[RequestRecord]],
    options: MetricOptions,
    *,
    alpha: float = 0.05,
) -> dict[str, Interval]:
    """Every metric that all repeats know, with its interval of confidence 1 - alpha.

    Args:
        repeats: From `summarize`, at least one.
        records: Each repeat's records in the same order; empty where they are gone (an import):
            latencies are then the mean of the repeats' values.
        options: Those the repeats were summarised with.

    The interval always holds the value. Equal input gives equal intervals: resampling is seeded by
    `options.seed`.
    """
    assert repeats
    assert not records or len(records) == len(repeats)
    pooled = _pooled(records, options) if records else Pooled({}, [])
    centres = _centres(pooled, options)
    names = [n for n in repeats[0].metrics if all(r.metrics.get(n) is not None for r in repeats)]
    made: dict[str, Interval] = {}
    for name in names:
        values = np.array([r.metrics[name] for r in repeats], dtype=np.float64)
        if name in COUNTS:
            made[name] = _exact(float(values.sum()))
        elif name == "peak_concurrency":
            made[name] = _exact(float(values.max()))
        else:
            centre = centres.get(name, float(values.mean()))
            half = _half_width(values, alpha)
            made[name] = _holding(centre, centre - half, centre + half)
    if len(repeats) == 1 and records:
        made.update(_within_one(made, pooled, records[0], options, alpha))
    made.update(_shares(repeats, made, alpha))
    made.update(_derived(made, options))
    return made


def precision(metrics: Mapping[str, Interval], names: Iterable[str]) -> float:
    """The widest relative half-width of the named metrics: 0.02 means each is known to 2 %.

    Infinite where one is missing, or is zero with a width.
    """
    widest = 0.0
    for name in names:
        interval = metrics.get(name)
        if interval is None:
            return float("inf")
        half = (interval.high - interval.low) / 2
        if half:
            widest = max(widest, half / abs(interval.value) if interval.value else float("inf"))
    return widest


def _exact(value: float) -> Interval:
    return Interval(value, value, value)


def _half_width(values: Array, alpha: float) -> float:
    """Student's t on the repeats' values; 0 for a single one, which tells nothing."""
    if len(values) < 2:
        return 0.0
    error = values.std(ddof=1) / np.sqrt(len(values))
    return float(t_quantile(1 - alpha / 2, len(values) - 1) * error)


class Pooled(NamedTuple):
    samples: dict[str, Sample]  # over all repeats; owners number the requests of all
    completed: list[RequestRecord]


def _pooled(records: Sequence[Sequence[RequestRecord]], options: MetricOptions) -> Pooled:
    done = [split(of).completed for of in records]
    each = [latencies(completed, options.closed) for completed in done]
    sizes = [len(completed) for completed in done]
    samples: dict[str, Sample] = {}
    for what in LATENCIES:
        if all(what in of for of in each):
            samples[what] = pool([of[what] for of in each], sizes)
    return Pooled(samples, [record for completed in done for record in completed])


def _centres(pooled: Pooled, options: MetricOptions) -> dict[str, float]:
    percentiles = options.all_percentiles()
    return {
        latency(statistic, what): value
        for what, sample in pooled.samples.items()
        for statistic, value in describe(sample, percentiles).items()
    }


def _shares(
    repeats: Sequence[RepeatResult], made: Mapping[str, Interval], alpha: float
) -> dict[str, Interval]:
    shares: dict[str, Interval] = {}
    everyone = sum(
        (r.metrics.get("completed") or 0) + (r.metrics.get("failed") or 0) for r in repeats
    )
    for name in SHARES:
        if name not in made or not everyone:
            continue
        weights = [
            (r.metrics.get("completed") or 0) + (r.metrics.get("failed") or 0) for r in repeats
        ]
        value = float(np.average([r.metrics[name] or 0.0 for r in repeats], weights=weights))
        low, high = wilson(value, everyone, 1 - alpha)
        half = (made[name].high - made[name].value) if len(repeats) > 1 else 0.0
        low, high = min(low, value - half), max(high, value + half)
        shares[name] = Interval(value, max(low, 0.0), min(high, 1.0))
    return shares


def _derived(made: Mapping[str, Interval], options: MetricOptions) -> dict[str, Interval]:
    """What is another metric over a constant, or its inverse, has that metric's interval."""
    derived: dict[str, Interval] = {}
    tpot = made.get("mean_tpot_ms")
    if "output_throughput_per_user" in made and tpot is not None and tpot.low > 0:
        derived["output_throughput_per_user"] = Interval(
            1000 / tpot.value, 1000 / tpot.high, 1000 / tpot.low
        )
    for kind in ("output", "total_token"):
        whole = made.get(f"steady_{kind}_throughput", made.get(f"{kind}_throughput"))
        if whole is not None and options.num_gpus > 0:
            each = [x / options.num_gpus for x in (whole.value, whole.low, whole.high)]
            derived[f"{kind}_throughput_per_gpu"] = Interval(*each)
    return derived


def _within_one(
    made: Mapping[str, Interval],
    pooled: Pooled,
    records: Sequence[RequestRecord],
    options: MetricOptions,
    alpha: float,
) -> dict[str, Interval]:
    """Intervals from the noise within a single repeat."""
    found = _bootstrap_latencies(pooled, options, alpha)
    found.update(_bootstrap_ratios(pooled.completed, options.seed, alpha))
    if options.closed:
        relative = _closed_rates(pooled.completed, options.seed, alpha)
    else:
        relative = _batch_means(records, options, alpha)
    for of, widths in relative.items():
        for name in (of, of.removeprefix("steady_")):
            if name in made:
                found[name] = (made[name].value * widths[0], made[name].value * widths[1])
    if "request_goodput" in made and "steady_request_throughput" in relative:
        low, high = relative["steady_request_throughput"]
        value = made["request_goodput"].value
        found["request_goodput"] = (value * low, value * high)
    return {
        name: _holding(made[name].value, low, high)
        for name, (low, high) in found.items()
        if name in made
    }


def _holding(value: float, low: float, high: float) -> Interval:
    """The bounds, widened to hold the value. None of our metrics can be negative."""
    return Interval(value, float(max(min(low, value), min(value, 0.0))), float(max(high, value)))


Bounds = dict[str, tuple[float, float]]


def _bootstrap_latencies(pooled: Pooled, options: MetricOptions, alpha: float) -> Bounds:
    """Percentile bootstrap; whole requests are drawn, as the gaps of one request are alike."""
    bounds: Bounds = {}
    count = len(pooled.completed)
    percentiles = options.all_percentiles()
    for what, sample in pooled.samples.items():
        rng = np.random.default_rng([options.seed, 0])
        draws = DRAWS if len(sample.values) < MANY else DRAWS // 4
        order = np.argsort(sample.values, kind="stable")
        values, owners = sample.values[order], sample.owners[order]
        weights = np.ones(1) if sample.weights is None else sample.weights[order]
        rows: dict[str, list[float]] = {}
        for _ in range(draws):
            times_drawn = np.bincount(rng.integers(0, count, count), minlength=count)
            drawn: Array = times_drawn[owners].astype(np.float64) * weights
            if drawn.sum() > 0:
                for statistic, value in _describe(values, drawn, percentiles).items():
                    rows.setdefault(statistic, []).append(value)
        for statistic, found in rows.items():
            low, high = np.quantile(found, [alpha / 2, 1 - alpha / 2])
            bounds[latency(statistic, what)] = (float(low), float(high))
    return bounds


def _describe(values: Array, weights: Array, percentiles: Sequence[float]) -> dict[str, float]:
    """`statistics.describe` of a sample that is sorted already."""
    made = Sorted(values, weights, np.cumsum(weights))
    total = float(weights.sum())
    mean = float(values @ weights) / total
    result = {"mean": mean, "median": percentile(made, 50.0)}
    result["std"] = float(np.sqrt(((values - mean) ** 2) @ weights / total))
    result.update({percentile_name(p): percentile(made, p) for p in percentiles})
    return result


def _batch_means(records: Sequence[RequestRecord], options: MetricOptions, alpha: float) -> Bounds:
    """Bounds of throughput relative to its value, from ten slices of the steady window.

    Of the whole pass where there is no window; its filling and draining then widen them.
    """
    window = find_window(records, options)
    end = max((r.ended_s for r in records), default=0.0)
    start, end = (0.0, end) if window is None else window
    if end <= start:
        return {}
    bounds: Bounds = {}
    slices = Slices(records, np.linspace(start, end, SLICES + 1).tolist())
    for name, rates in slices.rates().items():
        if rates is not None and rates.mean() > 0:
            half = _half_width(rates, alpha) / float(rates.mean())
            bounds[name] = (1 - half, 1 + half)
    return bounds


# Sums per request whose quotient is a metric: numerator, denominator; None: not known.
Part = Callable[[RequestRecord], float | None]
RATIOS: dict[str, tuple[Part, Part]] = {
    "mean_input_tokens": (lambda r: r.input_tokens, lambda r: 1),
    "mean_output_tokens": (lambda r: r.output_tokens, lambda r: 1),
    "tokens_per_chunk": (lambda r: r.output_tokens, lambda r: len(r.token_times_s)),
    "cached_token_share": (lambda r: r.cached_tokens, lambda r: r.input_tokens),
}


def _bootstrap_ratios(completed: Sequence[RequestRecord], seed: int, alpha: float) -> Bounds:
    bounds: Bounds = {}
    for name, (above, below) in RATIOS.items():
        found = _bootstrap_ratio(completed, above, below, seed, alpha)
        if found is not None:
            bounds[name] = found
    return bounds


def _stay(record: RequestRecord) -> float:
    return record.ended_s - record.sent_s


def _all_tokens(record: RequestRecord) -> float | None:
    if record.output_tokens is None or record.input_tokens is None:
        return None
    return record.output_tokens + record.input_tokens


# Work per second in flight, by the metric it is proportional to in closed loop.
CLOSED_RATES: dict[str, tuple[Part, Part]] = {
    "steady_request_throughput": (lambda r: 1, _stay),
    "steady_output_throughput": (lambda r: r.output_tokens, _stay),
    "steady_total_token_throughput": (_all_tokens, _stay),
}


def _closed_rates(completed: Sequence[RequestRecord], seed: int, alpha: float) -> Bounds:
    """Bounds of throughput relative to its value."""
    bounds: Bounds = {}
    for name, (above, below) in CLOSED_RATES.items():
        found = _bootstrap_ratio(completed, above, below, seed, alpha)
        pairs = [(above(r), below(r)) for r in completed]
        known = np.array([p for p in pairs if None not in p], dtype=np.float64)
        if found is not None:
            value = known[:, 0].sum() / known[:, 1].sum()
            bounds[name] = (found[0] / value, found[1] / value)
    return bounds


def _bootstrap_ratio(
    completed: Sequence[RequestRecord], above: Part, below: Part, seed: int, alpha: float
) -> tuple[float, float] | None:
    """Percentile bootstrap of a quotient of sums over requests; None where it is not known."""
    pairs = [(above(r), below(r)) for r in completed]
    known = np.array([p for p in pairs if None not in p], dtype=np.float64)
    if not len(known) or known[:, 0].sum() <= 0:
        return None
    rng = np.random.default_rng([seed, 1])
    draws = [known[rng.integers(0, len(known), len(known))].sum(axis=0) for _ in range(DRAWS)]
    sums = np.array(draws)
    sums = sums[sums[:, 1] > 0]
    if not len(sums):
        return None
    low, high = np.quantile(sums[:, 0] / sums[:, 1], [alpha / 2, 1 - alpha / 2])
    return float(low), float(high)
