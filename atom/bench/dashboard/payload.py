"""The history as one value for the pages: runs as rows, metrics as columns, provenance once.

The pages read this and nothing else. Thousands of runs share most of their provenance (recipe,
hardware, packages), so each distinct part is stored once and runs point to it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from atom._version import __version__
from atom.bench.dashboard.facts import Facts, facts
from atom.bench.history.importers.reading import number
from atom.bench.history.runs import better
from atom.bench.names import LATENCIES, is_name, label, unit
from atom.bench.names import better as better_by_name
from atom.bench.types import ClientHealth, Interval, RunResult

SCHEMA = 1
DIGITS = 6  # significant; far below any interval's width, and half the file's size

# Shown per repeat in a run's details.
REPEATED = ("output_throughput", "total_token_throughput", "mean_ttft_ms", "mean_tpot_ms")

# Divided by the devices, for the pages alone: a CPU machine counts as one device there.
PER_DEVICE = {
    "total_per_device": "total_token_throughput",
    "output_per_device": "output_throughput",
    "steady_total_per_device": "steady_total_token_throughput",
    "steady_output_per_device": "steady_output_throughput",
}
_PER_DEVICE_LABELS = {
    "total_per_device": "Total tokens per GPU",
    "output_per_device": "Output tokens per GPU",
    "steady_total_per_device": "Total tokens per GPU, steady state",
    "steady_output_per_device": "Output tokens per GPU, steady state",
}


class Mark(NamedTuple):
    """A change that the comparison found in the series of one fingerprint."""

    run_id: str  # the first run after the change
    metric: str
    kind: str  # regression, suspicious, improvement, change
    ratio: float  # after / before
    text: str  # one sentence: from what to what, how sure
    commits: str = ""  # that came in with it, first..last


def payload(
    runs: Iterable[RunResult],
    marks: Sequence[Mark] = (),
    *,
    links: Mapping[str, str] | None = None,
    source: str = "",
    built_at: str = "",
) -> dict[str, Any]:
    """What `data.js` holds. `links` maps an artefact's path to the address the page uses."""
    described = sorted(((facts(run), run) for run in runs), key=lambda pair: _order(*pair))
    pool = _Pool()
    rows = [_row(found, run, pool, links or {}) for found, run in described]
    position = {run.run_id: index for index, (_, run) in enumerate(described)}
    columns = _columns(described)
    return {
        "schema": SCHEMA,
        "atom": __version__,
        "source": source,
        "built_at": built_at,
        "latencies": LATENCIES,
        "metrics": {name: _metric(name) for name in columns},
        "runs": rows,
        "values": columns,
        "pool": pool.values,
        "evals": [score for i, (_, run) in enumerate(described) for score in _scores(i, run)],
        "marks": [
            {**mark._asdict(), "run": position[mark.run_id], "ratio": _short(mark.ratio)}
            for mark in marks
            if mark.run_id in position
        ],
    }


def _order(found: Facts, run: RunResult) -> tuple[int, str]:
    return found.time_ms, run.run_id


def _row(found: Facts, run: RunResult, pool: _Pool, links: Mapping[str, str]) -> dict[str, Any]:
    return {
        "id": run.run_id,
        "kind": run.kind,
        "time": found.time_ms,
        "name": run.name,
        "model": run.model,
        "backend": found.backend,
        "version": found.version,
        "shape": found.shape,
        "dataset": found.dataset,
        "load": found.load._asdict(),
        "hardware": found.hardware,
        "gpus": found.gpus,
        "tp": found.tp,
        "commit": found.commit,
        "dirty": found.dirty,
        "recipe": found.recipe,
        "series": found.series,
        "fingerprint": run.fingerprint,
        "sweep": run.sweep_id,
        "status": run.status,
        "command": found.command,
        "slo": {name: _short(limit) for name, limit in run.slo.items()},
        "notes": run.notes,
        "repeats": {
            name: [_short(r.metrics.get(name)) for r in run.repeats]
            for name in REPEATED
            if any(r.metrics.get(name) is not None for r in run.repeats)
        },
        "errors": _errors(run),
        "health": _health([r.health for r in run.repeats]),
        "artefacts": [
            {
                "kind": a.get("kind", ""),
                "path": a.get("path", ""),
                "href": links.get(a.get("path", "")),
            }
            for a in run.artefacts
        ],
        "provenance": {key: pool.add(value) for key, value in run.provenance.items()},
        "workload": pool.add(run.workload),
    }


