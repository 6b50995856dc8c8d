"""How often comparison, gate and change points are right, on runs whose truth is known.

    python benchmarks/regression_rates.py [--trials 400] [--only compare gate trend] [--json FILE]

The runs are synthetic (tests/bench/noisy_runs.py says how: lognormal latencies of 80 requests per
repeat, five repeats, a drift over them, a workload of its own for each run). "CV" is the deviation
of one repeat's speed; "starts" is the share of its variance that changes only from start to start
of the server, which repeats do not average out. Rates are shares of trials with their 95 % interval
(Wilson). Beside the gate stands the usual rule: 5 % below the previous run. One core, about ten
minutes with 400 trials; --trials 50 shows the shape in one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "bench"))

from noisy_runs import noisy_run

from atom.bench.compare import Point, Series, changepoints, compare, gate
from atom.bench.quantiles import wilson
from atom.bench.types import RunResult

NIGHTS = 60
BEFORE = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--trials", type=int, default=400)
    parser.add_argument("--only", nargs="+", choices=list(TABLES), default=list(TABLES))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    everything: dict[str, list[dict[str, Any]]] = {}
    for name in options.only:
        print(f"\n{name}\n")
        begun = time.perf_counter()
        everything[name] = []
        for row in TABLES[name](options.trials):
            if not everything[name]:
                print("| " + " | ".join(row) + " |")
                print("|" + "---|" * len(row))
            everything[name].append(row)
            print("| " + " | ".join(map(_cell, row.values())) + " |", flush=True)
        print(f"\n{time.perf_counter() - begun:.0f} s")
    if options.json:
        options.json.write_text(json.dumps({"trials": options.trials, **everything}, indent=2))


def _cell(value: Any) -> str:
    if isinstance(value, list):
        share, low, high = value
        return f"{share:.3f} ({low:.3f} to {high:.3f})"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _share(hits: int, trials: int) -> list[float]:
    return [hits / trials, *wilson(hits / trials, trials, 0.95)]


def comparisons(trials: int) -> Iterator[dict[str, Any]]:
    """Two runs: the same server, one that is 6 % slower, and one that is 4 % slower."""
    for known in (False, True):
        for starts in (0.1, 0.25, 0.5):
            for cv in (0.01, 0.015, 0.02, 0.03):
                row: dict[str, Any] = {
                    "CV %": 100 * cv, "starts": starts, "history": BEFORE if known else 0,
                }  # fmt: skip
                for speed in (1.0, 0.94, 0.96):
                    found = _verdicts(trials, speed, cv, starts, known)
                    if speed == 1.0:
                        row["identical: same"] = _share(found["same"], trials)
                        row["worse or better"] = _share(found["worse"] + found["better"], trials)
                    else:
                        row[f"-{1 - speed:.0%}: worse"] = _share(found["worse"], trials)
                    if speed == 0.94:
                        row["-6%: same"] = _share(found["same"], trials)
                yield row


def _verdicts(trials: int, speed: float, cv: float, starts: float, known: bool) -> Counter[str]:
    found: Counter[str] = Counter()
    for trial in range(trials):

        def run(number: int, at: float = 1.0, trial: int = trial) -> RunResult:
            seed = 20 * trial + number
            return noisy_run(
                seed, night=number, cv=cv, start_share=starts, speed=at, workload_seed=10 * seed
            )

        history = [run(k) for k in range(BEFORE)] if known else []
        found[compare(run(10), run(11, speed), history=history).verdict] += 1
    return found


def gates(trials: int) -> Iterator[dict[str, Any]]:
    """Nights without and with a loss, each judged by the gate and by the usual rule."""
    for repeats in (1, 3, 5):
        for starts in (0.1, 0.5):
            for cv in (0.01, 0.02, 0.03):
                model = {"cv": cv, "start_share": starts, "repeats": repeats}
                series = max(2, trials // 10)
                alarms, usual = _false_alarms(series, model)
                row: dict[str, Any] = {
                    "repeats": repeats, "starts": starts, "CV %": 100 * cv,
                    f"false in {NIGHTS} nights": alarms / series, "usual rule": usual / series,
                }  # fmt: skip
                for loss in (0.06, 0.08, 0.10):
                    first, third = _detected(trials, model, 1 - loss)
                    row[f"-{loss:.0%}: night 1"] = first / trials
                    row[f"-{loss:.0%}: by night 3"] = third / trials
                yield row


def _false_alarms(series: int, model: dict[str, Any]) -> tuple[int, int]:
    alarms = usual = 0
    for s in range(series):
        runs = [noisy_run(s, night=i, **model) for i in range(BEFORE + NIGHTS)]
        for i in range(BEFORE, len(runs)):
            alarms += _regressed(runs[i], runs[i - BEFORE : i], s, i, model, 1.0)
            usual += _median(runs[i]) < 0.95 * _median(runs[i - 1])
    return alarms, usual


def _detected(trials: int, model: dict[str, Any], speed: float) -> tuple[int, int]:
    first = third = 0
    for trial in range(trials):
        runs = [noisy_run(trial, night=i, **model) for i in range(BEFORE)]
        for night in range(BEFORE, BEFORE + 3):
            run = noisy_run(trial, night=night, speed=speed, **model)
            if _regressed(run, runs, trial, night, model, speed):
                first += night == BEFORE
                third += 1
                break
            runs.append(run)
    return first, third


def _regressed(
    run: RunResult, runs: list[RunResult], seed: int, night: int, model: dict[str, Any], at: float
) -> bool:
    return gate(
        run, runs, lambda: noisy_run(seed + 10**6, night=night, speed=at, **model)
    ).regressed


def _median(run: RunResult) -> float:
    values = [repeat.metrics["output_throughput"] or 0.0 for repeat in run.repeats]
    return statistics.median(values)


def trends(trials: int) -> Iterator[dict[str, Any]]:
    """A series of nights: false changes without one, and how soon a change is found."""
    for cv in (0.01, 0.02, 0.03):
        for shift in (0.0, -0.03, -0.05, -0.08):
            row: dict[str, Any] = {"CV %": 100 * cv, "change": f"{shift:+.0%}"}
            whole = [_changes(s, cv, shift, NIGHTS) for s in range(trials)]
            wrong = sum(sum(not _near(c) or not shift for c in found) for found in whole)
            row[f"false in {NIGHTS} nights"] = wrong / trials
            for after in (2, 3, 4, 6, 10):
                hits = sum(
                    any(map(_near, _changes(s, cv, shift, FIRST + after))) for s in range(trials)
                )
                row[f"found after {after}"] = hits / trials if shift else ""
            yield row


FIRST = 45  # the night of the change


def _changes(seed: int, cv: float, shift: float, nights: int) -> list[int]:
    values = 1000.0 * np.exp(np.random.default_rng(seed).normal(0.0, cv, nights))
    values[FIRST:] *= 1 + shift
    points = (Point(f"{i:06d}", f"{i:06d}", "", float(v)) for i, v in enumerate(values))
    return [c.index for c in changepoints(Series("output_throughput", tuple(points)))]


def _near(index: int) -> bool:
    return abs(index - FIRST) <= 2


TABLES = {"compare": comparisons, "gate": gates, "trend": trends}


if __name__ == "__main__":
    main()
