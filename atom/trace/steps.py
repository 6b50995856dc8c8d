"""Finds the steps of a run, and which GPU work each launched.

By labels where the file has them; else by the outermost module that holds the layers; else by
graph launches; else by repeating sequences of kernels. What is launched outside of all is nobody's.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from atom.trace.labels import Fields, Label, parse_label
from atom.trace.launches import Launches, correlate
from atom.trace.mapping import find_forwards
from atom.trace.scopes import Intervals, Scopes, by_track, find_scopes
from atom.trace.types import I32, I64, NONE, CpuKind, RankTrace, Step
from atom.trace.unlabelled import graph_steps, module_steps


@dataclass(slots=True)
class Window:
    """A step before its GPU work is known: a span of one thread, or only spans on streams."""

    label: str
    kind: str
    found_by: str
    track: int = NONE
    start: int = NONE
    end: int = NONE
    fields: Fields = field(default_factory=dict)
    externals: set[int] = field(default_factory=set)
    families: set[str] = field(default_factory=set)
    cpu: tuple[int, int] = (NONE, NONE)  # where there is no span: of its first and last launch


@dataclass(frozen=True, slots=True)
class FoundSteps:
    steps: list[Step]
    of_row: I32  # [rows of trace.gpu] index into steps, -1 none
    of_graph: I32  # [launches.graph_rows] index into steps, -1 none


def find_steps(trace: RankTrace) -> list[Step]:
    """The steps of one rank's trace, by the start of their GPU work. May be empty."""
    return assign_steps(trace, correlate(trace), find_scopes(trace)).steps


def assign_steps(trace: RankTrace, launches: Launches, scopes: Scopes) -> FoundSteps:
    """`find_steps` with what is known already, and the step of every row of GPU work."""
    windows = _labelled(trace)
    of_row = np.full(len(trace.gpu), NONE, dtype=np.int64)
    _by_launch(trace, launches, windows, of_row)
    _by_gpu_annotation(trace, launches, windows, of_row)
    if not any(_is_work(window) for window in windows):
        # A label of a warm-up or of a capture alone says nothing about the rest.
        found = _unlabelled(trace, launches, scopes, windows)
        rest = np.full(len(trace.gpu), NONE, dtype=np.int64)
        _by_launch(trace, launches, found, rest)
        if not found:
            found, rest = _by_blocks(trace, launches, of_row < 0)
        of_row = np.where((of_row < 0) & (rest >= 0), rest + len(windows), of_row)
        windows += found
    return _finish(trace, launches, windows, of_row)


def _is_work(window: Window) -> bool:
    return window.kind not in ("capture", "dummy")


def _unlabelled(
    trace: RankTrace, launches: Launches, scopes: Scopes, known: Sequence[Window]
) -> list[Window]:
    spans = module_steps(trace, scopes)
    spans += graph_steps(trace, launches, spans)
    inside = Intervals(*_edges(trace, known))
    return [
        Window(span.label, "step", span.found_by, span.track, span.start, span.end)
        for span in spans
        if inside.at(by_track(trace, np.array([span.track]), np.array([span.start])))[0] < 0
    ]


def _by_blocks(
    trace: RankTrace, launches: Launches, free: NDArray[np.bool_]
) -> tuple[list[Window], I64]:
    """Passes through blocks of kernels that repeat, on each device; and the rows of each."""
    windows: list[Window] = []
    of_row = np.full(len(trace.gpu), NONE, dtype=np.int64)
    for device in np.unique(trace.gpu.device).tolist():
        rows = np.flatnonzero(free & (trace.gpu.device == device)).astype(np.int64)
        for forward in find_forwards(trace, rows):
            of_row[forward.rows] = len(windows)
            window = Window(f"forward {len(windows)}", "step", "blocks")
            launched = launches.start[forward.rows]
            launched = launched[launched >= 0]
            if len(launched):
                window.cpu = (int(launched.min()), int(launched.max()))
            windows.append(window)
    return windows, of_row


def _labelled(trace: RankTrace) -> list[Window]:
    """Label annotations; one within another is the same step, unless it is a draft or a capture."""
    cpu = trace.cpu
    rows = np.flatnonzero(cpu.kind == CpuKind.ANNOTATION)
    labels = _labels(trace, cpu.name[rows])
    rows = rows[np.isin(cpu.name[rows], list(labels))]
    rows = rows[np.lexsort((-cpu.dur[rows], cpu.ts[rows], cpu.track[rows]))]
    windows: list[Window] = []
    open_: list[Window] = []
    for row in rows.tolist():
        label = labels[int(cpu.name[row])]
        track, start = int(cpu.track[row]), int(cpu.ts[row])
        end = start + max(int(cpu.dur[row]), 0)
        while open_ and (open_[-1].track != track or open_[-1].end <= start):
            open_.pop()
        outer = open_[-1] if open_ else None
        if outer is not None and not _apart(outer, label):
            if outer.kind == "step":
                outer.kind = label.kind
            outer.fields = {**label.fields, **outer.fields}
            outer.externals.add(int(cpu.external[row]))
            if label.family not in outer.families:
                # Two engines' labels round one forward: the inner one is the forward proper, the
                # outer one also holds what is prepared beside the forward before.
                outer.families.add(label.family)
                outer.label, outer.start, outer.end = label.name, start, end
            continue
        window = Window(
            label.name, label.kind, "label", track, start, end, dict(label.fields),
            {int(cpu.external[row])}, {label.family},
        )  # fmt: skip
        windows.append(window)
        open_.append(window)
    _extend(trace, windows)
    return windows


