"""Runs without a GPU: operators' own time on the host, as if it were work of a device.

Each operator, and each scope for what it does outside of operators, becomes one row with the time
that is not its children's. The rows of one outermost call are set one after the other from its
start: they do not overlap and fill it, so unions and sums are those of the file; where within the
outermost call a row lies is not the file's.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from atom.trace.launches import Launches
from atom.trace.scopes import Intervals, Scopes, by_track
from atom.trace.types import I64, NONE, CpuKind, GpuEvents, GpuKind, RankTrace

OUTSIDE = "(outside of operators)"  # what a scope's own time is called


def as_device(trace: RankTrace, scopes: Scopes) -> tuple[RankTrace, Launches]:
    """The trace with its operators as GPU work, and what launched it: themselves."""
    cpu = trace.cpu
    rows = np.union1d(np.flatnonzero(cpu.kind == CpuKind.OP), scopes.rows).astype(np.int64)
    start, own = own_times(trace, rows)
    kept = np.flatnonzero(own > 0)
    kept = kept[np.argsort(start[kept], kind="stable")]
    rows, start, own = rows[kept], start[kept], own[kept]
    strings = trace.strings
    if OUTSIDE not in strings:
        strings.append(OUTSIDE)
    count = len(rows)
    none = np.full(count, NONE, dtype=np.int64)
    gpu = GpuEvents(
        name=np.where(cpu.kind[rows] == CpuKind.OP, cpu.name[rows], strings.index(OUTSIDE)).astype(
            np.int32
        ),
        ts=start,
        dur=own,
        kind=np.full(count, GpuKind.KERNEL, dtype=np.uint8),
        device=np.zeros(count, dtype=np.int32),
        stream=cpu.track[rows].astype(np.int32),
        correlation=none,
        external=cpu.external[rows],
        graph_node=none,
        nbytes=none,
        args=none.astype(np.int32),
    )
    launches = Launches(
        row=none,
        start=cpu.ts[rows],
        track=cpu.track[rows],
        from_graph=np.zeros(count, dtype=bool),
        op=rows,
        graph_rows=np.empty(0, dtype=np.int64),
        graph_counts=np.empty(0, dtype=np.int64),
    )
    annotations = trace.gpu_annotations
    nothing = replace(
        annotations,
        **{name: getattr(annotations, name)[:0] for name in annotations.__slots__},
    )
    other = {**trace.other, "deviceProperties": [{"name": "CPU"}]}
    return replace(trace, gpu=gpu, gpu_annotations=nothing, other=other), launches


def own_times(trace: RankTrace, rows: I64) -> tuple[I64, I64]:
    """Where each row is set, and its time without that of the rows within it; ns."""
    cpu = trace.cpu
    begin = by_track(trace, cpu.track[rows], cpu.ts[rows])
    end = begin + np.maximum(cpu.dur[rows], 0)
    intervals = Intervals(begin, end)
    parent = intervals.parents()
    order = intervals.order
    end = _within_parents(end, parent)
    own = end - begin
    inner = np.flatnonzero(parent >= 0)
    np.subtract.at(own, parent[inner], (end - begin)[inner])
    own = np.maximum(own, 0)
    # In the order of their starts, each after the rows before it of the same outermost call.
    outermost = np.where(parent < 0, np.arange(len(rows)), NONE)[order]
    outermost = _forward(outermost)
    before = np.cumsum(own[order]) - own[order]
    start = np.empty(len(rows), dtype=np.int64)
    place = np.empty(len(rows), dtype=np.int64)
    place[order] = np.arange(len(rows))
    start[order] = cpu.ts[rows][outermost] + before - before[place[outermost]]
    return start, own


def _within_parents(end: I64, parent: I64) -> I64:
    """Ends, no later than the parents': clocks of different sources may disagree a little."""
    end = end.copy()
    while True:
        limit = np.where(parent >= 0, end[parent], end)
        if not (end > limit).any():
            return end
        end = np.minimum(end, limit)


def _forward(values: I64) -> I64:
    """Each -1 replaced by the last that is none."""
    at = np.maximum.accumulate(np.where(values >= 0, np.arange(len(values)), 0))
    return values[at]
