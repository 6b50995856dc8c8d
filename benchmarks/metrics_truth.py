"""How near the benchmark's figures come to a truth that is known, on simulated servers.

    python benchmarks/metrics_truth.py [--trials 100]

Three tables, in Markdown: the steady window against the rate of a long run, how often a 95 %
interval holds the truth, and the search for the highest load. Simulated time: the machine does not
matter, and equal arguments print equal tables.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "bench"))

import test_search as servers
from fake_load import Lengths, closed_loop, noisy_run, outcome

from atom.bench.metrics import MetricOptions, combine, summarize
from atom.bench.search import find_max

CLOSED = MetricOptions(closed=True)
LENGTHS: dict[str, Lengths] = {
    "100": lambda i, rng: 100,
    "80 to 100": lambda i, rng: rng.randint(80, 100),
    "1 to 100": lambda i, rng: rng.randint(1, 100),
}


def rates(concurrency: int, count: int, lengths: Lengths, seed: int) -> tuple[float, float]:
    records = closed_loop(concurrency, count, lengths, seed)
    metrics = summarize(outcome(records), CLOSED).metrics
    return metrics["steady_output_throughput"] or 0.0, metrics["output_throughput"] or 0.0


def windows(trials: int) -> None:
    print(
        "| in flight | answer, tokens | steady state: mean error, sd | whole run: mean error, sd |"
    )
    print("|---|---|---|---|")
    for concurrency in (8, 64):
        for name, lengths in LENGTHS.items():
            true, _ = rates(concurrency, 60 * concurrency, lengths, seed=-1)
            found = np.array(
                [rates(concurrency, 5 * concurrency, lengths, seed) for seed in range(trials)]
            )
            error = found / true - 1
            cells = [f"{e.mean():+.1%}, {e.std():.1%}" for e in error.T]
            print(f"| {concurrency} | {name} | {' | '.join(cells)} |")


def coverage(trials: int) -> None:
    truth = {
        "mean TTFT": ("mean_ttft_ms", 100 * math.exp((0.4**2 + 0.015**2) / 2)),
        "median TTFT": ("median_ttft_ms", 100.0),
        "p90 TTFT": ("p90_ttft_ms", 100 * math.exp(1.2816 * math.hypot(0.4, 0.015))),
        "p99 TTFT": ("p99_ttft_ms", 100 * math.exp(2.3263 * math.hypot(0.4, 0.015))),
        "mean TPOT": ("mean_tpot_ms", 10 * math.exp((0.1**2 + 0.015**2) / 2)),
    }
    print(f"| repeats | {' | '.join(truth)} |")
    print("|---" * (len(truth) + 1) + "|")
    for repeats in (1, 2, 3, 5):
        hits, widths = dict.fromkeys(truth, 0), dict.fromkeys(truth, 0.0)
        for trial in range(trials):
            rng = random.Random(trial * 10 + repeats)
            runs = [noisy_run(rng) for _ in range(repeats)]
            found = combine([summarize(outcome(of), CLOSED) for of in runs], runs, CLOSED)
            for name, (metric, value) in truth.items():
                hits[name] += found[metric].low <= value <= found[metric].high
                widths[name] += (found[metric].high - found[metric].low) / 2 / value / trials
        cells = [f"{hits[name] / trials:.0%} (±{widths[name]:.1%})" for name in truth]
        print(f"| {repeats} | {' | '.join(cells)} |")


def searches(trials: int) -> None:
    print("| server | within 5 % | runs: mean, most |")
    print("|---|---|---|")
    for family, low, high, integer in (
        (servers.queue, 0.1, 500.0, False),
        (servers.batching, 1.0, 1024.0, True),
        (servers.full, 1.0, 1024.0, True),
    ):
        right, runs = 0, []
        for trial in range(trials):
            server, objectives, answer = family(random.Random(f"{family.__name__} {trial}"))
            report = find_max(server, objectives, low=low, high=high, integer=integer)
            found = report.best or 0.0
            whole = integer and abs(found - math.floor(answer)) <= 1
            right += abs(found / answer - 1) <= 0.05 or whole
            runs.append(len(report.points))
        print(f"| {family.__name__} | {right / trials:.1%} | {np.mean(runs):.1f}, {max(runs)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=100)
    trials = parser.parse_args().trials
    windows(trials)
    print()
    coverage(trials)
    print()
    searches(10 * trials)


if __name__ == "__main__":
    main()
