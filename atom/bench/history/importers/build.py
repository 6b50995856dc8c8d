"""What all importers share: a run of numbers that somebody else measured."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from atom.bench import names
from atom.bench.history.provenance import canonical_json, fingerprint
from atom.bench.history.runs import new_run_id, utc_text
from atom.bench.types import ClientHealth, Interval, RepeatResult, RunResult

ID_DIGITS = 10
NO_INTERVAL = "imported: the file has no confidence intervals, so low and high equal the value"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a result stands; `model` names what results that do not say it are of."""

    path: Path
    line: int = 1
    model: str | None = None

    @property
    def where(self) -> str:
        return f"{self.path}:{self.line}" if self.line > 1 else str(self.path)

    def modified(self) -> datetime:
        return datetime.fromtimestamp(self.path.stat().st_mtime, timezone.utc)


def unknown_health(tool: str) -> ClientHealth:
    """Nobody watched the client: no worker is counted, and the reason says so."""
    return ClientHealth(
        workers=0,
        cpu_share=[],
        lag_p50_ms=0.0,
        lag_p99_ms=0.0,
        lag_max_ms=0.0,
        send_delay_p99_ms=0.0,
        chunks_per_s=0.0,
        machine_cpu_share=0.0,
        reason=f"not known: measured by {tool}",
    )


def make_run(
    *,
    tool: str,
    origin: Origin,
    content: Any,
    moment: datetime,
    kind: str,
    name: str,
    model: str,
    load: Mapping[str, Any],
    workload: Mapping[str, Any],
    provenance: Mapping[str, Any],
    metrics: Mapping[str, float],
    intervals: Mapping[str, Interval] | None = None,
    duration_s: float = 0.0,
    legacy: Mapping[str, Any] | None = None,
    status: str = "ok",
    seed: int = 0,
    notes: Sequence[str] = (),
) -> RunResult:
    """A run of one repeat, whose id is made of `moment` and the hash of `content`."""
    digest = hashlib.sha256(canonical_json(content)).hexdigest()
    source = {"format": tool, "file": origin.path.name, "sha256": digest}
    provenance = {"source": source, **provenance}
    repeat = RepeatResult(
        seed=seed,
        started_at=utc_text(moment),
        duration_s=duration_s,
        metrics=dict(metrics),
        errors={},
        health=unknown_health(tool),
        window_s=None,
    )
    known = dict(intervals or {})
    return RunResult(
        run_id=new_run_id(moment, digest[:ID_DIGITS]),
        kind=kind,
        name=name,
        model=model,
        load=dict(load),
        workload=dict(workload),
        provenance=provenance,
        fingerprint=fingerprint(model=model, load=load, workload=workload, provenance=provenance),
        repeats=[repeat],
        metrics={key: known.get(key, Interval(v, v, v)) for key, v in metrics.items()},
        legacy=dict(legacy or {}),
        status=status,
        notes=[*notes, *([NO_INTERVAL] if len(known) < len(metrics) else [])],
    )


def derived(metrics: Mapping[str, float], num_gpus: int | None) -> dict[str, float]:
    """Per GPU and per user, where what they are made of is known."""
    found: dict[str, float] = {}
    tpot = metrics.get("mean_tpot_ms")
    if tpot:
        found["output_throughput_per_user"] = 1000.0 / tpot
    for name in ("output_throughput", "total_token_throughput"):
        if num_gpus and name in metrics:
            found[f"{name}_per_gpu"] = metrics[name] / num_gpus
    assert all(names.is_name(name) for name in found)
    return found


def gpu_hardware(
    name: str = "", count: int | None = None, memory_gb: Any = None, driver: str = ""
) -> dict[str, Any]:
    """The server's machine as far as a result file tells it."""
    gpu = {"name": name, **({"memory_gb": memory_gb} if memory_gb not in (None, "") else {})}
    return {
        "known": False,
        "gpus": [gpu] * (count or 1) if name else [],
        "num_gpus": count,
        "num_gpus_from": "file" if count is not None else "",
        "driver": driver,
    }


def without_nothing(**facts: Any) -> dict[str, Any]:
    return {key: value for key, value in facts.items() if value not in (None, "", [], {})}
