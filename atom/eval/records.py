"""Evaluations out of and into the history: runs with their samples.

The history stores samples as JSON objects; here they are `Sample`s again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from atom.bench.history import History
from atom.bench.types import RunResult
from atom.eval.errors import EvalError
from atom.eval.types import Sample


def add_run(history: History, run: RunResult, samples: Iterable[Sample]) -> bool:
    """Store a run with its samples, both or neither; False if the run is there already.

    What cannot be stored is saved in a file that `atom bench import` takes in:
    `HistoryError.saved`.
    """
    return history.add(run, evaluated=by_task(samples))


def store_samples(history: History, run_id: str, samples: Iterable[Sample]) -> None:
    """Give samples to a run of the history that has none of their tasks yet."""
    history.add(history.get(run_id), evaluated=by_task(samples))


def read_samples(history: History, run_id: str, task: str | None = None) -> list[Sample]:
    """The samples of one task, or of all, each task's in the order in which they were asked."""
    tasks = history.evaluated(run_id)
    if task is not None and task not in tasks:
        return []
    return [
        sample
        for name in (tasks if task is None else [task])
        for sample in samples_of(history.evaluations(run_id, name), run_id)
    ]


def by_task(samples: Iterable[Sample]) -> dict[str, list[Sample]]:
    found: dict[str, list[Sample]] = {}
    for sample in samples:
        found.setdefault(sample.task, []).append(sample)
    return found


def samples_of(objects: Iterable[Mapping[str, Any]], where: str) -> Iterator[Sample]:
    """JSON objects as samples; `where` names their place if one is damaged."""
    for number, tree in enumerate(objects):
        try:
            sample = msgspec.convert(tree, Sample, strict=False)
        except msgspec.ValidationError as error:
            raise EvalError(f"{where}: sample {number} cannot be read: {error}") from None
        for answer in sample.answers:
            # JSON has no infinity: the history holds it as text, and this field has no type.
            if isinstance(answer.get("logprob"), str):
                answer["logprob"] = float(answer["logprob"])
        yield sample
