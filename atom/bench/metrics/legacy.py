"""The flat fields of the original's `benchmark_serving` result file, by its own definitions.

They differ from ours on purpose, so that existing scripts and old files compare: latencies count
from the moment a request was sent, `itl` is the gap between chunks, throughput is over the whole
run. With several repeats they are pooled: one long run of all requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from atom.bench.errors import BenchError
from atom.bench.metrics.samples import Outcome, last_token_s, latencies, split
from atom.bench.metrics.statistics import describe
from atom.bench.metrics.summary import causes
from atom.bench.metrics.window import flight
from atom.bench.types import RequestRecord, RunResult

SELECTED = ("ttft", "tpot", "itl", "e2el")
# Our sample behind each of its metrics.
SAMPLES = {"ttft": "ttft", "tpot": "tpot", "itl": "chunk_gap", "e2el": "e2el"}


@dataclass(frozen=True, slots=True, kw_only=True)
class LegacyFields:
    """What the flat part holds beyond what the run knows by itself.

    Args:
        backend: Its `--backend`: vllm for the completions endpoint, openai-chat for chat.
        endpoint_type: Newer vLLM's name of the same.
        tokenizer_id: The model's id unless another was given.
        request_rate: Requests per second; infinite in closed loop (written "inf").
        metadata: `--metadata K=V`, each at the top level.
        selected: `--percentile-metrics`.
        percentiles: `--metric-percentiles`.
        detailed: `--save-detailed`: one entry per request.
    """

    backend: str = "vllm"
    tokenizer_id: str = ""
    request_rate: float = float("inf")
    burstiness: float = 1.0
    max_concurrency: int | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    selected: tuple[str, ...] = SELECTED
    percentiles: tuple[float, ...] = (99.0,)
    detailed: bool = False

    def __post_init__(self) -> None:
        for name in self.selected:
            if name not in SAMPLES:
                raise BenchError(f"--percentile-metrics {name}: choose of {', '.join(SAMPLES)}")


def legacy(
    run: RunResult, records: Sequence[Sequence[RequestRecord]], fields: LegacyFields
) -> dict[str, Any]:
    """All fields of the original; `run.repeats` and `run.metrics` must be filled in already.

    What the server does not tell is null, never a guess.
    """
    parts = [split(of) for of in records]
    made: dict[str, Any] = {
        **_head(run, records, fields),
        **_totals(run, parts),
        **_statistics(parts, fields),
    }
    if fields.detailed:
        made.update(_detailed(parts))
    clash = sorted(set(fields.metadata) & ({*made, "atom"} | DETAILED))
    if clash:
        raise BenchError(f"--metadata {clash[0]}=: the result has a field of that name already")
    return {**made, **fields.metadata}


def _head(
    run: RunResult, records: Sequence[Sequence[RequestRecord]], fields: LegacyFields
) -> dict[str, Any]:
    rate = fields.request_rate
    return {
        "date": run.repeats[0].started_at[:19].replace("-", "").replace(":", "").replace("T", "-"),
        "backend": fields.backend,
        "endpoint_type": fields.backend,
        "label": run.name,
        "model_id": run.model,
        "tokenizer_id": fields.tokenizer_id or run.model,
        "best_of": 1,
        "num_prompts": sum(len(of) for of in records),
        "request_rate": "inf" if np.isinf(rate) else rate,
        "burstiness": fields.burstiness,
        "max_concurrency": fields.max_concurrency,
    }


def _value(run: RunResult, name: str) -> float | None:
    interval = run.metrics.get(name)
    return None if interval is None else interval.value


def _sum(counts: Sequence[int | None]) -> int | None:
    return None if None in counts else sum(c for c in counts if c is not None)


def _totals(run: RunResult, parts: Sequence[Outcome]) -> dict[str, Any]:
    seconds = sum(repeat.duration_s for repeat in run.repeats)
    done = [record for part in parts for record in part.completed]
    given = _sum([r.input_tokens for r in done])
    made = _sum([r.output_tokens for r in done])
    both = None if given is None or made is None else given + made

    def rate(count: float | None) -> float | None:
        return None if count is None or seconds <= 0 else count / seconds

    goodput = _value(run, "request_goodput")
    stay = sum(last_token_s(r) - r.sent_s for r in done)
    every = [*(r for part in parts for r in (*part.completed, *part.failed))]
    return {
        "duration": seconds,
        "completed": len(done),
        "failed": len(every) - len(done),
        "total_input_tokens": given,
        "total_output_tokens": made,
        "request_throughput": rate(len(done)),
        "request_goodput": goodput,
        "request_goodput:": goodput,  # as the original spells it
        "output_throughput": rate(made),
        "total_token_throughput": rate(both),
        "max_concurrent_requests": _peak(parts),
        "concurrency": rate(stay),
        "acceptance_rate": _value(run, "acceptance_rate"),
        "accept_length": _value(run, "accept_length"),
    }


def _peak(parts: Sequence[Outcome]) -> int:
    peaks = [0]
    for part in parts:
        records = [*part.completed, *part.failed, *part.cancelled]
        if records:
            peaks.append(int(flight(records)[1].max()))
    return max(peaks)


def _statistics(parts: Sequence[Outcome], fields: LegacyFields) -> dict[str, float | None]:
    done = [record for part in parts for record in part.completed]
    samples = latencies(done, closed=True)  # from the moment of sending
    made: dict[str, float | None] = {}
    for name in fields.selected:
        sample = samples.get(SAMPLES[name])
        if sample is None:
            words = ["mean", "median", "std", *(f"p{p:g}" for p in fields.percentiles)]
            made.update({f"{word}_{name}_ms": None for word in words})
            continue
        for word, value in describe(sample, fields.percentiles).items():
            made[f"{word}_{name}_ms"] = value
    return made


DETAILED = {
    "input_lens",
    "output_lens",
    "ttfts",
    "itls",
    "generated_texts",
    "errors",
    "start_times",
}


def _detailed(parts: Sequence[Outcome]) -> dict[str, list[Any]]:
    """One entry per request in order of sending; a failed one has zeros and its cause."""
    made: dict[str, list[Any]] = {name: [] for name in sorted(DETAILED)}
    for part in parts:
        every = [*part.completed, *part.failed, *part.cancelled]
        for record in sorted(every, key=lambda r: (r.index, r.turn)):
            ok = record.error is None
            times = record.token_times_s
            made["input_lens"].append(record.input_tokens or record.asked_input or 0)
            made["output_lens"].append(record.output_tokens if ok else 0)
            made["ttfts"].append(times[0] - record.sent_s if ok and times else 0.0)
            made["itls"].append(np.diff(times).tolist() if ok else [])
            made["generated_texts"].append(record.text or "")
            made["errors"].append("" if ok else next(iter(causes([record]))))
            made["start_times"].append(record.sent_s)
    return made
