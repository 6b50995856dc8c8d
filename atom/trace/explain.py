"""One rank: from launches, scopes and steps to a module for every row of GPU work.

What was launched by itself has its launch's scope. What a graph replays gets it from the capture,
or from a step of the same run that was launched by itself; what nothing explains may be placed by
repeating blocks of kernels. Each row says which of these it was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from atom.trace.launches import Launches
from atom.trace.mapping import (
    EagerStep,
    Replay,
    Template,
    capture_templates,
    eager_templates,
    map_blocks,
    map_replays,
)
from atom.trace.scopes import Scopes, find_scopes, split_scope
from atom.trace.steps import FoundSteps
from atom.trace.types import (
    I8,
    I32,
    I64,
    NONE,
    Match,
    MatchReport,
    RankModel,
    RankTrace,
    Step,
)

VAGUE = 0.5  # of the rows of steps: a scope that holds more is no module


class Index:
    """Numbers for names, in the order they come."""

    def __init__(self, names: Sequence[str] = ()) -> None:
        self.names: list[str] = list(names)
        self._index = {name: index for index, name in enumerate(self.names)}

    def __call__(self, name: str) -> int:
        index = self._index.get(name)
        if index is None:
            index = self._index[name] = len(self.names)
            self.names.append(name)
        return index


@dataclass(slots=True)
class Places:
    """What is known of each row of GPU work. [N] each, filled in as it is found."""

    scope: I32  # index into the scopes of all files
    op: I32  # string of the trace
    op_args: I32
    match: I8
    layer: I32
    module: I32


@dataclass(frozen=True, slots=True)
class Seen:
    """A file with what the modules round its calls are."""

    trace: RankTrace
    scopes: Scopes
    place: I32  # [rows of trace.runtime] index into the scopes of all files


def explain(
    trace: RankTrace,
    launches: Launches,
    scopes: Scopes,
    found: FoundSteps,
    captures: Sequence[RankTrace] = (),
) -> RankModel:
    """The rank's model; `captures` may be of other ranks."""
    all_scopes = Index()
    run = see(trace, scopes, all_scopes)
    places = _by_launch(run, launches, all_scopes)
    warnings: dict[int, str] = {}
    notes: tuple[str, ...] = ()
    if len(launches.graph_rows):
        seen = [see(each, find_scopes(each), all_scopes) for each in captures]
        templates = [t for each in seen for t in capture_templates(each.trace, each.place)]
        templates += eager_templates(trace, run.place, _eager(trace, launches, found.steps))
        warnings, notes = _replayed(run, launches, found, templates, seen, places)
    modules = Index()
    _split(places, all_scopes, modules)
    known_layers = int(places.layer.max(initial=NONE)) + 1
    notes += _by_blocks(trace, found, places, modules)
    num_layers = int(places.layer.max(initial=NONE)) + 1
    steps = [
        replace(step, warning=_warning(step, warnings.get(step.index, ""))) for step in found.steps
    ]
    own = (places.match == Match.LAUNCH) & (places.layer >= 0)
    return RankModel(
        trace=trace,
        steps=steps,
        step=found.of_row,
        layer=places.layer,
        module=places.module,
        op=places.op,
        op_args=places.op_args,
        match=places.match,
        launch=launches.start,
        modules=modules.names,
        num_layers=num_layers,
        layers_by=_layers_by(num_layers, known_layers, bool(own.any())),
        report=report(trace, steps, found.of_row, places.match, notes),
    )


def _layers_by(num_layers: int, known_layers: int, by_launch: bool) -> str:
    if not num_layers:
        return ""
    return "blocks" if not known_layers else "scope" if by_launch else "capture"


