"""The verdict: could the client have distorted what it measured?

Each limit has its reason beside it. What is measured decides how much lag matters: 5 % of the gap
between chunks is about what a regression gate can see, so lag below it is not held against a run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from atom.bench.client.wire import Final
from atom.bench.types import ClientHealth, RequestRecord

# A loop that is busy (or waits for a CPU) more than 70 % of the time has queues of its own: an
# M/D/1 queue then waits 1.2 service times on average, and bursts reach milliseconds.
MAX_BUSY_SHARE = 0.70
# Below 2 ms, lag is scheduling noise of an idle Linux machine.
MIN_LAG_MS = 2.0
MAX_LAG_SHARE = 0.05
# Open loop: arrivals this late are another load than the one asked for.
MAX_SEND_DELAY_MS = 10.0
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


def judge(
    finals: Sequence[Final],
    records: Sequence[RequestRecord],
    machine_cpu_share: float,
    open_loop: bool,
) -> ClientHealth:
    """Health over the measured part, with the verdict and its one sentence."""
    lags = [lag * 1000 for final in finals for lag in final.lags_s]
    delays = [delay * 1000 for final in finals for delay in final.send_delays_s]
    health = ClientHealth(
        workers=len(finals),
        cpu_share=[round(final.cpu_s / final.elapsed_s, 4) for final in finals],
        lag_p50_ms=percentile(lags, 50),
        lag_p99_ms=percentile(lags, 99),
        lag_max_ms=max(lags, default=0.0),
        send_delay_p99_ms=percentile(delays, 99),
        chunks_per_s=sum(final.chunks / final.elapsed_s for final in finals),
        machine_cpu_share=machine_cpu_share,
    )
    busy = max(((f.cpu_s + f.waited_s) / f.elapsed_s for f in finals), default=0.0)
    gap = median_gap_ms(records)
    limit = max(MIN_LAG_MS, MAX_LAG_SHARE * (gap or 0.0))
    reasons = _reasons(health, finals, busy, limit, gap, open_loop)
    health.bound = bool(reasons)
    health.reason = "; ".join(reasons) or (
        f"busiest worker {busy:.0%} of a core (limit {MAX_BUSY_SHARE:.0%}), "
        f"lag p99 {health.lag_p99_ms:.1f} ms (limit {limit:.1f})"
    )
    return health


def _reasons(
    health: ClientHealth,
    finals: Sequence[Final],
    busy: float,
    limit_ms: float,
    gap_ms: float | None,
    open_loop: bool,
) -> list[str]:
    reasons = []
    if busy > MAX_BUSY_SHARE:
        waited = max(f.waited_s / f.elapsed_s for f in finals)
        reasons.append(
            f"a worker was busy {busy:.0%} of the time (limit {MAX_BUSY_SHARE:.0%}), "
            f"{waited:.0%} waiting for a CPU"
        )
    if health.lag_p99_ms > limit_ms:
        against = f", 5% of the {gap_ms:.0f} ms between chunks" if limit_ms > MIN_LAG_MS else ""
        reasons.append(
            f"event-loop lag p99 {health.lag_p99_ms:.1f} ms (limit {limit_ms:.1f}{against})"
        )
    if open_loop and health.send_delay_p99_ms > max(MAX_SEND_DELAY_MS, limit_ms):
        reasons.append(
            f"requests began {health.send_delay_p99_ms:.0f} ms (p99) after their arrival "
            f"(limit {max(MAX_SEND_DELAY_MS, limit_ms):.0f})"
        )
    if reasons and health.machine_cpu_share > 0.9:
        reasons.append(f"the machine's CPUs were {health.machine_cpu_share:.0%} busy")
    return reasons
