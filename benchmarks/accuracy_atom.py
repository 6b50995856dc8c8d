"""atom's client on one mock, as a process of its own; prints its metrics as a line of JSON.

python benchmarks/accuracy_atom.py URL MODEL completions|chat STREAMS REQUESTS TOKENS SEED
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

from atom.bench.client import run_load
from atom.bench.metrics import MetricOptions, summarize
from atom.bench.metrics.samples import split
from atom.bench.types import Job, Load, Target, Turn

WORDS = 24  # with the number before them about as many tokens as the peers' prompts


def jobs(count: int, tokens: int, chat: bool, seed: int) -> Iterator[Job]:
    for index in range(count):
        text = f"<{index}> {seed}" + " tok" * WORDS
        if chat:
            yield Job(
                index, [Turn(messages=[{"role": "user", "content": text}], max_tokens=tokens)]
            )
        else:
            yield Job(index, [Turn(prompt=text, max_tokens=tokens)])


def main(argv: list[str]) -> int:
    url, model, endpoint, *numbers = argv[1:]
    streams, requests, tokens, seed = map(int, numbers)
    assert endpoint in ("completions", "chat"), endpoint
    target = Target(base_url=url, model=model, endpoint=endpoint)  # type: ignore[arg-type]
    made = jobs(requests, tokens, endpoint == "chat", seed)
    outcome = run_load(target, made, Load(concurrency=streams, num_requests=requests))
    options = MetricOptions(closed=True, percentiles=(50.0, 99.0))
    metrics = dict(summarize(outcome, options).metrics)
    # What the original calls ITL: the gap between chunks, whatever they carry.
    gaps = sorted(
        after - before
        for record in split(outcome.records).completed
        for before, after in zip(record.token_times_s, record.token_times_s[1:], strict=False)
    )
    metrics |= {
        "mean_chunk_gap_ms": sum(gaps) / len(gaps) * 1e3,
        "median_chunk_gap_ms": _quantile(gaps, 0.5) * 1e3,
        "p99_chunk_gap_ms": _quantile(gaps, 0.99) * 1e3,
    }
    health = outcome.health
    print(json.dumps({**metrics, "health": {"bound": health.bound, "reason": health.reason}}))
    return 0


def _quantile(ordered: list[float], share: float) -> float:
    place = (len(ordered) - 1) * share
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
