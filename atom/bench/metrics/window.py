"""The steady part of a run: after the start-up burst, before the drain.

Closed loop with C jobs in flight. Throughput over the whole run is too low, because the last C jobs
drain at falling concurrency. The drain begins at the job end that let the last job start, E_K: the
window's end. The start-up burst (C requests at once) is over when C jobs have ended. From there on,
and up to C job ends later, the window may start: it takes the job end at which the requests in
flight had got as far, in tokens, as those at E_K. The prompts read and the tokens made within it
then stand in the same proportion as in the long run, also where requests run in step (equal
lengths) and throughput comes in waves.

Open loop. The server is empty at first and fills within about one request's time; it drains after
the last arrival. The window reaches from the 95th percentile of the end-to-end latency to the last
arrival.

A window never decides which requests count for latencies: those are all completed ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from atom.bench.metrics.samples import CANCELLED, last_token_s, token_weights
from atom.bench.metrics.statistics import Array
from atom.bench.types import RequestRecord

# An open window shorter than this share of the arrivals' time says nothing about a steady state.
MIN_OPEN_SHARE = 0.25
MIN_ENDS = 5


class Window(NamedTuple):
    """(start, end] on the run's clock, in seconds."""

    start: float
    end: float

    @property
    def length(self) -> float:
        return self.end - self.start


class Jobs(NamedTuple):
    """One entry per job, in order of `started`."""

    started: Array  # when its first turn was meant to start
    ended: Array  # the end of its last turn; infinite where it was given up


def jobs_of(records: Sequence[RequestRecord]) -> Jobs:
    started: dict[int, float] = {}
    ended: dict[int, float] = {}
    for record in records:
        started[record.index] = min(started.get(record.index, np.inf), record.intended_s)
        end = np.inf if record.error == CANCELLED else record.ended_s
        ended[record.index] = max(ended.get(record.index, -np.inf), end)
    order = sorted(started, key=lambda index: started[index])
    return Jobs(np.array([started[i] for i in order]), np.array([ended[i] for i in order]))


def closed_window(records: Sequence[RequestRecord]) -> Window | None:
    """From the end of the start-up burst to the begin of the drain; None: there is no between."""
    if not records:
        return None
    jobs = jobs_of(records)
    ends = np.sort(jobs.ended[np.isfinite(jobs.ended)])
    if not len(ends):
        return None
    burst = _most_at_once(jobs.started, ends)
    let_start = int(np.count_nonzero(ends <= jobs.started[-1] + 1e-9))  # K
    last = min(2 * burst, let_start - burst)  # a generation at least remains
    if last < burst:
        return None
    candidates = ends[burst - 1 : last]
    end = float(ends[let_start - 1])
    done, under_way = _progress(records, np.append(candidates, end))
    made = (done + under_way)[-1] - (done + under_way)[:-1]
    unlike = np.abs(under_way[:-1] - under_way[-1]) / np.maximum(made, 1e-9)
    best = int(np.argmin(np.round(unlike, 4)))  # the first of equals: the longest window
    start = float(candidates[best])
    return Window(start, end) if end > start else None


def _most_at_once(started: Array, ends: Array) -> int:
    """Jobs in flight at most; one that starts as another ends takes its place."""
    at_start = np.searchsorted(started, started, "right") - np.searchsorted(ends, started, "right")
    return max(int(at_start.max()), 1)


def _progress(records: Sequence[RequestRecord], moments: Array) -> tuple[Array, Array]:
    """Tokens of the requests that had ended at each moment, and so far of those in flight."""
    times: list[float] = []
    weights: list[Array] = []
    ended: list[float] = []
    whole: list[float] = []
    for record in records:
        if record.error not in (None, CANCELLED) or not record.token_times_s:
            continue
        of = token_weights(record)
        of = np.ones(len(record.token_times_s)) if of is None else of
        times.extend(record.token_times_s)
        weights.append(of)
        if record.error is None:
            ended.append(record.ended_s)
            whole.append(float(of.sum()))
    if not times:
        return np.zeros(len(moments)), np.zeros(len(moments))
    all_made = _until(np.array(times), np.concatenate(weights), moments)
    done = _until(np.array(ended), np.array(whole), moments)
    return done, all_made - done


