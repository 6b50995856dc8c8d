"""Which call of the host put each row of GPU work on the device."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atom.trace.types import I32, I64, NONE, CpuKind, RankTrace

_PUTS_WORK = re.compile(r"Launch|Memcpy|Memset|launch|memcpy|memset")
_GRAPH = re.compile(r"GraphLaunch")


@dataclass(frozen=True, slots=True)
class Launches:
    """[N] arrays are parallel to `trace.gpu`."""

    row: I64  # [N] of trace.runtime; -1: the file has no such call
    start: I64  # [N] of the call, or of the operator that is known in its stead; -1 unknown
    track: I32  # [N] its thread; -1 unknown
    from_graph: NDArray[np.bool_]  # [N] replayed: its launch is a graph's
    op: I64  # [N] row of trace.cpu of the operator that "External id" names where row is -1
    graph_rows: I64  # rows of trace.runtime that are graph launches, by time
    graph_counts: I64  # rows of GPU work of each


def correlate(trace: RankTrace) -> Launches:
    """By correlation id; where the file lacks the call, the operator of the same External id."""
    runtime, gpu = trace.runtime, trace.gpu
    puts_work = _named(trace, _PUTS_WORK)
    known = np.flatnonzero(runtime.correlation > 0)
    # A driver's call nested in a runtime's may share its id: the one that launches, then the first.
    order = known[np.lexsort((runtime.ts[known], ~puts_work[known], runtime.correlation[known]))]
    row = _first_equal(runtime.correlation[order], order, gpu.correlation)
    row = np.where(gpu.correlation > 0, row, NONE)
    op = np.full(len(gpu), NONE, dtype=np.int64)
    lost = np.flatnonzero((row < 0) & (gpu.external > 0))
    if len(lost):
        ops = np.flatnonzero((trace.cpu.kind == CpuKind.OP) & (trace.cpu.external > 0))
        ops = ops[np.argsort(trace.cpu.external[ops], kind="stable")]
        op[lost] = _first_equal(trace.cpu.external[ops], ops, gpu.external[lost])
    graph_rows, graph_of = _graph_launches(trace)
    replayed = _at(graph_of, row)
    index = np.searchsorted(graph_rows, replayed[replayed >= 0])
    return Launches(
        row=np.where(replayed >= 0, replayed, row),
        start=np.where(op >= 0, _at(trace.cpu.ts, op), _at(runtime.ts, row)),
        track=np.where(op >= 0, _at(trace.cpu.track, op), _at(runtime.track, row)).astype(np.int32),
        from_graph=replayed >= 0,
        op=op,
        graph_rows=graph_rows,
        graph_counts=np.bincount(index, minlength=len(graph_rows)).astype(np.int64),
    )


def several_processes(trace: RankTrace, launches: Launches) -> str:
    """A warning if launches of several processes share ids, else "": then pairs are guesses."""
    used = np.unique(launches.row[launches.row >= 0])
    pids = np.array([hash(track.pid) for track in trace.tracks], dtype=np.int64)
    runtime = trace.runtime
    same = np.flatnonzero(
        np.isin(runtime.correlation, runtime.correlation[used]) & _named(trace, _PUTS_WORK)
    )
    if not len(same):
        return ""
    pairs = np.unique(np.stack([runtime.correlation[same], pids[runtime.track[same]]]), axis=1)
    shared = pairs.shape[1] - len(np.unique(pairs[0]))
    if not shared:
        return ""
    return (
        f"{trace.path.name}: {shared:,} launches of different processes share their ids, so their "
        "kernels may be mistaken for each other's: give one file per rank"
    )


def _graph_launches(trace: RankTrace) -> tuple[I64, I64]:
    """Graph launches that lie in no other, and [rows of trace.runtime] the one each belongs to."""
    runtime = trace.runtime
    graph_of = np.full(len(runtime), NONE, dtype=np.int64)
    rows = np.flatnonzero(_named(trace, _GRAPH)).astype(np.int64)
    if not len(rows):
        return rows, graph_of
    # cuGraphLaunch within cudaGraphLaunch is one launch: by thread, overlapping calls belong.
    order = rows[np.lexsort((-runtime.dur[rows], runtime.ts[rows], runtime.track[rows]))]
    reach = runtime.ts[order] + runtime.dur[order]
    last, last_end = NONE, NONE
    for row, track, ts, end in zip(
        order.tolist(),
        runtime.track[order].tolist(),
        runtime.ts[order].tolist(),
        reach.tolist(),
        strict=True,
    ):
        if last >= 0 and int(runtime.track[last]) == track and ts < last_end:
            graph_of[row] = last
            continue
        last, last_end = row, end
        graph_of[row] = row
    return np.unique(graph_of[rows]), graph_of


def _named(trace: RankTrace, pattern: re.Pattern[str]) -> NDArray[np.bool_]:
    """[rows of trace.runtime] whether the call's name matches."""
    names = np.unique(trace.runtime.name)
    hits = [name for name in names.tolist() if pattern.search(trace.strings[name])]
    return np.isin(trace.runtime.name, hits)


def _first_equal(keys: I64, rows: I64, wanted: I64) -> I64:
    """rows[i] of the first keys[i] == wanted, keys ascending; -1 where there is none."""
    if not len(keys):
        return np.full(len(wanted), NONE, dtype=np.int64)
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, rows[place], NONE).astype(np.int64)


def _at(values: NDArray[np.integer], index: I64) -> I64:
    if not len(values):
        return np.full(len(index), NONE, dtype=np.int64)
    return np.where(index >= 0, values[np.maximum(index, 0)], NONE).astype(np.int64)