def _extend(trace: RankTrace, windows: Sequence[Window]) -> None:
    """Labels of no length: their end is missing, and nothing of the host's follows but launches.
    They last until the next label of their thread."""
    for index, window in enumerate(windows):
        if window.end <= window.start:
            following = windows[index + 1] if index + 1 < len(windows) else None
            if following is not None and following.track == window.track:
                window.end = following.start
            else:
                calls = trace.runtime.ts[trace.runtime.track == window.track]
                window.end = max(window.start, int(calls.max(initial=NONE)) + 1)


def _apart(outer: Window, label: Label) -> bool:
    """Whether a label within another is a step of its own."""
    if outer.kind in ("capture", "dummy"):
        return False
    return label.kind in ("draft", "capture") and outer.kind != label.kind


def _labels(trace: RankTrace, names: I32) -> dict[int, Label]:
    found = {}
    for index in np.unique(names).tolist():
        label = parse_label(trace.strings[index])
        if label is not None:
            found[index] = label
    return found


def _edges(trace: RankTrace, windows: Sequence[Window]) -> tuple[I64, I64]:
    """Starts and ends on the axis of `by_track`."""
    track = np.array([window.track for window in windows], dtype=np.int64)
    return (
        by_track(trace, track, np.array([window.start for window in windows], dtype=np.int64)),
        by_track(trace, track, np.array([window.end for window in windows], dtype=np.int64)),
    )


def _window_at(trace: RankTrace, windows: Sequence[Window], track: I32, ts: I64) -> I64:
    """Index of the innermost window round each moment of a thread; -1 none."""
    own = [i for i, window in enumerate(windows) if window.start >= 0]
    if not own:
        return np.full(len(ts), NONE, dtype=np.int64)
    found = Intervals(*_edges(trace, [windows[i] for i in own])).at(by_track(trace, track, ts))
    return np.where(found >= 0, np.array(own, dtype=np.int64)[found], NONE)


def _by_launch(
    trace: RankTrace, launches: Launches, windows: Sequence[Window], of_row: I64
) -> None:
    """Rows whose launch starts within a window on its thread."""
    rows = np.flatnonzero((of_row < 0) & (launches.start >= 0))
    of_row[rows] = _window_at(trace, windows, launches.track[rows], launches.start[rows])


def _by_gpu_annotation(
    trace: RankTrace, launches: Launches, windows: list[Window], of_row: I64
) -> None:
    """Rows without a launch in the file, or launched on a thread that has no labels: by the
    annotation's span on their stream. Labels that only the device's side has become windows."""
    spans = trace.gpu_annotations
    labels = _labels(trace, spans.name)
    rows = np.flatnonzero(np.isin(spans.name, list(labels))) if labels else np.empty(0, np.int64)
    if not len(rows):
        return
    with_labels = np.unique([w.track for w in windows if w.found_by == "label" and w.track >= 0])
    lost = np.flatnonzero((of_row < 0) & ~np.isin(launches.track, with_labels))
    if not len(lost):
        return
    owner = _owners(trace, windows, labels, rows)
    streams = np.concatenate(
        [
            np.stack([spans.device[rows], spans.stream[rows]]),
            np.stack([trace.gpu.device[lost], trace.gpu.stream[lost]]),
        ],
        axis=1,
    )
    _, place = np.unique(streams, axis=1, return_inverse=True)
    place = place.reshape(-1).astype(np.int64)
    axis = int(max((spans.ts + spans.dur).max(), trace.gpu.end.max(initial=0))) + 2
    start = spans.ts[rows] + place[: len(rows)] * axis
    for more in (0, 1):  # first as they are; a kernel of no length may lie on the end of its span
        inside = Intervals(start, start + spans.dur[rows] + more)
        left = np.flatnonzero(of_row[lost] < 0)
        found = inside.at(trace.gpu.ts[lost[left]] + place[len(rows) :][left] * axis)
        of_row[lost[left]] = np.where(found >= 0, owner[found], NONE)


