"""A comparison becomes a run of the history: kind "eval", metrics agree/..."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from atom.bench import history
from atom.bench.history import History
from atom.bench.target import short_model
from atom.bench.types import ClientHealth, Interval, RepeatResult, RunResult
from atom.config import resolve
from atom.config.serial import changed
from atom.eval.agree.findings import Figures, Report
from atom.eval.agree.limits import Verdict
from atom.eval.agree.prompts import Text, digest
from atom.eval.agree.types import Answers, Side
from atom.eval.serving import Place, Served

TASK = "agree"


class Kept(NamedTuple):
    """What is written down."""

    reference: Answers
    tested: Answers
    report: Report
    verdict: Verdict
    notes: Sequence[str]


def provenance(place: Place, server: Served) -> dict[str, Any]:
    """Of the tested side, while it has its model loaded."""
    config = None
    if place.own_server:
        config = changed(resolve(place.recipe, place.env))
    return history.collect(
        base_url=server.base_url,
        server=server.info,
        server_config=config,
        recipe=place.recipe if place.own_server else None,
    )


def keep(
    store: History, kept: Kept, origin: dict[str, Any], began: float, duration_s: float
) -> str:
    """Store the run; its id."""
    run = as_run(kept, origin, began, duration_s)
    store.add(run)
    return run.run_id


def as_run(kept: Kept, origin: dict[str, Any], began: float, duration_s: float) -> RunResult:
    metrics = intervals(kept.report)
    tested = kept.tested.side
    workload, load = _workload(kept), {"top_k": min(tested.top_k, kept.reference.side.top_k)}
    moment = datetime.fromtimestamp(began, timezone.utc)
    repeat = RepeatResult(
        seed=0,
        started_at=moment.isoformat(timespec="microseconds").replace("+00:00", "Z"),
        duration_s=duration_s,
        metrics={name: interval.value for name, interval in metrics.items()},
        errors={},
        health=ClientHealth(0, [], 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, reason="not measured"),
        window_s=None,
    )
    limits = kept.verdict.limits
    slo = {"agree/top1,none": limits.min_agreement, "agree/mean_kl,none": limits.max_kl}
    if kept.report.decode is not None:
        slo |= {
            "agree/decode_top1,none": limits.min_agreement,
            "agree/decode_mean_kl,none": limits.max_kl,
        }
    name = Path(tested.recipe).stem if tested.recipe else short_model(tested.model)
    return RunResult(
        run_id=history.new_run_id(),
        kind="eval",
        name=name,
        model=tested.model,
        load=load,
        workload=workload,
        provenance=origin,
        fingerprint=history.fingerprint(
            model=tested.model, load=load, workload=workload, provenance=origin
        ),
        repeats=[repeat],
        metrics=metrics,
        legacy={},
        status="ok" if kept.verdict.good else "slo_missed",
        slo=slo,
        notes=[*(m.sentence() for m in kept.verdict.missed), *kept.notes],
    )


def intervals(report: Report) -> dict[str, Interval]:
    """Metrics by name: agree/top1, agree/mean_kl, ...; without an interval low and high equal."""
    found = {"top1": report.agreement, "mean_kl": report.mean_kl}
    found |= _exact("", report.all, ("median_kl", "p99_kl", "max_kl", "ppl_ratio"))
    for part in report.parts:
        found[f"{part.name}_top1"] = _point(part.agreement)
        found[f"{part.name}_mean_kl"] = _point(part.mean_kl)
    if report.decode is not None:
        found["decode_top1"] = report.decode.agreement
        found["decode_mean_kl"] = report.decode.mean_kl
        found["decode_equal"] = _point(report.decode.equal / report.decode.prompts)
    return {f"{TASK}/{name},none": value for name, value in found.items()}


def _exact(prefix: str, figures: Figures, names: Sequence[str]) -> dict[str, Interval]:
    return {prefix + name: _point(getattr(figures, name)) for name in names}


def _point(value: float) -> Interval:
    return Interval(value, value, value)


def _workload(kept: Kept) -> dict[str, Any]:
    prompts = kept.reference.prompts
    return {
        "dataset": TASK,
        "tasks": {
            TASK: {
                "num_fewshot": 0,
                "samples": len(prompts),
                "prompts": digest([Text(p.kind, p.text) for p in prompts]),
                "max_tokens": kept.reference.max_tokens,
                "reference": named(kept.reference.side),
            }
        },
    }


def named(side: Side) -> dict[str, Any]:
    """Who it is, for JSON and provenance; a URL without user and password."""
    from atom.bench.history import redact

    told = {
        "name": redact.text(side.name),
        "model": side.model,
        "kind": side.kind,
        "version": side.version,
        "precision": side.precision or None,
        "top_k": side.top_k,
    }
    return {key: value for key, value in told.items() if value is not None}
