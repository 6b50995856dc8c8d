"""Runs of a server whose true speed and noise are known, to see what verdicts are worth.

The model, per repeat: a server's speed is 1 x (how fast this start is) x (a drift over the repeats)
x (what this repeat met); a repeat's workload has a weight of its own, the same for the same seed.
Each request's TTFT and TPOT are lognormal around what that speed gives, and throughput follows from
them as in a closed loop. `cv` is the deviation of one repeat's speed as a share; `start_share` is
how much of its variance changes only from start to start, so that repeats do not average it out.
"""

from __future__ import annotations

import math
from datetime import datetime, timedelta, timezone

import numpy as np

from atom.bench.types import ClientHealth, Interval, RepeatResult, RunResult

FIRST_NIGHT = datetime(2026, 9, 1, 2, 0, tzinfo=timezone.utc)
HEALTH = ClientHealth(
    workers=1, cpu_share=[0.1], lag_p50_ms=0.1, lag_p99_ms=0.4, lag_max_ms=1.0,
    send_delay_p99_ms=0.2, chunks_per_s=800.0, machine_cpu_share=0.3,
)  # fmt: skip

TTFT_MS, TPOT_MS = 80.0, 20.0
TTFT_SPREAD, TPOT_SPREAD = 0.35, 0.03  # of the logarithm, between requests
OUTPUT_TOKENS, CONCURRENCY = 128, 16
WORKLOAD_SPREAD = 0.004  # of a repeat's work, by its seed: lengths are exact, arrivals none
DRIFT = 0.002  # of the speed from the first repeat to the last, either way


def noisy_run(
    seed: int,
    *,
    speed: float = 1.0,
    cv: float = 0.015,
    start_share: float = 0.1,
    night: int = 0,
    repeats: int = 5,
    requests: int = 80,
    fingerprint: str = "f" * 12,
    workload_seed: int = 0,
    tpot: float = 1.0,
    status: str = "ok",
    commit: str = "",
) -> RunResult:
    """A run at `speed` (0.94: 6 % slower) in the given night; `tpot` stretches TPOT alone."""
    rng = np.random.default_rng([seed, night])
    start = rng.normal(0.0, cv * math.sqrt(start_share))
    drift = rng.normal(0.0, DRIFT)
    at = FIRST_NIGHT + timedelta(days=night)
    measured = []
    for r in range(repeats):
        lasting = start + drift * (r / max(1, repeats - 1) - 0.5)
        now = speed * math.exp(lasting + rng.normal(0.0, cv * math.sqrt(1 - start_share)))
        measured.append(_repeat(rng, now, workload_seed + r, requests, tpot))
    return RunResult(
        run_id=f"{at:%Y%m%d-%H%M%S}-{seed % 16**6:06x}",
        kind="bench",
        name="synthetic",
        model="org/model",
        load={"mode": "closed", "concurrency": CONCURRENCY, "num_requests": requests},
        workload={"dataset": "random", "input_len": 128, "output_len": OUTPUT_TOKENS},
        provenance={"server": {"kind": "atom", "commit": commit or f"{night:07x}"}},
        fingerprint=fingerprint,
        repeats=[
            RepeatResult(
                seed=workload_seed + r, started_at=(at + timedelta(minutes=r)).isoformat(),
                duration_s=60.0, metrics=metrics, errors={}, health=HEALTH, window_s=(2.0, 58.0),
            )
            for r, metrics in enumerate(measured)
        ],
        metrics={name: _mean([m[name] for m in measured]) for name in measured[0]},
        legacy={},
        status=status,
    )  # fmt: skip


def _repeat(
    rng: np.random.Generator, speed: float, workload_seed: int, requests: int, tpot: float
) -> dict[str, float]:
    weight = math.exp(np.random.default_rng(workload_seed).normal(0.0, WORKLOAD_SPREAD)) / speed
    ttfts = TTFT_MS * weight * np.exp(rng.normal(0.0, TTFT_SPREAD, requests))
    tpots = TPOT_MS * tpot * weight * np.exp(rng.normal(0.0, TPOT_SPREAD, requests))
    e2els = ttfts + tpots * (OUTPUT_TOKENS - 1)
    rate = CONCURRENCY / (float(e2els.mean()) / 1000)
    found = {
        "request_throughput": rate * 0.93,
        "output_throughput": rate * OUTPUT_TOKENS * 0.93,  # with ramp and drain
        "total_token_throughput": rate * 2 * OUTPUT_TOKENS * 0.93,
        "steady_output_throughput": rate * OUTPUT_TOKENS,
        "steady_total_token_throughput": rate * 2 * OUTPUT_TOKENS,
        "error_rate": 0.0,
        "completed": float(requests),
        "failed": 0.0,
    }
    for what, values in (("ttft", ttfts), ("tpot", tpots), ("e2el", e2els)):
        found[f"mean_{what}_ms"] = float(values.mean())
        found[f"median_{what}_ms"] = float(np.median(values))
        found[f"p99_{what}_ms"] = float(np.percentile(values, 99))
    return found


def _mean(values: list[float]) -> Interval:
    return Interval(sum(values) / len(values), min(values), max(values))
