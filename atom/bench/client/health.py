"""The verdict: could the client have distorted what it measured?

Each limit has its reason beside it; 5 % of a figure is about what a regression gate can see, so
what distorts less is not held against a run. What lag of the event loop does depends on who takes
the moments of arrival:

the client   (https, or no SO_TIMESTAMPNS) every moment is late by it: lag counts against the gap
             between chunks, and so does time spent waiting for a CPU
the kernel   a moment is right however late its bytes are read, unless the next chunk of the same
             stream has come by then: both share one read and the later one's moment. Lag counts
             once it is as long as such gaps are; waiting for a CPU only by the lag that it causes

In both cases a late loop sends late. A latency of the closed loop counts from the sending, which
leaves it right but its place empty meanwhile, and rates too low; one of the open loop counts from
the arrival that was asked for, so the delay is in TTFT and end-to-end latency.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from atom.bench.client.meter import TICK_S
from atom.bench.client.wire import Final
from atom.bench.types import ClientHealth, RequestRecord

# A loop that is busy (or waits for a CPU) more than 70 % of the time has queues of its own: an
# M/D/1 queue then waits 1.2 service times on average, and bursts reach milliseconds.
MAX_BUSY_SHARE = 0.70
# Below 2 ms, lag is scheduling noise of an idle Linux machine.
MIN_LAG_MS = 2.0
MAX_LAG_SHARE = 0.05
# Two chunks can share a read if the loop stood still for their gap. Half of the median one leaves
# room for those that are shorter than it.
MAX_KERNEL_LAG_SHARE = 0.5
# Some reads have no usable stamp (the wall clock was set; a packet overtook another).
MIN_KERNEL_SHARE = 0.99
# Open loop: p99 of the delay against the median TTFT that it is a part of.
MAX_SEND_DELAY_SHARE = 0.05
# Closed loop: the rates that a client loses so are a bias that no repeat averages out; less than
# half of what a gate can see.
MAX_EMPTY_SHARE = 0.02
MAX_RAMP_SHARE = 0.10
_SAMPLE = 200  # records whose gaps are looked at


def percentile(values: Sequence[float], percent: float) -> float:
    """By linear interpolation (Hyndman and Fan's type 7); 0 for no values."""
    if not values:
        return 0.0
    ordered = sorted(values)
    position = (len(ordered) - 1) * percent / 100
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def median_gap_ms(records: Sequence[RequestRecord]) -> float | None:
    """Between chunks, over an even sample of the records."""
    step = max(1, len(records) // _SAMPLE)
    gaps = [b - a for r in records[::step] for a, b in pairwise(r.token_times_s)]
    return percentile(gaps, 50) * 1000 if gaps else None


class _Seen(NamedTuple):
    """What the limits are held against."""

    kernel: bool  # the moments are its
    busy: float  # of the busiest worker
    waited: float
    gap_ms: float | None
    ttft_ms: float  # median, from the arrival that was intended
    empty: float  # closed loop: share of the time that places waited for the client

    @property
    def lag_limit_ms(self) -> float:
        share = MAX_KERNEL_LAG_SHARE if self.kernel else MAX_LAG_SHARE
        return max(MIN_LAG_MS, share * (self.gap_ms or 0.0))

    @property
    def delay_limit_ms(self) -> float:
        return max(MIN_LAG_MS, MAX_SEND_DELAY_SHARE * self.ttft_ms)


def judge(
    finals: Sequence[Final],
    records: Sequence[RequestRecord],
    machine_cpu_share: float,
    open_loop: bool,
) -> ClientHealth:
    """Health over the measured part, with the verdict and its one sentence."""
    ramp = 0 if open_loop else _ramp_ticks(finals, records)
    lags = [lag * 1000 for final in finals for lag in final.lags_s[ramp:]]
    delays = [delay * 1000 for final in finals for delay in final.send_delays_s]
    seen = _look(finals, records, open_loop)
    health = ClientHealth(
        workers=len(finals),
        cpu_share=[round(final.cpu_s / final.elapsed_s, 4) for final in finals],
        lag_p50_ms=percentile(lags, 50),
        lag_p99_ms=percentile(lags, 99),
        lag_max_ms=max(lags, default=0.0),
        send_delay_p99_ms=percentile(delays, 99),
        chunks_per_s=sum(final.chunks / final.elapsed_s for final in finals),
        machine_cpu_share=machine_cpu_share,
        arrival_clock="kernel" if seen.kernel else "client",
    )
    reasons = _reasons(health, seen, open_loop)
    health.bound = bool(reasons)
    health.reason = "; ".join(reasons) or (
        f"busiest worker {seen.busy:.0%} of a core (limit {MAX_BUSY_SHARE:.0%}), "
        f"lag p99 {health.lag_p99_ms:.1f} ms (limit {seen.lag_limit_ms:.1f})"
    )
    health.reason += f"; arrival times: {health.arrival_clock}"
    return health


def _ramp_ticks(finals: Sequence[Final], records: Sequence[RequestRecord]) -> int:
    """Ticks of a closed loop's start: that all places begin at once is the load's doing.

    None where it takes longer than a tenth of the run: then sending is what the run consists of.
    """
    ramp_s = max((r.dispatched_s for r in records if r.intended_s == 0), default=0.0)
    if ramp_s > MAX_RAMP_SHARE * max((f.elapsed_s for f in finals), default=0.0):
        return 0
    return math.ceil(ramp_s / TICK_S)


def _look(finals: Sequence[Final], records: Sequence[RequestRecord], open_loop: bool) -> _Seen:
    stamped = sum(f.kernel_reads for f in finals)
    reads = stamped + sum(f.client_reads for f in finals)
    kernel = stamped > 0 and stamped >= MIN_KERNEL_SHARE * reads
    waits = [0.0 if kernel else f.waited_s / f.elapsed_s for f in finals]
    ttfts = [r.token_times_s[0] - r.intended_s for r in records if r.token_times_s]
    # Not those that all begin at once at 0: the ramp is the load's, and reports name it.
    again = [r for r in records if r.intended_s > 0]
    delayed = sum(r.dispatched_s - r.intended_s for r in again)
    taken = sum(r.ended_s - r.intended_s for r in again)
    return _Seen(
        kernel=kernel,
        busy=max(
            (f.cpu_s / f.elapsed_s + wait for f, wait in zip(finals, waits, strict=True)),
            default=0.0,
        ),
        waited=max(waits, default=0.0),
        gap_ms=median_gap_ms(records),
        ttft_ms=percentile(ttfts, 50) * 1000,
        empty=delayed / taken if taken > 0 and not open_loop else 0.0,
    )


def _reasons(health: ClientHealth, seen: _Seen, open_loop: bool) -> list[str]:
    reasons = []
    if seen.busy > MAX_BUSY_SHARE:
        waiting = "" if seen.kernel else f", {seen.waited:.0%} waiting for a CPU"
        reasons.append(
            f"a worker was busy {seen.busy:.0%} of the time (limit {MAX_BUSY_SHARE:.0%}){waiting}"
        )
    limit = seen.lag_limit_ms
    if health.lag_p99_ms > limit:
        share = MAX_KERNEL_LAG_SHARE if seen.kernel else MAX_LAG_SHARE
        against = f", {share:.0%} of the {seen.gap_ms:.0f} ms between chunks"
        reasons.append(
            f"event-loop lag p99 {health.lag_p99_ms:.1f} ms "
            f"(limit {limit:.1f}{against if limit > MIN_LAG_MS else ''})"
        )
    if open_loop and health.send_delay_p99_ms > seen.delay_limit_ms:
        reasons.append(
            f"requests began {health.send_delay_p99_ms:.0f} ms (p99) after their arrival "
            f"(limit {seen.delay_limit_ms:.0f})"
        )
    if seen.empty > MAX_EMPTY_SHARE:
        reasons.append(
            f"places stood empty {seen.empty:.0%} of the time for requests that began late "
            f"(limit {MAX_EMPTY_SHARE:.0%})"
        )
    if reasons and health.machine_cpu_share > 0.9:
        reasons.append(f"the machine's CPUs were {health.machine_cpu_share:.0%} busy")
    return reasons
