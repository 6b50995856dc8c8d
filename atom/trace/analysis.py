"""From traces to an `Analysis`: every row of GPU work gets its step, layer, module and operator."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from atom.trace.errors import TraceError
from atom.trace.launches import Launches, correlate
from atom.trace.reader import find_traces, read_traces
from atom.trace.scopes import Scopes, find_scopes, split_scope
from atom.trace.steps import FoundSteps, assign_steps
from atom.trace.types import (
    I8,
    I32,
    NONE,
    Analysis,
    Match,
    MatchReport,
    RankModel,
    RankTrace,
)


@dataclass(slots=True)
class Places:
    """Layer and module of every row, while they are being found. [N] each."""

    layer: I32
    module: I32
    op: I32
    op_args: I32
    match: I8


def load(paths: Sequence[Path], capture: Path | None = None, device: str = "auto") -> Analysis:
    """Read files and folders, find the capture that goes with them, explain them.

    Raises:
        TraceError: nothing there is a trace, or it has no GPU events or no steps.
    """
    traces = read_traces(find_traces(paths))
    return analyze(traces, None)


def analyze(traces: Sequence[RankTrace], capture: RankTrace | None) -> Analysis:
    """All ranks of one profile; `capture` names the kernels that graphs replay."""
    ranks = [analyze_rank(trace, capture) for trace in sorted(traces, key=lambda each: each.rank)]
    return Analysis(
        ranks=ranks,
        warnings=tuple(w for trace in traces for w in trace.warnings),
        capture=capture.path if capture else None,
    )


def analyze_rank(trace: RankTrace, capture: RankTrace | None) -> RankModel:
    """One rank's trace, explained as far as it can be."""
    launches = correlate(trace)
    scopes = find_scopes(trace)
    found = assign_steps(trace, launches, scopes)
    names = _Modules()
    places = _by_launch(trace, launches, scopes, names)
    num_layers = int(places.layer.max(initial=NONE)) + 1
    return RankModel(
        trace=trace,
        steps=found.steps,
        step=found.of_row,
        layer=places.layer,
        module=places.module,
        op=places.op,
        op_args=places.op_args,
        match=places.match,
        launch=launches.start,
        modules=names.names,
        num_layers=num_layers,
        layers_by="scope" if num_layers else "",
        report=_report(trace, found, places.match, ()),
    )


class _Modules:
    """Modules' names by index."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._index: dict[str, int] = {}

    def __call__(self, name: str) -> int:
        if name not in self._index:
            self._index[name] = len(self.names)
            self.names.append(name)
        return self._index[name]


def _by_launch(trace: RankTrace, launches: Launches, scopes: Scopes, modules: _Modules) -> Places:
    """What the launch of each row lies in; a graph's rows get nothing here."""
    split = [split_scope(name) for name in scopes.names]
    layer_of = np.array([layer for layer, _ in split] + [NONE], dtype=np.int32)
    module_of = np.array([modules(name) for _, name in split] + [NONE], dtype=np.int32)
    own = ~launches.from_graph
    at_runtime = np.where(own, launches.row, NONE)
    scope = _at(scopes.runtime, at_runtime)
    op = _at(scopes.op, at_runtime)
    op = np.where(launches.op >= 0, launches.op, op)
    scope = np.where(launches.op >= 0, _at(scopes.cpu, launches.op), scope)
    return Places(
        layer=layer_of[scope],
        module=module_of[scope],
        op=_at(trace.cpu.name, op),
        op_args=_at(trace.cpu.args, op),
        match=np.where(scope >= 0, Match.LAUNCH, Match.NONE).astype(np.uint8),
    )


def _at(values: I32, index: np.ndarray[tuple[int], np.dtype[np.integer]]) -> I32:
    if not len(values):
        return np.full(len(index), NONE, dtype=np.int32)
    return np.where(index >= 0, values[np.maximum(index, 0)], NONE).astype(np.int32)


def _report(trace: RankTrace, found: FoundSteps, match: I8, notes: tuple[str, ...]) -> MatchReport:
    """Over the rows of steps that count."""
    counts = np.array([step.counts for step in found.steps] + [False], dtype=bool)
    rows = np.flatnonzero(counts[found.of_row])
    lost = rows[match[rows] == Match.NONE]
    unmatched: Mapping[str, int] = Counter(
        trace.strings[name] for name in trace.gpu.name[lost].tolist()
    )
    return MatchReport(
        rows={how: int((match[rows] == how).sum()) for how in Match},
        ns={how: int(trace.gpu.dur[rows][match[rows] == how].sum()) for how in Match},
        unmatched=dict(sorted(unmatched.items(), key=lambda item: -item[1])),
        notes=notes,
    )


def no_steps(trace: RankTrace) -> TraceError:
    return TraceError(f"{trace.path}: no steps found")
