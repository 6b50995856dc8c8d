"""Baselines that are runs, looked up before anything is asked: a wrong name costs no time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from atom.bench.history import History
from atom.bench.types import RunResult
from atom.eval.errors import EvalError
from atom.eval.settings import Expectation
from atom.eval.stored import Stored, find
from atom.eval.types import Sample
from atom.eval.verdict import Z_95, Baseline, Judged

if TYPE_CHECKING:
    from atom.eval.compare import MetricComparison


class Baselines:
    """The runs that expectations name. Raises `EvalError` for one that is not there."""

    def __init__(self, store: History, expectations: Sequence[Expectation]) -> None:
        self._found: dict[str, Stored] = {}
        for one in expectations:
            if isinstance(one.baseline, str) and one.baseline not in self._found:
                self._found[one.baseline] = _evaluation(store, one)

    def find(self, text: str, task: str, metric: str) -> Baseline:
        """The score of this metric in the run of that name."""
        run = self._found[text].run
        name = f"{task}/{metric}"
        interval = run.metrics.get(name)
        if interval is None:
            raise EvalError(f"the baseline {run.run_id} has no {name}")
        stderr = (run.provenance.get("eval") or {}).get("stderr", {}).get(name)
        if stderr is None and interval.low < interval.high:
            stderr = (interval.high - interval.low) / 2 / Z_95
        return Baseline(value=interval.value, stderr=stderr, run_id=run.run_id)

    def paired(
        self, run: RunResult, samples: Sequence[Sample], judged: Sequence[Judged]
    ) -> dict[str, MetricComparison]:
        """The run against its baselines, document by document, by metric; `Judged.name` -> result.

        Absent where the baseline has no samples or shares no document.
        """
        from atom.eval.compare import compare
        from atom.eval.records import by_task

        wanted = {one.name: one.baseline.run_id for one in judged if one.baseline is not None}
        now = by_task(samples)
        found: dict[str, MetricComparison] = {}
        for earlier in {one.run.run_id: one for one in self._found.values()}.values():
            before = earlier.samples()
            for task in compare(earlier.run, run, before, now).tasks if before else ():
                for metric in task.metrics:
                    name = f"{task.task}/{metric.metric}"
                    if wanted.get(name) == earlier.run.run_id:
                        found[name] = metric
        return found


def _evaluation(store: History, one: Expectation) -> Stored:
    assert isinstance(one.baseline, str)
    try:
        return find(store, one.baseline)
    except EvalError as error:
        raise EvalError(f"{one.where} {one.task}={one.baseline}: {error}") from None
