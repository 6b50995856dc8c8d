"""Steps of traces without labels: by the modules that hold the layers, and by graph launches.

Guesses, and called so by `Step.found_by`: what such a step computed is not known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from atom.trace.kernels import kernel_class
from atom.trace.launches import Launches
from atom.trace.scopes import Intervals, Scopes, by_track, split_scope
from atom.trace.types import I32, I64, RankTrace

# A graph of so many kernels is a whole forward, not the piece between two attentions.
WHOLE_GRAPH = 64
_BEFORE = ("prepare", "embed")  # scopes that begin a step rather than end the one before


@dataclass(frozen=True, slots=True)
class Span:
    """A step on a thread of the host."""

    label: str
    found_by: str  # "module", "graph"
    track: int
    start: int
    end: int


@dataclass(slots=True)
class _Root:
    """A scope within no other."""

    track: int
    start: int
    end: int
    name: str
    layer: int  # its own; -1 none
    holds: bool  # whether there are layers in it, or it is of one


def module_steps(trace: RankTrace, scopes: Scopes) -> list[Span]:
    """One step per call of the outermost module that holds the layers, with the scopes that follow
    it (logits, sampling); where layers stand alone, one per pass through them."""
    spans: list[Span] = []
    group: list[_Root] = []
    waiting: list[_Root] = []  # what begins the next step

    def close() -> None:
        if any(root.holds for root in group):
            first = next(root for root in group if root.holds)
            name = "forward" if first.layer >= 0 else first.name
            start, end = group[0].start, max(root.end for root in group)
            spans.append(Span(f"{name} {len(spans)}", "module", first.track, start, end))
        group.clear()

    for root in _roots(trace, scopes):
        inside = [each for each in group if each.holds]
        other_thread = bool(group) and group[0].track != root.track
        if other_thread or (root.holds and inside and _again(inside[-1], root)):
            close()
            group.extend(each for each in waiting if each.track == root.track)
            waiting.clear()
        elif root.holds and waiting:
            group.extend(waiting)
            waiting.clear()
        begins = root.name.startswith(_BEFORE) and (inside or waiting)
        if not root.holds and (waiting or begins):
            waiting.append(root)
        else:
            group.append(root)
    close()
    return spans


def _again(last: _Root, root: _Root) -> bool:
    """Whether a holder of layers begins another pass."""
    if last.layer < 0 or root.layer < 0:
        return True
    return root.layer < last.layer or (root.layer == last.layer and root.name == last.name)


def _roots(trace: RankTrace, scopes: Scopes) -> list[_Root]:
    """By thread and time."""
    rows, parent = scopes.rows, scopes.parent
    if not len(rows):
        return []
    layer_of = np.array([split_scope(name)[0] for name in scopes.names], dtype=np.int64)
    # A scope's own row lies in itself, or in one that begins with it: of the same layer or deeper.
    own = layer_of[scopes.cpu[rows]]
    root = np.arange(len(rows))
    while True:
        up = np.where(parent[root] >= 0, parent[root], root)
        if np.array_equal(up, root):
            break
        root = up
    holds = np.zeros(len(rows), dtype=bool)
    holds[root[own >= 0]] = True
    tops = np.flatnonzero(parent < 0)
    cpu = trace.cpu
    tops = tops[np.lexsort((cpu.ts[rows[tops]], cpu.track[rows[tops]]))]
    found = []
    for index in tops.tolist():
        row = int(rows[index])
        name = scopes.names[int(scopes.cpu[row])]
        start = int(cpu.ts[row])
        end = start + max(int(cpu.dur[row]), 0)
        layer, module = split_scope(name)
        found.append(_Root(int(cpu.track[row]), start, end, module, layer, bool(holds[index])))
    return found


def graph_steps(trace: RankTrace, launches: Launches, known: Sequence[Span]) -> list[Span]:
    """One step per launch of a graph of a whole forward; pieces are joined until their sequence
    begins anew. Launches within `known` spans are theirs already."""
    runtime = trace.runtime
    rows = outside(trace, launches.graph_rows, known)
    rows = rows[np.lexsort((runtime.ts[rows], runtime.track[rows]))]
    kernels = _kernels_of(launches)
    spans: list[Span] = []
    pieces: list[tuple[int, bytes]] = []

    def add(first: int, last: int) -> None:
        end = int(runtime.ts[last] + max(int(runtime.dur[last]), 0))
        label = f"graph launch {len(spans)}"
        track = int(runtime.track[first])
        spans.append(Span(label, "graph", track, int(runtime.ts[first]), end))

    def close() -> None:
        if pieces:
            add(pieces[0][0], pieces[-1][0])
            pieces.clear()

    for row in rows.tolist():
        work = kernels.get(row)
        if work is None:
            continue  # nothing tells what it was
        names = trace.gpu.name[work]
        if _is_whole(trace, names):
            close()
            add(row, row)
            continue
        sequence = names.tobytes()
        moved = bool(pieces) and runtime.track[pieces[0][0]] != runtime.track[row]
        anew = bool(pieces) and sequence == pieces[0][1] != pieces[-1][1]
        if moved or anew:
            close()
        pieces.append((row, sequence))
    close()
    return spans


def outside(trace: RankTrace, rows: I64, known: Sequence[Span]) -> I64:
    """Those rows of trace.runtime that start in none of the spans."""
    track = np.array([span.track for span in known], dtype=np.int64)
    start = by_track(trace, track, np.array([span.start for span in known], dtype=np.int64))
    end = by_track(trace, track, np.array([span.end for span in known], dtype=np.int64))
    at = by_track(trace, trace.runtime.track[rows], trace.runtime.ts[rows])
    return rows[Intervals(start, end).at(at) < 0]


def _kernels_of(launches: Launches) -> dict[int, I64]:
    """Graph launch -> its rows of GPU work, by time."""
    rows = np.flatnonzero(launches.from_graph)
    rows = rows[np.argsort(launches.row[rows], kind="stable")]
    owners, first = np.unique(launches.row[rows], return_index=True)
    parts = np.split(rows, first[1:]) if len(first) else []
    return dict(zip(owners.tolist(), parts, strict=True))


def _is_whole(trace: RankTrace, names: I32) -> bool:
    if len(names) >= WHOLE_GRAPH:
        return True
    classes = {kernel_class(trace.strings[index]) for index in np.unique(names).tolist()}
    return "attention" in classes
