"""An outcome as a run of the history, of the shape that imported lm-eval results have, too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from atom.bench import history
from atom.bench.names import is_name
from atom.bench.types import ClientHealth, Interval, RepeatResult, RunResult
from atom.eval.types import EvalOutcome, TaskResult
from atom.eval.verdict import Judged


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a run is beside its outcome."""

    run_id: str
    name: str
    model: str
    started_at: str  # ISO 8601, UTC
    seed: int
    load: Mapping[str, Any]
    provenance: Mapping[str, Any]
    server: Mapping[str, float] = field(default_factory=dict)  # of its metrics page: acceptance...
    notes: Sequence[str] = ()
    legacy: Mapping[str, Any] = field(default_factory=dict)  # lm-eval's form of the results


def run_result(outcome: EvalOutcome, judged: Sequence[Judged], facts: Facts) -> RunResult:
    """The run, with metrics named task/metric,filter and thresholds as its objectives.

    `provenance["eval"]` holds what is known of the outcome and is no part of the experiment: each
    task's main metric, cut answers, baselines, counts.
    """
    metrics = dict(_metrics(outcome.tasks))
    metrics |= {
        name: Interval(value, value, value)
        for name, value in facts.server.items()
        if name in ("acceptance_rate", "accept_length")
    }
    workload = describe(outcome)
    provenance = {**facts.provenance, "eval": _told(outcome, judged)}
    packages = {**provenance.get("packages", {}), **outcome.versions}
    provenance["packages"] = packages
    below = any(one.state == "below" for one in judged)
    return RunResult(
        run_id=facts.run_id,
        kind="eval",
        name=facts.name,
        model=facts.model,
        load=dict(facts.load),
        workload=workload,
        provenance=provenance,
        fingerprint=history.fingerprint(
            model=facts.model, load=facts.load, workload=workload, provenance=provenance
        ),
        repeats=[_repeat(outcome, metrics, facts)],
        metrics=metrics,
        legacy=dict(facts.legacy),
        status="slo_missed" if below else "ok",
        slo={one.name: one.threshold for one in judged if one.threshold is not None},
        notes=[*facts.notes, *outcome.notes],
    )


def describe(outcome: EvalOutcome) -> dict[str, Any]:
    """What was asked: tasks with what makes two scores of them comparable, and the settings."""
    tasks = {}
    for result in outcome.tasks:
        facts = {
            "kind": result.kind,
            "version": result.version,
            "main_metric": result.main_metric,
            "num_fewshot": result.num_fewshot,
            "samples": result.num_samples,
            "documents": result.num_documents,
            "prompt_hash": result.prompt_hash,
            "bundled": result.bundled,
            "members": result.members,
            "generation": result.generation,
        }
        tasks[result.task] = {k: v for k, v in facts.items() if v not in (None, "", [], {})}
    assert not {"dataset", "tasks"} & outcome.config.keys()
    return {"dataset": ", ".join(tasks), "tasks": tasks, **outcome.config}


def _metrics(results: Sequence[TaskResult]) -> list[tuple[str, Interval]]:
    found = []
    for result in results:
        for metric, score in result.metrics.items():
            name = f"{result.task}/{metric}"
            assert not is_name(name), name
            low = score.value if score.low is None else score.low
            high = score.value if score.high is None else score.high
            found.append((name, Interval(score.value, low, high)))
    return found


def _told(outcome: EvalOutcome, judged: Sequence[Judged]) -> dict[str, Any]:
    cut = {r.task: r.truncated for r in outcome.tasks if r.truncated}
    baselines = {
        one.name: {
            "value": one.baseline.value,
            "run_id": one.baseline.run_id,
            "recovery": one.recovery,
        }
        for one in judged
        if one.baseline is not None
    }
    return {
        "stderr": {
            f"{r.task}/{metric}": score.stderr
            for r in outcome.tasks
            for metric, score in r.metrics.items()
            if score.stderr is not None
        },
        "lower_is_better": [
            f"{r.task}/{metric}"
            for r in outcome.tasks
            for metric, score in r.metrics.items()
            if not score.higher_is_better
        ],
        "truncated": cut,
        "baselines": baselines,
        "answers": outcome.answers,
        "kept": outcome.kept,
        "prompt_tokens": outcome.prompt_tokens,
        "output_tokens": outcome.output_tokens,
    }


def _repeat(outcome: EvalOutcome, metrics: Mapping[str, Interval], facts: Facts) -> RepeatResult:
    return RepeatResult(
        seed=facts.seed,
        started_at=facts.started_at,
        duration_s=outcome.duration_s,
        metrics={name: interval.value for name, interval in metrics.items()},
        errors={},
        health=_nobody_watched(),
        window_s=None,
        server=dict(facts.server),
    )


def _nobody_watched() -> ClientHealth:
    """The client of an evaluation need not keep up with anything."""
    return ClientHealth(
        workers=0,
        cpu_share=[],
        lag_p50_ms=0.0,
        lag_p99_ms=0.0,
        lag_max_ms=0.0,
        send_delay_p99_ms=0.0,
        chunks_per_s=0.0,
        machine_cpu_share=0.0,
        reason="not known: an evaluation measures no times",
    )
