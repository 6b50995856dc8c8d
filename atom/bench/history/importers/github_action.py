"""`data.js` of github-action-benchmark, as ATOM's dashboard keeps it: a run for each point.

There a point is several entries whose names begin alike ("ATOM::gpt-oss-120b 1024/1024 c=64 TPOT
(ms)"), and an accuracy test likewise. A name that comes again within one commit begins another
point: older files held two variants of a model under one name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any
from urllib.parse import unquote

from atom.bench.history.documents import Loaded
from atom.bench.history.importers.build import (
    Origin,
    derived,
    gpu_hardware,
    make_run,
    without_nothing,
)
from atom.bench.history.importers.reading import number, whole
from atom.bench.history.runs import parse_moment
from atom.bench.types import RunResult

TOOL = "github-action-benchmark"
_SERIES = re.compile(r"(?:([^:]+)::)?(.+?) (\d+)/(\d+) c=(\d+) (.+)")
_SCORE = re.compile(r"(?:([^:]+)::)?(.+?) accuracy \(([^)]+)\)")
_DRAFTS = re.compile(r"(?:([^:]+)::)?(.+?) (MTP acceptance \(%\)|avg toks/fwd \(tok/fwd\))")
_METRICS = {
    "throughput (tok/s)": "output_throughput",
    "Total Tput (tok/s)": "total_token_throughput",
    "TTFT (ms)": "mean_ttft_ms",
    "TPOT (ms)": "mean_tpot_ms",
    "ITL (ms)": "mean_itl_ms",
    "E2EL (ms)": "mean_e2el_ms",
}
# Fields of a "perf point", which holds a whole result -> our names.
_POINT_METRICS = {
    "output_tput": "output_throughput",
    "total_tput": "total_token_throughput",
    "req_tput": "request_throughput",
    "completed": "completed",
    **{f"{w}_ms": f"mean_{w}_ms" for w in ("ttft", "tpot", "itl", "e2el")},
    **{f"{w}_p99": f"p99_{w}_ms" for w in ("ttft", "tpot", "itl", "e2el")},
    **{f"median_{w}_ms": f"median_{w}_ms" for w in ("ttft", "tpot", "itl", "e2el")},
}
_PERCENT = 100.0


@dataclass(slots=True)
class _Point:
    """The entries of one point as they are gathered."""

    backend: str
    model: str
    lengths: tuple[int, int] | None = None
    concurrency: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, str] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)
    entries: list[Any] = field(default_factory=list)


def knows(tree: Any) -> bool:
    return (
        isinstance(tree, Mapping)
        and isinstance(tree.get("entries"), Mapping)
        and all(isinstance(commits, list) for commits in tree["entries"].values())
    )


def read(tree: Mapping[str, Any], origin: Origin) -> Iterator[Loaded]:
    for suite, commits in tree["entries"].items():
        for entry in commits:
            for number_, point in enumerate(_points(entry)):
                run = _run(str(suite), entry, point, number_, origin)
                if run is not None:
                    yield Loaded(run)


def _points(entry: Mapping[str, Any]) -> list[_Point]:
    points: list[_Point] = []
    newest: dict[tuple[Any, ...], _Point] = {}
    for bench in entry.get("benches") or []:
        if not isinstance(bench, Mapping) or number(bench.get("value")) is None:
            continue
        key, metric, fresh = _place(bench)
        point = newest.get(key)
        if point is None or metric in point.seen:
            point = newest[key] = fresh
            points.append(point)
        point.seen.add(metric)
        point.entries.append([bench.get("name"), bench["value"]])
        point.extra.update(_extra(bench))
        _take(point, metric, float(bench["value"]))
    return points


def _place(bench: Mapping[str, Any]) -> tuple[tuple[Any, ...], str, _Point]:
    """Which point an entry belongs to, what it tells of it, and that point, if it is the first."""
    name = str(bench.get("name", ""))
    if match := _SERIES.fullmatch(name):
        backend, model, isl, osl, places, metric = match.groups()
        backend = backend or "ATOM"
        lengths = (int(isl), int(osl))
        fresh = _Point(backend, model, lengths, int(places))
        return (backend, model, lengths, places), metric, fresh
    if match := _SCORE.fullmatch(name):
        backend, model, task = match[1] or "ATOM", match[2], match[3]
        return (backend, model, "eval"), f"score {task}", _Point(backend, model)
    if match := _DRAFTS.fullmatch(name):
        backend, model = match[1] or "ATOM", match[2]
        return (backend, model, "eval"), match[3], _Point(backend, model)
    return (name,), "value", _Point("", name)


def _take(point: _Point, metric: str, value: float) -> None:
    if metric in _METRICS:
        point.metrics[_METRICS[metric]] = value
    elif metric == "_gpu_count":
        point.facts["num_gpus"] = int(value)
    elif metric == "_tp":
        point.facts["tensor_parallel_size"] = int(value)
    elif metric == "perf point":
        _take_whole(point)
    elif metric.startswith("score "):
        task = metric.removeprefix("score ").lower()
        point.facts["task"] = task
        point.metrics[f"{task}/exact_match,flexible-extract"] = value
        strict = number(point.extra.get("strict-match"))
        if strict is not None:
            point.metrics[f"{task}/exact_match,strict-match"] = strict
    elif metric == "MTP acceptance (%)":
        point.metrics["acceptance_rate"] = value / _PERCENT
    elif metric == "avg toks/fwd (tok/fwd)":
        point.metrics["accept_length"] = value
    elif metric != "value":
        point.facts[metric] = value


def _take_whole(point: _Point) -> None:
    """A perf point's `perf_point` field is a whole result, as JSON in percent encoding."""
    try:
        whole_point = json.loads(unquote(point.extra.pop("perf_point", "{}")))
    except ValueError:
        return
    if not isinstance(whole_point, dict):
        return
    for key, name in _POINT_METRICS.items():
        value = number(whole_point.get(key))
        if value is not None:
            point.metrics[name] = value
    if "total_gpu" in whole_point:
        point.facts["num_gpus"] = whole(whole_point["total_gpu"])
    point.extra.setdefault("GPU", str(whole_point.get("hardware") or ""))
    kept = ("precision", "image", "run_id", "config_label", "num_prompts", "ratio", "duration")
    point.facts.update({k: whole_point[k] for k in kept if whole_point.get(k) not in (None, "")})


