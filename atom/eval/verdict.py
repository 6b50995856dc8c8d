"""Is a score good enough? Scores against thresholds and baselines, each with its noise.

A score on N documents is an estimate. A verdict therefore says whether the score lies on the wrong
side of its threshold and whether the distance is more than what other documents of the same kind
could have given (the interval of 95 %). Below is below: the exit code does not depend on the noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from atom.config.fields import nearest
from atom.eval.errors import EvalError
from atom.eval.settings import Expectation
from atom.eval.types import Score, TaskResult

State = Literal["ok", "below", "none"]

BELOW = 3  # exit code
AT_RISK = 0.005  # margin under which a score is near its threshold
TRUNCATED = 0.01  # share of answers cut at max_tokens from which a score is to be doubted
Z_95 = 1.959964


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """What a score is compared with. `stderr` None: not known. `run_id` "": a plain number."""

    value: float
    stderr: float | None = None
    run_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One metric of one task with what was expected of it."""

    task: str
    metric: str  # "exact_match,strict-match"
    score: Score
    threshold: float | None = None
    baseline: Baseline | None = None

    @property
    def name(self) -> str:
        return f"{self.task}/{self.metric}"

    @property
    def margin(self) -> float | None:
        """How far the score is on the good side of the threshold; negative on the bad one."""
        if self.threshold is None:
            return None
        distance = self.score.value - self.threshold
        return distance if self.score.higher_is_better else -distance

    @property
    def state(self) -> State:
        margin = self.margin
        if margin is None:
            return "none"
        return "ok" if margin >= 0 else "below"

    @property
    def beyond_noise(self) -> bool | None:
        """Whether the threshold is outside the score's interval; None where there is none."""
        low, high = self.score.low, self.score.high
        if self.threshold is None or low is None or high is None or low == high:
            return None
        return not low <= self.threshold <= high

    @property
    def recovery(self) -> float | None:
        """The share of the baseline's score that is reached."""
        if self.baseline is None or not self.baseline.value:
            return None
        return self.score.value / self.baseline.value

    @property
    def difference(self) -> float | None:
        return None if self.baseline is None else self.score.value - self.baseline.value

    def difference_noise(self) -> float | None:
        """Half the interval of 95 % of the difference, as of independent documents.

        Two runs on the same documents differ by less: `atom eval compare` pairs them.
        """
        if self.baseline is None or self.score.stderr is None or not self.baseline.run_id:
            return None
        return Z_95 * math.hypot(self.score.stderr, self.baseline.stderr or 0.0)

    def word(self) -> str:
        """For a table's cell."""
        if self.state == "none":
            return ""
        margin = self.margin
        assert margin is not None
        if self.state == "below":
            return "below, within noise" if self.beyond_noise is False else "below"
        if margin < AT_RISK:
            return "ok, at risk"
        return "ok, within noise" if self.beyond_noise is False else "ok"

    def sentence(self) -> str:
        """The verdict in full; "" where nothing was expected."""
        margin = self.margin
        if margin is None or self.threshold is None:
            return ""
        value = f"{self.name} {self.score.value:.4f}"
        side = "above" if self.score.higher_is_better == (margin >= 0) else "below"
        said = f"{value} is {abs(margin):.4f} {side} its threshold {self.threshold:g}"
        if not margin:
            said = f"{value} is at its threshold"
        low, high = self.score.low, self.score.high
        if self.beyond_noise is None or low is None or high is None:
            return f"{said} (its noise is not known)"
        noise = "more than" if self.beyond_noise else "within"
        return f"{said}, {noise} the noise (95% interval {low:.4f} to {high:.4f})"

    def as_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "task": self.task,
            "metric": self.metric,
            "value": self.score.value,
            "state": self.state,
        }
        if self.threshold is not None:
            found |= {
                "threshold": self.threshold,
                "margin": self.margin,
                "beyond_noise": self.beyond_noise,
            }
        if self.baseline is not None:
            found |= {
                "baseline": self.baseline.value,
                "baseline_run": self.baseline.run_id or None,
                "difference": self.difference,
                "recovery": self.recovery,
            }
        return found


FindRun = Callable[[str, str, str], Baseline]  # (text, task, metric); raises `EvalError`


def judge(
    results: Sequence[TaskResult], expectations: Sequence[Expectation], find_run: FindRun
) -> tuple[list[Judged], list[str]]:
    """Every main metric and every one that something is expected of, in the results' order.

    `find_run` looks a baseline up that is a run. The second list: expectations that could not be
    held against anything (a metric that the task has not), each in a sentence; after an hour of
    asking they are no reason to lose the results.
    """
    problems: list[str] = []
    wanted = _by_metric(results, expectations, problems)
    judged = []
    for result in results:
        for metric, score in result.metrics.items():
            held = wanted.get((result.task, metric))
            if held is None and metric != result.main_metric:
                continue
            judged.append(_judged(result.task, metric, score, held, find_run, problems))
    return judged, problems


def _by_metric(
    results: Sequence[TaskResult], expectations: Sequence[Expectation], problems: list[str]
) -> dict[tuple[str, str], Expectation]:
    known = {result.task: result for result in results}
    found = {}
    for one in expectations:
        result = known.get(one.task)
        if result is None:
            if one.asked:
                problems.append(f"{one.where} {one.task}: it was not evaluated")
            continue
        try:
            found[one.task, metric_of(result, one)] = one
        except EvalError as error:
            problems.append(str(error))
    return found


def metric_of(result: TaskResult, one: Expectation) -> str:
    """`exact_match` means its first filter; nothing, the main metric. Raises `EvalError`."""
    if one.metric is None:
        return result.main_metric
    if one.metric in result.metrics:
        return one.metric
    for metric in result.metrics:
        if metric.partition(",")[0] == one.metric:
            return metric
    raise EvalError(
        f"{one.where}: {one.task} has no metric {one.metric}"
        f"{nearest(one.metric, result.metrics)}; it has {', '.join(result.metrics)}"
    )


def _judged(
    task: str,
    metric: str,
    score: Score,
    held: Expectation | None,
    find_run: FindRun,
    problems: list[str],
) -> Judged:
    if held is None:
        return Judged(task=task, metric=metric, score=score)
    baseline = None
    if isinstance(held.baseline, str):
        try:
            baseline = find_run(held.baseline, task, metric)
        except EvalError as error:
            problems.append(str(error))
    elif held.baseline is not None:
        baseline = Baseline(value=held.baseline)
    return Judged(
        task=task, metric=metric, score=score, threshold=held.threshold, baseline=baseline
    )


def truncated_tasks(results: Sequence[TaskResult]) -> list[str]:
    """A sentence for each task with answers that were cut; from 1 % on, with what follows."""
    told = []
    for result in results:
        if not result.truncated:
            continue
        said = (
            f"{result.task}: {result.truncated:,} of {result.num_samples:,} answers were cut at "
            "the token limit"
        )
        if result.truncated > TRUNCATED * result.num_samples:
            said += ", so the score may be too low; raise --max-gen-tokens"
        told.append(said)
    return told
