"""lm-eval's `results_*.json`: one run of kind "eval", with metrics named task/metric,filter.

Its standard errors become intervals of 95 % (normal approximation, kept within 0 and 1 where the
score is a share). The samples beside it (`--log_samples`) come with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from typing import Any

from atom.bench.history.documents import Loaded
from atom.bench.history.importers import lm_eval_samples
from atom.bench.history.importers.build import Origin, make_run, without_nothing
from atom.bench.history.importers.reading import number
from atom.bench.types import Interval

TOOL = "lm-eval"
Z_95 = 1.959964
_NOT_SCORES = frozenset({"alias", "name", "sample_len", "sample_count"})


def knows(tree: Any) -> bool:
    if not isinstance(tree, Mapping) or not isinstance(tree.get("results"), Mapping):
        return False
    marks = {"configs", "versions", "n-shot", "config", "task_hashes", "lm_eval_version"}
    return bool(marks & tree.keys()) or any("," in key for key in _first_keys(tree["results"]))


def _first_keys(results: Mapping[str, Any]) -> list[str]:
    first = next(iter(results.values()), None)
    return [str(key) for key in first] if isinstance(first, Mapping) else []


def read(tree: Mapping[str, Any], origin: Origin) -> Iterator[Loaded]:
    arguments = _arguments(tree)
    model = _model(tree, arguments, origin)
    intervals = dict(_scores(tree))
    metrics = {name: interval.value for name, interval in intervals.items()}
    seconds = number(tree.get("total_evaluation_time_seconds"))
    run = make_run(
        tool=TOOL,
        origin=origin,
        content=tree,
        moment=_moment(tree, origin),
        kind="eval",
        name=model.rstrip("/").rpartition("/")[2],
        model=model,
        load=without_nothing(concurrency=_int(arguments.get("num_concurrent"))),
        workload=_workload(tree),
        provenance=_provenance(tree, arguments),
        metrics=metrics,
        intervals={k: v for k, v in intervals.items() if v.low < v.high},
        duration_s=seconds or 0.0,
    )
    yield Loaded(run, (), lm_eval_samples.beside(origin.path))


def _scores(tree: Mapping[str, Any]) -> Iterator[tuple[str, Interval]]:
    for part in ("results", "groups"):
        for task, facts in (tree.get(part) or {}).items():
            if isinstance(facts, Mapping):
                yield from _task_scores(str(task), facts)


def _task_scores(task: str, facts: Mapping[str, Any]) -> Iterator[tuple[str, Interval]]:
    """ "exact_match,flexible-extract": 0.9 and its "exact_match_stderr,flexible-extract"."""
    for key, given in facts.items():
        metric, _, chosen = str(key).partition(",")
        value = number(given)
        if value is None or metric in _NOT_SCORES or metric.endswith("_stderr") or not chosen:
            continue
        error = number(facts.get(f"{metric}_stderr,{chosen}")) or 0.0
        low, high = value - Z_95 * error, value + Z_95 * error
        if 0 <= value <= 1:
            low, high = max(0.0, low), min(1.0, high)
        yield f"{task}/{key}", Interval(value, low, high)


def _arguments(tree: Mapping[str, Any]) -> dict[str, str]:
    """`model_args`: a mapping in newer files, k=v,k=v in older ones."""
    config = tree.get("config")
    given = config.get("model_args") if isinstance(config, Mapping) else None
    if isinstance(given, Mapping):
        return {str(key): str(value) for key, value in given.items()}
    pairs = (part.partition("=") for part in str(given or "").split(","))
    return {key.strip(): value.strip() for key, sign, value in pairs if sign}


def _model(tree: Mapping[str, Any], arguments: Mapping[str, str], origin: Origin) -> str:
    config = tree.get("config")
    backend = config.get("model") if isinstance(config, Mapping) else None
    named = (
        arguments.get("model"), arguments.get("pretrained"), tree.get("model_name"), origin.model
    )  # fmt: skip
    return str(next((name for name in named if name), None) or backend or "unknown")


def _moment(tree: Mapping[str, Any], origin: Origin) -> datetime:
    seconds = number(tree.get("date"))
    return datetime.fromtimestamp(seconds, timezone.utc) if seconds else origin.modified()


def _int(text: Any) -> int | None:
    found = number(text)
    return int(found) if found is not None else None


def _workload(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Tasks with their versions, shots and samples: what makes two scores comparable."""
    shots, versions = tree.get("n-shot") or {}, tree.get("versions") or {}
    samples, hashes = tree.get("n-samples") or {}, tree.get("task_hashes") or {}
    tasks = {
        str(task): without_nothing(
            version=versions.get(task),
            num_fewshot=shots.get(task),
            samples=(samples.get(task) or {}).get("effective"),
            task_hash=hashes.get(task),
        )
        for task in tree["results"]
    }
    for group, members in (tree.get("group_subtasks") or {}).items():
        if members:
            tasks.setdefault(str(group), {})["members"] = [str(member) for member in members]
    config = tree.get("config")
    limit = config.get("limit") if isinstance(config, Mapping) else None
    names = ", ".join(map(str, tree["results"]))
    return without_nothing(dataset=names, tasks=tasks, limit=limit)


def _provenance(tree: Mapping[str, Any], arguments: Mapping[str, str]) -> dict[str, Any]:
    version = str(tree.get("lm_eval_version") or "")
    return {
        "server": without_nothing(kind="unknown", base_url=_without_user(arguments)),
        "hardware": {"known": False, "gpus": [], "num_gpus": None},
        "driver": "",
        "packages": without_nothing(lm_eval=version, transformers=tree.get("transformers_version")),
        "metadata": without_nothing(
            chat_template_sha=tree.get("chat_template_sha"), git_hash=tree.get("git_hash")
        ),
    }


def _without_user(arguments: Mapping[str, str]) -> str:
    return re.sub(r"(?<=://)[^/@\s]+@", "", arguments.get("base_url", ""))
