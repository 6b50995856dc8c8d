"""Baselines that are runs, looked up before anything is asked: a wrong name costs no time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from atom.bench.history import History, HistoryError
from atom.bench.types import RunResult
from atom.eval.errors import EvalError
from atom.eval.settings import Expectation
from atom.eval.types import Sample
from atom.eval.verdict import Z_95, Baseline, Judged

if TYPE_CHECKING:
    from atom.eval.compare import MetricComparison


class Baselines:
    """The runs that expectations name. Raises `EvalError` for one that is not there."""

    def __init__(self, store: History, expectations: Sequence[Expectation]) -> None:
        self._store = store
        self._runs: dict[str, RunResult] = {}
        for one in expectations:
            if isinstance(one.baseline, str) and one.baseline not in self._runs:
                self._runs[one.baseline] = _run(store, one)

    def find(self, text: str, task: str, metric: str) -> Baseline:
        """The score of this metric in the run of that name."""
        run = self._runs[text]
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

        Absent where the baseline's samples are not in the history or share no document.
        """
        from atom.eval.compare import compare
        from atom.eval.records import by_task, read_samples

        wanted = {one.name: one.baseline.run_id for one in judged if one.baseline is not None}
        now = by_task(samples)
        found: dict[str, MetricComparison] = {}
        for earlier in {r.run_id: r for r in self._runs.values()}.values():
            try:
                before = by_task(read_samples(self._store, earlier.run_id))
            except HistoryError:  # a file's run, which is not in the history
                continue
            for task in compare(earlier, run, before, now).tasks if before else ():
                for metric in task.metrics:
                    name = f"{task.task}/{metric.metric}"
                    if wanted.get(name) == earlier.run_id:
                        found[name] = metric
        return found


def _run(store: History, one: Expectation) -> RunResult:
    """The newest evaluation that the text names: an id, a recipe, a commit, a file's run."""
    assert isinstance(one.baseline, str)
    found = [run for run in store.resolve(one.baseline) if run.kind == "eval"]
    if not found:
        raise EvalError(
            f"{one.where} {one.task}={one.baseline}: it names no evaluation (atom eval list)"
        )
    return max(found, key=lambda run: run.run_id)
