"""Forwards in a trace without labels, modules or graphs: runs of repeating layers, one after
another, cut where the device waits longest between two runs."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atom.trace.kernels import kernel_class
from atom.trace.mapping.names import Names
from atom.trace.mapping.repeats import find_repeat, runs
from atom.trace.types import I32, I64, RankTrace

_WINDOW = 32_768  # kernels from which a period is learned
_MARGIN = 256  # kernels of a block before its first attention
_KINDS = 16  # of forwards: prefill, decode, ... each may have its own block
_LEAST = 3


@dataclass(frozen=True, slots=True)
class Forward:
    """One pass through the layers, with what the device did before and after it."""

    rows: I64  # of trace.gpu, ascending in time
    blocks: int  # times its block of kernels repeats, as far as it does so exactly


@dataclass(frozen=True, slots=True)
class _Run:
    start: int
    end: int
    period: int


def find_forwards(trace: RankTrace, rows: I64 | None = None) -> list[Forward]:
    """Where the forwards lie among these rows (default: all), which must be of one device.

    Empty if nothing repeats. Every row belongs to one forward: between two runs of layers the
    longest pause of the device divides them.
    """
    at = np.arange(len(trace.gpu), dtype=np.int64) if rows is None else rows
    names = Names()
    name = names.of(trace.strings, trace.gpu.name, trace.gpu.kind)[at]
    classes = np.array([kernel_class(n) == "attention" for n in names.known] or [False])
    attention = classes[name]
    found = _merged(_all_runs(name, attention), name, attention)
    if not found:
        return []
    cuts = [0]
    for before, after in itertools.pairwise(found):
        cuts.append(_longest_pause(trace, at, before.end, after.start))
    cuts.append(len(at))
    return [
        Forward(at[low:high], (run.end - run.start) // run.period)
        for run, low, high in zip(found, cuts[:-1], cuts[1:], strict=True)
    ]


def _all_runs(name: I32, attention: NDArray[np.bool_]) -> list[_Run]:
    """Runs of every kind of block, by time; none overlap."""
    marked = attention if attention.any() else np.ones(len(name), bool)
    free = np.ones(len(name), bool)
    found: list[_Run] = []
    counts = np.concatenate([[0], np.cumsum(marked)])
    # Each round takes a period out of the whole sequence, or a window out of the search.
    for _ in range(_KINDS + len(name) // _WINDOW):
        candidates = np.flatnonzero(free & marked)
        if len(candidates) < _LEAST:
            break
        hidden = np.where(free, name, -1 - np.arange(len(name), dtype=np.int32)).astype(np.int32)
        window = slice(max(int(candidates[0]) - _MARGIN, 0), int(candidates[0]) + _WINDOW)
        repeat = find_repeat(hidden[window], marked[window], _LEAST)
        if repeat is None:
            free[window] = False
            continue
        low, high = runs(hidden, repeat.period, _LEAST)
        for a, b in zip(low.tolist(), high.tolist(), strict=True):
            if counts[a + repeat.period] > counts[a]:
                found.append(_Run(a, b, _shortest(name[a:b], repeat.period)))
                free[a:b] = False
    return sorted(found, key=lambda run: run.start)


def _shortest(x: I32, period: int) -> int:
    """The shortest divisor of the period that is one itself: another kind's may be twice this."""
    divisors = (d for d in range(1, period + 1) if period % d == 0)
    return next(d for d in divisors if np.array_equal(x[d:], x[:-d]))


def _merged(found: list[_Run], name: I32, attention: NDArray[np.bool_]) -> list[_Run]:
    """Runs with at most one kernel between them are of one forward (the file lacks one, or there
    is one too many), and so are those with whole layers between them, unless there also is what
    lies between forwards."""
    counts = np.concatenate([[0], np.cumsum(attention)])
    outer = _between_forwards(found, name, counts)
    merged: list[_Run] = []
    for run in found:
        last = merged[-1] if merged else None
        if last is not None and last.period == run.period:
            gap = name[last.end : run.start]
            of_gap = int(counts[max(run.start, last.end)] - counts[last.end])
            of_block = int(counts[run.start + run.period] - counts[run.start])
            layers = of_gap >= of_block > 0 and run.period <= 2 * len(gap) <= 4 * run.period
            if len(gap) <= 1 or (layers and not np.isin(gap, outer).any()):
                merged[-1] = _Run(last.start, run.end, run.period)
                continue
        merged.append(run)
    return merged


def _between_forwards(found: list[_Run], name: I32, counts: I64) -> I32:
    """Names that lie between runs where there is no attention, and in no run."""
    gaps = [
        name[before.end : after.start]
        for before, after in itertools.pairwise(found)
        if after.start - before.end > 1 and counts[after.start] == counts[before.end]
    ]
    inner = [name[run.start : run.start + run.period] for run in found]
    return np.setdiff1d(np.concatenate([name[:0], *gaps]), np.concatenate([name[:0], *inner]))


def _longest_pause(trace: RankTrace, at: I64, end: int, start: int) -> int:
    """Index of the first row of the later forward, within [end, start]."""
    if start <= end:
        return start
    gpu = trace.gpu
    rows = at[end - 1 : start + 1]
    until = np.maximum.accumulate(gpu.ts[rows] + gpu.dur[rows])
    pause = gpu.ts[rows][1:] - until[:-1]
    return end + int(np.argmax(pause))
