"""Which samples of a run are wanted: wrong ones, those of a task, one by number, by their text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from atom.bench import names
from atom.config.fields import nearest
from atom.eval.compare import first_metric, main_metric
from atom.eval.errors import EvalError
from atom.eval.stored import Stored
from atom.eval.types import Sample
from atom.eval.wording import question


class Wanted(NamedTuple):
    """Conditions that all hold. `metric` decides what is wrong; None: the task's main one."""

    task: str | None = None
    sample: int | None = None  # `Sample.doc_id`
    wrong: bool = False
    right: bool = False
    grep: str | None = None  # a regular expression, without regard to case
    metric: str | None = None


class Chosen(NamedTuple):
    """Samples of one task."""

    task: str
    metric: str  # by which right and wrong are told
    samples: list[Sample]
    total: int  # of the task


def choose(stored: Stored, wanted: Wanted) -> list[Chosen]:
    """The samples by task; a task without any is left out, but for the one that was named."""
    if not stored.counts:
        raise EvalError(
            f"run {stored.run.run_id} has no samples: it holds scores only (an imported result "
            "needs its samples_*.jsonl beside it: lm-eval's --log_samples)"
        )
    if wanted.task is not None and wanted.task not in stored.counts:
        raise EvalError(
            f"--task {wanted.task}: run {stored.run.run_id} has samples of "
            f"{', '.join(stored.counts)}{nearest(wanted.task, stored.counts)}"
        )
    tasks = [wanted.task] if wanted.task is not None else list(stored.counts)
    if wanted.sample is not None and len(tasks) > 1:
        raise EvalError(f"--sample {wanted.sample}: of which task? Add --task {' or '.join(tasks)}")
    pattern = _pattern(wanted.grep)
    found = []
    for task in tasks:
        samples = stored.read(task)
        metric = _metric(stored, task, samples, wanted)
        kept = [s for s in samples if _meets(s, metric, wanted, pattern)]
        if kept or len(tasks) == 1:
            found.append(Chosen(task, metric, kept, len(samples)))
    if wanted.sample is not None and not any(each.samples for each in found):
        numbers = [sample.doc_id for sample in stored.read(tasks[0])]
        raise EvalError(
            f"--sample {wanted.sample}: {tasks[0]} has {len(numbers):,} samples, "
            f"{min(numbers)} to {max(numbers)}"
        )
    return found


def _pattern(text: str | None) -> re.Pattern[str] | None:
    if text is None:
        return None
    try:
        return re.compile(text, re.IGNORECASE)
    except re.error as error:
        raise EvalError(f"--grep {text}: not a regular expression ({error})") from None


def _metric(stored: Stored, task: str, samples: Sequence[Sample], wanted: Wanted) -> str:
    there = list(dict.fromkeys(name for sample in samples for name in sample.metrics))
    if not there:
        if wanted.wrong or wanted.right:
            raise EvalError(f"--wrong: {task} has no metric of single samples")
        return ""
    if wanted.metric is not None:
        check_metric(wanted.metric, task, there)
        metric = first_metric(there, wanted.metric)
    else:
        metric = first_metric(there, main_metric(stored.run, stored.run, task))
    if (wanted.wrong or wanted.right) and not is_binary(samples, metric):
        raise EvalError(
            f"--wrong: {task}'s {metric} is no right or wrong; choose another with --metric"
        )
    return metric


def check_metric(wanted: str, task: str, there: Sequence[str]) -> None:
    """Whether a task has a metric of this name, with or without its filter, or a filter so."""
    if not any(wanted in (name, *name.split(",", 1)) for name in there):
        told = f"{task} has {', '.join(there)}{nearest(wanted, there)}"
        raise EvalError(f"--metric {wanted}: {told}")


def is_binary(samples: Sequence[Sample], metric: str) -> bool:
    return all(sample.metrics.get(metric, 0.0) in (0.0, 1.0) for sample in samples)


def is_right(sample: Sample, metric: str) -> bool | None:
    """None where the metric is no right or wrong, or the sample lacks it."""
    value = sample.metrics.get(metric)
    if value not in (0.0, 1.0) or names.better(metric) == "lower":
        return None
    return value == 1.0


def _meets(sample: Sample, metric: str, wanted: Wanted, pattern: re.Pattern[str] | None) -> bool:
    if wanted.sample is not None and sample.doc_id != wanted.sample:
        return False
    right = sample.metrics.get(metric) == 1.0
    if (wanted.wrong and right) or (wanted.right and not right):
        return False
    return pattern is None or any(pattern.search(text) for text in _texts(sample))


def _texts(sample: Sample) -> list[str]:
    """What is looked through: the question, not the examples before it, which all share."""
    answers = [str(answer.get("text", "")) for answer in sample.answers]
    return [question(sample), sample.target, *answers, *sample.filtered.values()]