def _by_blocks(
    trace: RankTrace, found: FoundSteps, places: Places, modules: Index
) -> tuple[str, ...]:
    """Guesses layers of the steps that have none, by repeating kernels; returns notes."""
    count = len(found.steps)
    inside = np.flatnonzero(found.of_row >= 0)
    with_layer = inside[places.layer[inside] >= 0]
    layered = np.bincount(found.of_row[with_layer], minlength=count)
    steps = [s for s in found.steps if s.counts and 2 * layered[s.index] < len(s.rows)]
    if not steps:
        return ()
    blocks = map_blocks(trace, [step.rows for step in steps])
    rows = np.concatenate([step.rows for step in steps])
    # A scope round most of a step says less than a block does; any other is better than a guess.
    share = np.bincount(places.module[rows] + 1, minlength=1) / len(rows)
    vague = (places.module[rows] < 0) | (share[places.module[rows] + 1] > VAGUE)
    rows = rows[vague & (places.layer[rows] < 0) & (blocks.part[rows] >= 0)]
    if not len(rows):
        return () if with_layer.size else blocks.notes
    number = np.array([modules(part) for part in blocks.parts], dtype=np.int32)
    places.layer[rows] = blocks.layer[rows]
    places.module[rows] = number[blocks.part[rows]]
    places.match[rows] = Match.BLOCKS
    return blocks.notes


def _warning(step: Step, mapped: str) -> str:
    """The mapping knows pieces that were captured empty; it compares steps of one size, which
    says nothing where sizes are not known."""
    if not step.graph_launches or not len(step.rows):
        return step.warning
    return "" if mapped.startswith("incomplete?") and _size(step) < 0 else mapped


def see(trace: RankTrace, scopes: Scopes, all_scopes: Index) -> Seen:
    own = np.array([all_scopes(name) for name in scopes.names] + [NONE], dtype=np.int32)
    return Seen(trace, scopes, own[scopes.runtime])


def _by_launch(run: Seen, launches: Launches, all_scopes: Index) -> Places:
    """What the launch of each row lies in; a graph's rows get nothing here."""
    trace, scopes = run.trace, run.scopes
    own = np.array([all_scopes(name) for name in scopes.names] + [NONE], dtype=np.int32)
    by_itself = np.where(launches.from_graph, NONE, launches.row)
    named = launches.op >= 0  # by the operator, in place of a launch that the file lacks
    op = np.where(named, launches.op, at(scopes.op, by_itself))
    scope = np.where(named, own[at(scopes.cpu, launches.op)], at(run.place, by_itself))
    return Places(
        scope=scope.astype(np.int32),
        op=at(trace.cpu.name, op),
        op_args=at(trace.cpu.args, op),
        match=np.where(scope >= 0, Match.LAUNCH, Match.NONE).astype(np.uint8),
        layer=np.full(len(scope), NONE, dtype=np.int32),
        module=np.full(len(scope), NONE, dtype=np.int32),
    )


def _eager(trace: RankTrace, launches: Launches, steps: Sequence[Step]) -> list[EagerStep]:
    """Steps that were launched without graphs."""
    return [
        EagerStep(
            label=step.label,
            kind="decode" if step.kind == "decode" else "piecewise",
            size=_size(step),
            rows=step.rows,
            launch=launches.row[step.rows],
        )
        for step in steps
        if step.graph_launches == 0 and len(step.rows) and step.kind != "capture"
    ]


def _size(step: Step) -> int:
    """Of the step's graph: as its label says, else sequences of a decode, tokens of others."""
    for key in ("graph", "bs" if step.kind == "decode" else "tok"):
        value = step.fields.get(key)
        if isinstance(value, int):
            return value
    return NONE


def graph_sizes(steps: Sequence[Step]) -> list[int]:
    """Sizes of the graphs that the steps ran, as far as known."""
    return sorted({_size(step) for step in steps if step.graph_launches} - {NONE})