def _extra(bench: Mapping[str, Any]) -> dict[str, str]:
    """ "Run: https://... | GPU: AMD Instinct MI355X | precision=FP4" as a mapping."""
    found = {}
    for part in str(bench.get("extra") or "").split(" | "):
        match = re.match(r"([A-Za-z_-]+)(?::\s+|=)(.*)", part.strip(), re.DOTALL)
        if match is not None:
            found[match[1]] = match[2]
    return found


def _run(
    suite: str, entry: Mapping[str, Any], point: _Point, position: int, origin: Origin
) -> RunResult | None:
    """None for entries of other kinds (a data.js may hold anybody's benchmarks)."""
    commit = entry.get("commit")
    commit = commit if isinstance(commit, Mapping) else {}
    if not point.metrics:
        return None
    is_eval = point.concurrency is None
    gpus = whole(point.facts.pop("num_gpus", None))
    gpus = gpus if isinstance(gpus, int) and gpus > 0 else None
    # Their CI writes 0 for what has failed.
    metrics = {name: value for name, value in point.metrics.items() if value != 0 or is_eval}
    metrics |= derived(metrics, gpus)
    seconds = number(point.facts.pop("duration", None))
    return make_run(
        tool=TOOL,
        origin=origin,
        content=[suite, commit.get("id"), entry.get("date"), position, point.entries],
        moment=_moment(entry, commit, origin),
        kind="eval" if is_eval else "bench",
        name=point.model,
        model=point.model,
        load={} if is_eval else {"mode": "closed", "concurrency": point.concurrency},
        workload=_workload(point),
        provenance=_provenance(suite, commit, point, gpus),
        metrics=metrics,
        duration_s=seconds or 0.0,
        status="ok" if metrics else "errors",
    )


def _moment(entry: Mapping[str, Any], commit: Mapping[str, Any], origin: Origin) -> datetime:
    milliseconds = number(entry.get("date"))
    if milliseconds:
        return datetime.fromtimestamp(milliseconds / 1000, timezone.utc)
    return parse_moment(str(commit.get("timestamp") or "")) or origin.modified()


def _workload(point: _Point) -> dict[str, Any]:
    if point.lengths is None:
        shots = whole(point.extra.get("fewshot"))
        return without_nothing(dataset=point.facts.get("task"), num_fewshot=shots)
    ratio = number(point.facts.pop("ratio", None) or point.extra.get("random_range_ratio"))
    isl, osl = (length or None for length in point.lengths)  # older files have 0/0: not known
    return without_nothing(dataset="random", input_len=isl, output_len=osl, range_ratio=ratio)


def _provenance(
    suite: str, commit: Mapping[str, Any], point: _Point, gpus: int | None
) -> dict[str, Any]:
    extra = {k: v for k, v in point.extra.items() if v and v != "unknown"}
    rocm = extra.pop("ROCm", "")
    hardware = gpu_hardware(
        name=extra.pop("GPU", ""),
        count=gpus,
        memory_gb=whole(extra.pop("VRAM", "").removesuffix("GB")),
        driver=f"ROCm {rocm}" if rocm else "",
    )
    return {
        "server": without_nothing(kind=point.backend.lower(), commit=commit.get("id")),
        "hardware": hardware,
        "driver": hardware["driver"],
        "metadata": without_nothing(
            suite=suite,
            commit_message=str(commit.get("message") or "").partition("\n")[0],
            commit_url=commit.get("url"),
            **{str(k): v for k, v in {**extra, **point.facts}.items()},
        ),
    }