def _until(times: Array, weights: Array, moments: Array) -> Array:
    """Running sum of the weights at each moment, inclusive."""
    order = np.argsort(times, kind="stable")
    running = np.concatenate([[0.0], np.cumsum(weights[order])])
    found: Array = running[np.searchsorted(times[order], moments, side="right")]
    return found


def open_window(records: Sequence[RequestRecord]) -> Window | None:
    """From the server's filling to the last arrival; None: the run is too short to have one."""
    done = [r for r in records if r.error is None]
    if len(done) < MIN_ENDS:
        return None
    arrivals = np.array([r.intended_s for r in records if r.turn == 0])
    last = float(arrivals.max())
    start = float(np.percentile([last_token_s(r) - r.intended_s for r in done], 95))
    inside = sum(start < r.ended_s <= last for r in done)
    if last - start < MIN_OPEN_SHARE * last or inside < MIN_ENDS:
        return None
    return Window(start, last)


def _sent(records: Sequence[RequestRecord]) -> Array:
    """When each was in flight from; a request that never got out has no `sent_s` of its own."""
    return np.array([max(r.sent_s, r.dispatched_s) for r in records])


def flight(records: Sequence[RequestRecord]) -> tuple[Array, Array]:
    """Requests in flight as a step function: (times, count from that time on)."""
    sent = _sent(records)
    ended = np.array([r.ended_s for r in records])
    times = np.concatenate([sent, ended])
    steps = np.concatenate([np.ones(len(sent)), -np.ones(len(ended))])
    order = np.lexsort((steps, times))  # at one moment, ends come before starts
    return times[order], np.cumsum(steps[order])


def mean_flight(records: Sequence[RequestRecord], start: float, end: float) -> float:
    """Time mean of the requests in flight over (start, end]."""
    assert end > start
    sent = np.clip(_sent(records), start, end)
    ended = np.clip([r.ended_s for r in records], start, end)
    return float((ended - sent).sum() / (end - start))


def tokens_in(records: Sequence[RequestRecord], edges: Array) -> Array | None:
    """Output tokens by the time of their chunk, between consecutive edges (open, closed].

    Tokens of failed requests are no output. None: some request's tokens are not known.
    """
    times: list[float] = []
    weights: list[Array] = []
    typical: float | None = None
    for record in records:
        if not record.token_times_s or record.error not in (None, CANCELLED):
            continue
        of = token_weights(record)
        if of is None and record.error == CANCELLED:
            typical = typical or _tokens_per_chunk(records)
            of = None if typical is None else np.full(len(record.token_times_s), typical)
        if of is None:
            return None
        times.extend(record.token_times_s)
        weights.append(of)
    if not times:
        return np.zeros(len(edges) - 1)
    return _between(np.array(times), np.concatenate(weights), edges)


def _tokens_per_chunk(records: Sequence[RequestRecord]) -> float | None:
    """What the chunks of a request given up before its usage came stand for: the others' mean."""
    done = [r for r in records if r.error is None and r.output_tokens is not None]
    chunks = sum(len(r.token_times_s) for r in done)
    return sum(r.output_tokens or 0 for r in done) / chunks if chunks else None


def _between(times: Array, weights: Array, edges: Array) -> Array:
    """Sums of weights with times in (edges[i], edges[i + 1]]."""
    slots = np.searchsorted(edges, times, side="left") - 1
    inside = (slots >= 0) & (slots < len(edges) - 1)
    sums: Array = np.bincount(
        slots[inside], weights=weights[inside], minlength=len(edges) - 1
    ).astype(np.float64)
    return sums


def count_in(times: Sequence[float], edges: Array, weights: Sequence[float] | None = None) -> Array:
    """How many moments (or how much weight) lie between consecutive edges (open, closed]."""
    at = np.asarray(times, dtype=np.float64)
    by = np.ones(len(at)) if weights is None else np.asarray(weights, dtype=np.float64)
    return _between(at, by, edges)
