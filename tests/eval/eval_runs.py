"""Evaluations made up for tests: runs of kind "eval", and samples with known answers."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

from atom.bench.history import fingerprint, new_run_id
from atom.bench.quantiles import wilson
from atom.bench.types import ClientHealth, Interval, RepeatResult, RunResult
from atom.eval.types import Sample

FIRST = datetime(2026, 11, 21, 12, 0, 0, tzinfo=timezone.utc)
FLEXIBLE = "exact_match,flexible-extract"
STRICT = "exact_match,strict-match"
SHOT = "Question: What is 0 + 0?\nAnswer: It is 0.\n#### 0\n\n"


def gsm8k_sample(number: int, right: bool, **changed: Any) -> Sample:
    """Document `number` of gsm8k; a wrong answer is one too large."""
    said = number if right else number + 1
    facts: dict[str, Any] = {
        "task": "gsm8k",
        "doc_id": number,
        "doc_hash": f"{number:064x}",
        "prompt": f"{SHOT}Question: What is {number}?\nAnswer:",
        "target": f"It is {number}.\n#### {number}",
        "metrics": {FLEXIBLE: float(right), STRICT: 0.0},
        "answers": [{"text": f" It is {said}."}],
        "filtered": {"flexible-extract": str(said), "strict-match": "[invalid]"},
        "finish_reason": "stop",
        "output_tokens": 5,
    }
    return Sample(**{**facts, **changed})


def choice_sample(number: int, right: bool, **changed: Any) -> Sample:
    """Document `number` of a task of four choices; the second is the right one."""
    logprobs = [-4.0, -2.0 if right else -6.0, -5.0, -7.0]
    facts: dict[str, Any] = {
        "task": "arc_easy",
        "doc_id": number,
        "doc_hash": f"a{number:063x}",
        "prompt": f"Question: Which is {number}?\nAnswer:",
        "target": " the second",
        "metrics": {"acc,none": float(right), "acc_norm,none": float(right)},
        "answers": [
            {"text": text, "logprob": logprob, "is_greedy": False}
            for text, logprob in zip(
                (" the first", " the second", " the third", " the fourth"), logprobs, strict=True
            )
        ],
        "gold": 1,
        "chosen": 1 if right else 0,
    }
    return Sample(**{**facts, **changed})


def eval_run(samples: list[Sample], number: int = 0, **changed: Any) -> RunResult:
    """The run of these samples, with metrics counted from them; numbers are hours apart."""
    moment = FIRST + timedelta(hours=number)
    by_task: dict[str, list[Sample]] = {}
    for sample in samples:
        by_task.setdefault(sample.task, []).append(sample)
    metrics = {
        f"{task}/{metric}": _share([sample.metrics[metric] for sample in found])
        for task, found in by_task.items()
        for metric in found[0].metrics
    }
    workload = {
        "dataset": ", ".join(by_task),
        "tasks": {
            task: {"version": 3, "num_fewshot": 5, "samples": len(found), "prompt_hash": "p1"}
            for task, found in by_task.items()
        },
    }
    facts: dict[str, Any] = {
        "run_id": new_run_id(moment, f"{number:06x}"),
        "kind": "eval",
        "name": "tiny",
        "model": "org/tiny",
        "load": {"concurrency": 32},
        "workload": workload,
        "provenance": {"server": {"kind": "atom"}, "hardware": {"num_gpus": 0, "gpus": []}},
        "repeats": [
            RepeatResult(
                seed=0,
                started_at=moment.isoformat(),
                duration_s=12.5,
                metrics={name: interval.value for name, interval in metrics.items()},
                errors={},
                health=_health(),
                window_s=None,
            )
        ],
        "metrics": metrics,
        "legacy": {},
    }
    facts |= changed
    named = {key: facts[key] for key in ("model", "load", "workload", "provenance")}
    return RunResult(**{"fingerprint": fingerprint(**named), **facts})


def _share(values: list[float]) -> Interval:
    share = sum(values) / len(values)
    if not set(values) <= {0.0, 1.0}:
        return Interval(share, share, share)
    return Interval(share, *wilson(share, len(values), 0.95))


def _health() -> ClientHealth:
    return ClientHealth(
        workers=0,
        cpu_share=[],
        lag_p50_ms=0.0,
        lag_p99_ms=0.0,
        lag_max_ms=0.0,
        send_delay_p99_ms=0.0,
        chunks_per_s=0.0,
        machine_cpu_share=0.0,
    )