def _owners(trace: RankTrace, windows: list[Window], labels: dict[int, Label], rows: I64) -> I64:
    """The window of each GPU annotation; makes those that the host's side lacks."""
    spans = trace.gpu_annotations
    by_external = {
        external: index
        for index, window in enumerate(windows)
        for external in window.externals
        if external > 0
    }
    made: dict[tuple[int, int], tuple[int, int]] = {}  # (name, external) -> window, end
    owner = np.full(len(rows), NONE, dtype=np.int64)
    for place, row in enumerate(rows.tolist()):
        name, external = int(spans.name[row]), int(spans.external[row])
        start, end = int(spans.ts[row]), int(spans.ts[row] + spans.dur[row])
        if external > 0 and external in by_external:
            owner[place] = by_external[external]
            continue
        index, last = made.get((name, external), (NONE, NONE))
        if index < 0 or (external <= 0 and start > last):
            # Within a span of another label on the stream: the same step, as on the host.
            outer = _around(made, spans.ts, windows, start, end)
            label = labels[name]
            if outer is not None and not _apart(windows[outer], label):
                index = outer
            else:
                index = len(windows)
                windows.append(Window(label.name, label.kind, "label", fields=dict(label.fields)))
        made[name, external] = (index, max(end, last))
        owner[place] = index
    return owner


def _around(
    made: dict[tuple[int, int], tuple[int, int]],
    ts: I64,
    windows: Sequence[Window],
    start: int,
    end: int,
) -> int | None:
    for index, last in itertools.islice(reversed(made.values()), 4):
        if start < last and end <= last:
            return index
    return None


def _finish(
    trace: RankTrace, launches: Launches, windows: Sequence[Window], of_row: I64
) -> FoundSteps:
    """Spans, unions and sums per window; steps in the order of their GPU work."""
    count = len(windows)
    gpu = trace.gpu
    rows = np.flatnonzero(of_row >= 0)
    rows = rows[np.argsort(of_row[rows], kind="stable")]
    owner = of_row[rows]
    low = np.searchsorted(owner, np.arange(count))
    high = np.searchsorted(owner, np.arange(count), side="right")
    has = high > low
    first = np.full(count, NONE, dtype=np.int64)
    first[has] = gpu.ts[rows[low[has]]]  # rows of a step ascend
    last = np.full(count, NONE, dtype=np.int64)
    total, busy = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
    if len(rows):
        starts = low[has]
        last[has] = np.maximum.reduceat(gpu.end[rows], starts)
        total[has] = np.add.reduceat(gpu.dur[rows], starts)
        busy[has] = np.add.reduceat(_covered(gpu.ts[rows], gpu.end[rows], owner), starts)
    of_graph = _graph_launches(trace, launches, windows, of_row)
    graphs = np.bincount(of_graph[of_graph >= 0], minlength=count)
    lost = np.bincount(of_graph[(of_graph >= 0) & (launches.graph_counts == 0)], minlength=count)
    order = _order(np.array([window.start for window in windows], dtype=np.int64), first, has)
    number = np.full(count + 1, NONE, dtype=np.int32)
    number[order] = np.arange(count)
    steps = []
    for index, i in enumerate(order.tolist()):
        window = windows[i]
        cpu = (window.start, window.end) if window.start >= 0 else window.cpu
        steps.append(
            Step(
                index=index, kind=window.kind, label=window.label, fields=window.fields,
                found_by=window.found_by, cpu_start=cpu[0], cpu_end=cpu[1],
                gpu_start=int(first[i]), gpu_end=int(last[i]), busy_ns=int(busy[i]),
                sum_ns=int(total[i]), rows=rows[low[i] : high[i]], graph_launches=int(graphs[i]),
                warning=_warning(bool(has[i]), int(graphs[i]), int(lost[i])),
            )
        )  # fmt: skip
    return FoundSteps(steps, number[of_row], number[of_graph])


def _order(cpu_start: I64, first: I64, has: NDArray[np.bool_]) -> I64:
    """By the start of their GPU work; those without any after the step launched before them."""
    launched = np.argsort(cpu_start, kind="stable")
    key = np.empty(len(first), dtype=np.int64)
    key[launched] = np.maximum.accumulate(np.where(has[launched], first[launched], NONE))
    return np.lexsort((cpu_start, ~has, np.where(has, first, key)))


def _warning(has_work: bool, graphs: int, lost: int) -> str:
    if not has_work:
        return "no GPU work of it is in the file"
    if lost:
        return f"incomplete: {lost} of {graphs} graph launches have no GPU work"
    return ""


def _covered(start: I64, end: I64, owner: I64) -> I64:
    """Per row, by owner and start: what it adds to the union of its owner's rows."""
    axis = int(end.max()) + 1
    shifted = owner * axis
    reach = np.maximum.accumulate(end + shifted)
    before = np.concatenate([[0], reach[:-1]])
    added: I64 = np.maximum(reach - np.maximum(start + shifted, before), 0)
    return added


def _graph_launches(
    trace: RankTrace, launches: Launches, windows: Sequence[Window], of_row: I64
) -> I64:
    """[graph launches] the window of each: that of its work, or without any that of its call."""
    owner = np.full(len(launches.graph_rows), NONE, dtype=np.int64)
    replayed = np.flatnonzero(launches.from_graph)
    owner[np.searchsorted(launches.graph_rows, launches.row[replayed])] = of_row[replayed]
    empty = np.flatnonzero(launches.graph_counts == 0)
    called = launches.graph_rows[empty]
    owner[empty] = _window_at(trace, windows, trace.runtime.track[called], trace.runtime.ts[called])
    return owner