class _Pool:
    """Distinct values, each stored once."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._at: dict[str, int] = {}

    def add(self, value: Any) -> int:
        key = json.dumps(value, sort_keys=True, default=str)
        if key not in self._at:
            self._at[key] = len(self.values)
            self.values.append(finite(value))
        return self._at[key]


def _columns(described: Sequence[tuple[Facts, RunResult]]) -> dict[str, list[Any]]:
    """Metric -> per run [value, low, high], [value] without an interval, or None."""
    found: dict[str, list[Any]] = {}
    for index, (known, run) in enumerate(described):
        metrics = dict(run.metrics)
        for name, source in PER_DEVICE.items():
            if source in metrics:
                metrics[name] = _divided(metrics[source], known.devices)
        tpot = metrics.get("mean_tpot_ms")
        if "output_throughput_per_user" not in metrics and tpot is not None and tpot.value > 0:
            metrics["output_throughput_per_user"] = _per_user(tpot)
        for name, interval in metrics.items():
            cell = _cell(interval)
            if cell is not None:
                found.setdefault(name, [None] * len(described))[index] = cell
    return found


def _divided(interval: Interval, by: int) -> Interval:
    return Interval(interval.value / by, interval.low / by, interval.high / by)


def _per_user(tpot: Interval) -> Interval:
    """Tokens per second that one user sees: 1000 / TPOT; the ends change places."""
    ends = [1000 / end if end > 0 else math.nan for end in (tpot.high, tpot.low)]
    return Interval(1000 / tpot.value, ends[0], ends[1])


def _cell(interval: Interval) -> list[float | None] | None:
    if not math.isfinite(interval.value):
        return None
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return [_short(interval.value)]
    if interval.low == interval.high == interval.value:
        return [_short(interval.value)]
    return [_short(interval.value), _short(interval.low), _short(interval.high)]


def _metric(name: str) -> dict[str, Any]:
    if name in PER_DEVICE:
        found = {"label": _PER_DEVICE_LABELS[name], "unit": "tok/s", "better": "higher"}
        return {**found, "derived": True}
    shown = label(name) if is_name(name) else name
    if name == "error_rate":  # beside the count, which has the same label
        shown += ", share"
    return {"label": shown, "unit": unit(name), "better": better_by_name(name)}


def _scores(index: int, run: RunResult) -> list[dict[str, Any]]:
    """An evaluation's scores by task: `gsm8k/exact_match,flexible-extract` -> its filters."""
    if run.kind != "eval":
        return []
    tasks: dict[str, dict[str, Any]] = {}
    for name, interval in run.metrics.items():
        task, _, metric = name.rpartition("/")
        score = _cell(interval)
        if is_name(name) or not metric or score is None:
            continue
        task = task or str(run.workload.get("dataset") or run.name)
        held = tasks.setdefault(task, _task(index, task, run))
        held["scores"][metric] = score
        if name in run.slo:
            held["thresholds"][metric] = _short(run.slo[name])
        baseline = _baseline(run, name)
        if baseline is not None:
            held["baselines"][metric] = _short(baseline)
        if better(run, name) == "lower":
            held["lower"].append(metric)
    return list(tasks.values())


def _task(index: int, task: str, run: RunResult) -> dict[str, Any]:
    """`main`: the metric that stands for the task, "" where the run does not say."""
    known = run.workload.get("tasks")
    facts = known.get(task) if isinstance(known, Mapping) else None
    facts = facts if isinstance(facts, Mapping) else {}
    return {
        "run": index,
        "task": task,
        "main": str(facts.get("main_metric") or ""),
        "scores": {},
        "thresholds": {},
        "baselines": {},
        "lower": [],
        "fewshot": facts.get("num_fewshot", run.workload.get("num_fewshot")),
        "samples": facts.get("samples", run.workload.get("samples")),
    }


def _baseline(run: RunResult, name: str) -> float | None:
    """What the evaluation was given to be compared with, by a recipe or a flag."""
    told = run.provenance.get("eval")
    known = told.get("baselines") if isinstance(told, Mapping) else None
    held = known.get(name) if isinstance(known, Mapping) else None
    return number(held.get("value")) if isinstance(held, Mapping) else None


def _errors(run: RunResult) -> dict[str, int]:
    found: dict[str, int] = {}
    for repeat in run.repeats:
        for cause, count in repeat.errors.items():
            found[cause] = found.get(cause, 0) + count
    return found


def _health(parts: Sequence[ClientHealth]) -> dict[str, Any] | None:
    """The worst repeat's: one bad repeat is enough to distort a run."""
    if not parts:
        return None
    worst = max(parts, key=lambda h: (h.bound, h.lag_p99_ms))
    return {
        "workers": worst.workers,
        "cpu_share": _short(max(worst.cpu_share, default=0.0)),
        "lag_p99_ms": _short(worst.lag_p99_ms),
        "send_delay_p99_ms": _short(worst.send_delay_p99_ms),
        "bound": worst.bound,
        "reason": worst.reason,
    }


def _short(value: float | None) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{DIGITS}g}")


def finite(value: Any) -> Any:
    """JSON has no infinity and no NaN; as text they still say what they were."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    return str(value)
