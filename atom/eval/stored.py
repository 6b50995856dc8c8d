"""Evaluations by the names that people give them, with their samples, stored or in files.

As `atom.bench.history.names`, but among evaluations only: `last` is the last of them. A file (ours,
or lm-eval's `results_*.json` or `samples_*.jsonl`) is read and not added.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from atom.bench.history import History
from atom.bench.history.documents import Loaded
from atom.bench.types import RunResult
from atom.eval.errors import EvalError
from atom.eval.records import read_samples, samples_of
from atom.eval.types import Sample

KIND = "eval"
_LAST = re.compile(r"last(?:~(\d+))?")
_FILE_ENDINGS = (".json", ".jsonl")
_COMMIT = re.compile(r"[0-9a-f]{6,40}")


class Stored(NamedTuple):
    """A run, how many samples of each task it has (in the run's order), and how they are read."""

    run: RunResult
    counts: dict[str, int]
    read: Callable[[str], list[Sample]]  # by the task's name

    def samples(self) -> dict[str, list[Sample]]:
        return {task: self.read(task) for task in self.counts}


def find(history: History, text: str) -> Stored:
    """The evaluation that `text` names; raises `EvalError` or `HistoryError` for none."""
    for way in (_last, _file, _id, _name, _commit):
        found = way(history, text)
        if found is not None:
            return found
    raise EvalError(
        f"{text}: no evaluation of {history.path} has this id, recipe, model or commit, and no "
        "file has this name; atom eval list shows the evaluations that there are"
    )


def _stored(history: History, run: RunResult) -> Stored:
    counts = history.evaluated(run.run_id)
    return Stored(run, _in_order(run, counts), lambda task: read_samples(history, run.run_id, task))


def _in_order(run: RunResult, counts: Mapping[str, int]) -> dict[str, int]:
    tasks = run.workload.get("tasks")
    asked = [task for task in tasks if task in counts] if isinstance(tasks, Mapping) else []
    return {task: counts[task] for task in dict.fromkeys([*asked, *counts])}


def _last(history: History, text: str) -> Stored | None:
    match = _LAST.fullmatch(text)
    if match is None:
        return None
    back = int(match[1] or 0)
    runs = history.find(kind=KIND, limit=back + 1)
    if len(runs) <= back:
        there = f"there are {len(runs)}" if runs else "there are none yet: atom eval TASK adds them"
        raise EvalError(f"{text}: of the evaluations in {history.path} {there}")
    return _stored(history, runs[back])


def _file(history: History, text: str) -> Stored | None:
    path = Path(text).expanduser()
    if not text.endswith(_FILE_ENDINGS):
        return None
    if not path.exists():
        raise EvalError(f"{text}: no such file")
    from atom.bench.history.importers import read_results

    found = [loaded for loaded in read_results(path) if loaded.run.kind == KIND]
    if len(found) != 1:
        raise EvalError(f"{text}: holds {len(found) or 'no'} evaluations; one is needed")
    return of_loaded(found[0], text)


def of_loaded(loaded: Loaded, where: str) -> Stored:
    """A run as a file has it."""
    told = loaded.evaluated

    def read(task: str) -> list[Sample]:
        return list(samples_of(told[task], where))

    counts = {task: len(samples) for task, samples in told.items()}
    return Stored(loaded.run, _in_order(loaded.run, counts), read)


def _id(history: History, text: str) -> Stored | None:
    if not text or not history.ids(text):
        return None
    run = history.get(text)
    if run.kind != KIND:
        raise EvalError(f"{run.run_id} is no evaluation (kind {run.kind}): see atom bench show")
    return _stored(history, run)


def _name(history: History, text: str) -> Stored | None:
    if not text:
        return None
    runs = (
        history.find(kind=KIND, recipe=text, limit=1)
        or history.find(kind=KIND, name=text, limit=1)
        or history.find(kind=KIND, model=text, limit=1)
    )
    return _stored(history, runs[0]) if runs else None


def _commit(history: History, text: str) -> Stored | None:
    if _COMMIT.fullmatch(text) is None:
        return None
    runs = history.find(kind=KIND, commit=text, limit=1)
    return _stored(history, runs[0]) if runs else None
