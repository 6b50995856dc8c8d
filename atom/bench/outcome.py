"""What came of a benchmark: its exit code, its JSON, what the tables do not say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from atom.bench.errors import CLIENT_BOUND, INTERRUPTED, REGRESSION, TOO_MANY_ERRORS
from atom.bench.history.runs import load_text
from atom.bench.metrics import result_json
from atom.bench.types import RunResult

if TYPE_CHECKING:
    from atom.bench.compare import GateReport
    from atom.bench.search import SearchReport

STORE_FAILED = 2


@dataclass(frozen=True, slots=True)
class Traced:
    """A regression that was profiled: its traces, and those of the last run before that has any."""

    run_id: str
    now: list[str]
    before_id: str  # "" without any
    before: list[str]


@dataclass(slots=True)
class Report:
    """What came of it."""

    runs: list[RunResult] = field(default_factory=list)
    search: SearchReport | None = None
    gates: list[GateReport] = field(default_factory=list)
    traced: list[Traced] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)  # what could not be kept where it belongs
    interrupted: bool = False
    failed: int = 0  # exit code of what ended it before its time

    def exit_code(self) -> int:
        """The worst that happened; a search is judged by its answer, not by its points."""
        states = {run.status for run in self.runs}
        if self.failed:
            return self.failed
        if self.interrupted or "interrupted" in states:
            return INTERRUPTED
        if self.search is None and "errors" in states:
            return TOO_MANY_ERRORS
        if "client_bound" in states:
            return CLIENT_BOUND
        missed = "slo_missed" in states if self.search is None else self.search.best is None
        if missed or any(gate.regressed for gate in self.gates):
            return REGRESSION
        return STORE_FAILED if self.problems else 0

    def as_json(self, traces: Mapping[str, Sequence[str]] = MappingProxyType({})) -> Any:
        """`--json`: the run's document; several: a list of them; a search: its answer and them.

        `traces`: what the traces say of a regression, by run id.
        """
        gates = {gate.run_id: gate.as_json() for gate in self.gates}
        documents = []
        for run in self.runs:
            document = result_json(run)
            if run.run_id in gates:
                document["atom"]["gate"] = gates[run.run_id]
            if run.run_id in traces:
                document["atom"]["traces"] = list(traces[run.run_id])
            documents.append(document)
        if self.search is not None:
            return {"find_max": search_json(self.search), "runs": documents}
        return documents[0] if len(documents) == 1 else documents

    def last_words(self) -> list[str]:
        """What the tables do not say: the gate's verdicts, where the runs are."""
        words = []
        titles = {run.run_id: load_text(run.load) for run in self.runs}
        for gate in self.gates:
            where = f" ({titles.get(gate.run_id, '')})" if len(self.runs) > 1 else ""
            words.append(f"gate{where}: {gate.status}: {gate.sentence}")
        words += [f"problem: {text}" for text in self.problems]
        if self.interrupted:
            kept = "what was measured is kept" if self.runs else "nothing had been measured yet"
            words.append(f"interrupted: {kept}")
        return words


def search_json(found: SearchReport) -> dict[str, Any]:
    """A search's answer as plain data; its points' full figures are their runs'."""
    return {
        "best": found.best,
        "above": found.above,
        "limiting": found.limiting,
        "reason": found.reason,
        "objectives": dict(found.objectives),
        "points": [
            {"load": p.load, "verdict": p.verdict, "margin": p.margin, "limiting": p.limiting}
            for p in found.points
        ],
    }
