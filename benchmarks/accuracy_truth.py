"""What a mocked run really was: metrics from the mock server's own record of what it sent when.

Definitions as in `atom.bench.metrics`, computed anew here from the truth, so that neither checks
itself: with a the arrival of a request, c_1 .. c_m its chunks, w_j their tokens, n all of them,

    TTFT = c_1 - a    E2EL = c_m - a    TPOT = (c_m - c_1) / (n - 1)
    ITL  = (c_j - c_j-1) / w_j for j > 1, counted w_j times    chunk gap = c_j - c_j-1

over the requests that the mock answered whole. Percentiles interpolate linearly.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

STATISTICS = ("mean", "median", "p99")
LATENCIES = ("ttft", "tpot", "itl", "chunk_gap", "e2el")
COUNTS = ("completed", "failed", "total_output_tokens")
RATES = ("output_throughput",)

Truth = dict[str, Any]


def read(path: Path) -> list[Truth]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def describe(values: Sequence[float]) -> dict[str, float]:
    array = np.asarray(values, dtype=np.float64)
    return {
        "mean": float(array.mean()),
        "median": float(np.percentile(array, 50)),
        "p99": float(np.percentile(array, 99)),
    }


def metrics(truths: Sequence[Truth]) -> dict[str, float]:
    """By name; latencies in milliseconds."""
    good = [t for t in truths if t["outcome"] == "ok"]
    samples: dict[str, list[float]] = {name: [] for name in LATENCIES}
    for truth in good:
        chunks, counts = truth["chunk_s"], truth["chunk_tokens"]
        samples["ttft"].append(chunks[0] - truth["arrived_s"])
        samples["e2el"].append(chunks[-1] - truth["arrived_s"])
        if sum(counts) > 1:
            samples["tpot"].append((chunks[-1] - chunks[0]) / (sum(counts) - 1))
        for before, after, weight in zip(chunks, chunks[1:], counts[1:], strict=False):
            samples["chunk_gap"].append(after - before)
            samples["itl"] += [(after - before) / weight] * weight
    found: dict[str, float] = {}
    for name, values in samples.items():
        for statistic, value in describe(values).items():
            found[f"{statistic}_{name}_ms"] = value * 1e3
    tokens = sum(sum(t["chunk_tokens"]) for t in good)
    first, last = min(t["arrived_s"] for t in truths), max(t["ended_s"] for t in truths)
    found["completed"], found["failed"] = len(good), len(truths) - len(good)
    found["total_output_tokens"] = tokens
    found["output_throughput"] = tokens / (last - first)
    return found


def peak_concurrency(truths: Sequence[Truth]) -> int:
    """Requests in flight at the mock, at most: whether a tool made the load it was asked for."""
    moves = [(t["arrived_s"], 1) for t in truths] + [(t["ended_s"], -1) for t in truths]
    count = peak = 0
    for _, move in sorted(moves):
        count += move
        peak = max(peak, count)
    return peak


def lateness_ms(truths: Sequence[Truth], wanted: dict[str, Any]) -> dict[str, float]:
    """How late the mock itself was, against its timetable: streams without stalls only."""
    late: list[float] = []
    for truth in truths:
        for number, moment in enumerate(truth["chunk_s"]):
            due = wanted["ttft_ms"] / 1e3 + number * wanted["itl_ms"] / 1e3
            late.append((moment - truth["started_s"] - due) * 1e3)
    return {**describe(late), "max": max(late)} if late else {}


def within(name: str, measured: float, truth: float) -> bool:
    """1 ms + 1 % for latencies, 1 % for rates; counts are exact."""
    if name in COUNTS:
        return measured == truth
    allowance = 0.01 * abs(truth) + (0.0 if name in RATES else 1.0)
    return abs(measured - truth) <= allowance