def _replays(launches: Launches, found: FoundSteps) -> list[Replay]:
    """The graph launches of every step, and those outside of all, each launch by itself."""
    rows = np.flatnonzero(launches.from_graph)
    rows = rows[np.argsort(launches.row[rows], kind="stable")]
    owner = launches.row[rows]
    cut = np.searchsorted(owner, launches.graph_rows)
    ends = np.searchsorted(owner, launches.graph_rows, side="right")
    of_launch = [np.sort(rows[a:b]) for a, b in zip(cut.tolist(), ends.tolist(), strict=True)]
    by_step: dict[int, list[I64]] = {}
    for index, step in enumerate(found.of_graph.tolist()):
        by_step.setdefault(step if step >= 0 else -1 - index, []).append(of_launch[index])
    replays = []
    for number, parts in sorted(by_step.items()):
        step = found.steps[number] if number >= 0 else None
        kind, size = "", NONE
        if step is not None:
            size = _size(step)
            prompt = step.kind in ("prefill", "mixed") or len(parts) > 1
            kind = "piecewise" if prompt else "decode" if step.kind == "decode" else ""
        replays.append(Replay(max(number, NONE), kind, size, tuple(parts)))
    return replays


def _replayed(
    run: Seen,
    launches: Launches,
    found: FoundSteps,
    templates: Sequence[Template],
    captures: Sequence[Seen],
    places: Places,
) -> tuple[dict[int, str], tuple[str, ...]]:
    """Fills in what graphs replay; warnings by step, and notes."""
    trace = run.trace
    mapped = map_replays(trace, _replays(launches, found), templates)
    known = np.flatnonzero(mapped.template >= 0)
    strings = Index(trace.strings)
    for number, template in enumerate(templates):
        mine = known[mapped.template[known] == number]
        if not len(mine):
            continue
        source = next(s for s in (run, *captures) if s.trace is template.source)
        rows = mapped.row[mine]
        call = template.launch[mapped.node[mine]]
        op = at(source.scopes.op, call)
        places.scope[rows] = template.place[mapped.node[mine]]
        places.op[rows] = _moved(source.trace, at(source.trace.cpu.name, op), strings)
        places.op_args[rows] = _moved(source.trace, at(source.trace.cpu.args, op), strings)
        places.match[rows] = np.where(places.scope[rows] >= 0, mapped.match[mine], Match.NONE)
    trace.strings.extend(strings.names[len(trace.strings) :])
    return dict(mapped.warnings), tuple(mapped.notes)


def _moved(source: RankTrace, names: I32, strings: Index) -> I32:
    """A source's strings as the trace's."""
    unique, inverse = np.unique(names, return_inverse=True)
    table = [strings(source.strings[name]) if name >= 0 else NONE for name in unique.tolist()]
    return np.array(table, dtype=np.int32)[inverse.reshape(-1)]


def _split(places: Places, all_scopes: Index, modules: Index) -> None:
    split = [split_scope(name) for name in all_scopes.names]
    layer = np.array([layer for layer, _ in split] + [NONE], dtype=np.int32)
    used = set(np.unique(places.scope).tolist())
    module = np.array(
        [modules(name) if i in used else NONE for i, (_, name) in enumerate(split)] + [NONE],
        dtype=np.int32,
    )
    places.layer, places.module = layer[places.scope], module[places.scope]


def at(values: NDArray[np.int32], index: NDArray[np.integer]) -> I32:
    """values[index], and -1 where the index is -1."""
    if not len(values):
        return np.full(len(index), NONE, dtype=np.int32)
    return np.where(index >= 0, values[np.maximum(index, 0)], NONE).astype(np.int32)


def report(
    trace: RankTrace, steps: Sequence[Step], step: I32, match: I8, notes: Sequence[str]
) -> MatchReport:
    """Over the rows of steps that count."""
    counts = np.array([each.counts for each in steps] + [False], dtype=bool)
    rows = np.flatnonzero(counts[step])
    how, ns = match[rows], trace.gpu.dur[rows]
    lost = Counter(trace.gpu.name[rows[how == Match.NONE]].tolist())
    return MatchReport(
        rows={each: int((how == each).sum()) for each in Match},
        ns={each: int(ns[how == each].sum()) for each in Match},
        unmatched={trace.strings[name]: count for name, count in lost.most_common()},
        notes=tuple(notes),
    )
