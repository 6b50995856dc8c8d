"""Arithmetic on sets of time: int64 starts and ends in, lengths and merged sets out.

An interval is half open, [start, end); one with end <= start holds nothing. A *set* here is a pair
of arrays (start, end), sorted, disjoint and not touching, as `union` gives it. Everything is one
sort and a few passes: O(n log n), no loops over intervals.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from atom.trace.types import I64


class Spans(NamedTuple):
    """A set of time: sorted, disjoint, non-empty intervals with gaps between them. [N] each."""

    start: I64
    end: I64

    @property
    def length(self) -> int:
        return int((self.end - self.start).sum())


EMPTY = Spans(np.empty(0, np.int64), np.empty(0, np.int64))


def union(start: ArrayLike, end: ArrayLike) -> Spans:
    """The set that these intervals cover, in any order, overlapping or not."""
    starts, ends = _arrays(start, end)
    if not len(starts):
        return EMPTY
    order = np.argsort(starts, kind="stable")
    starts, ends = starts[order], np.maximum.accumulate(ends[order])
    first = np.empty(len(starts), bool)
    first[0] = True
    np.greater(starts[1:], ends[:-1], out=first[1:])
    last = np.append(np.flatnonzero(first[1:]), len(starts) - 1)
    return Spans(starts[first], ends[last])


def union_length(start: ArrayLike, end: ArrayLike) -> int:
    """How much time at least one of these intervals covers."""
    return union(start, end).length


def union_length_by(group: ArrayLike, start: ArrayLike, end: ArrayLike, num_groups: int) -> I64:
    """`union_length` of each group 0..num_groups-1 on its own; rows of group < 0 are left out.

    One sort for all groups: each group's intervals are moved to a place of their own, behind those
    of the groups before it, which leaves lengths and overlaps as they are.
    """
    starts, ends = np.asarray(start, np.int64), np.asarray(end, np.int64)
    groups = np.asarray(group, np.int64)
    kept = (groups >= 0) & (ends > starts)
    groups, starts, ends = groups[kept], starts[kept], ends[kept]
    lengths = np.zeros(num_groups, np.int64)
    if not len(groups):
        return lengths
    order = np.lexsort((starts, groups))
    groups, starts, ends = groups[order], starts[order], ends[order]
    first = np.flatnonzero(np.append(True, groups[1:] != groups[:-1]))
    extent = np.maximum.reduceat(ends, first) - starts[first]
    place = np.concatenate(([0], np.cumsum(extent + 1)[:-1])) - starts[first]
    shift = np.repeat(place, np.diff(np.append(first, len(groups))))
    covered = union(starts + shift, ends + shift)
    # A place ends before the next begins, so no merged interval spans two groups.
    owner = np.searchsorted(place + starts[first], covered.start, side="right") - 1
    np.add.at(lengths, groups[first][owner], covered.end - covered.start)
    return lengths


def intersection(a: Spans, b: Spans) -> Spans:
    """What lies in both sets."""
    both = np.concatenate((a.start, b.start, a.end, b.end))
    change = np.repeat(np.array([1, -1], np.int64), [len(a.start) + len(b.start)] * 2)
    return _deep_enough(both, change, 2)


def subtract(a: Spans, b: Spans) -> Spans:
    """What lies in `a` and not in `b`."""
    if not len(a.start) or not len(b.start):
        return a
    low = int(min(a.start[0], b.start[0]))
    high = int(max(a.end[-1], b.end[-1]))
    return intersection(a, gaps(b, low, high))


def intersection_length(a: Spans, b: Spans) -> int:
    return a.length + b.length - _joined(a, b).length


def subtract_length(a: Spans, b: Spans) -> int:
    """How much of `a` is outside of `b`: exposed time, if `b` is what hides it."""
    return _joined(a, b).length - b.length


def own_lengths(start: ArrayLike, end: ArrayLike) -> I64:
    """Of each interval what none that started earlier covers: adds up to `union_length`. [N]

    Given in the order of their starts. A kernel that starts early and waits for the one before it
    gets only what it ran alone; of equal starts the first has the time.
    """
    starts, ends = np.asarray(start, np.int64), np.asarray(end, np.int64)
    assert (np.diff(starts) >= 0).all()
    if not len(starts):
        return np.empty(0, np.int64)
    covered = np.concatenate((starts[:1], np.maximum.accumulate(ends)[:-1]))
    own: I64 = np.maximum(ends - np.maximum(starts, covered), 0)
    return own


def gaps(a: Spans, low: int, high: int) -> Spans:
    """What of [low, high) the set does not cover."""
    if high <= low:
        return EMPTY
    starts = np.concatenate(([low], np.clip(a.end, low, high)))
    ends = np.concatenate((np.clip(a.start, low, high), [high]))
    kept = ends > starts
    return Spans(starts[kept].astype(np.int64), ends[kept].astype(np.int64))


def within(a: Spans, low: ArrayLike, high: ArrayLike) -> I64:
    """How much of the set lies in each window [low, high). Windows may overlap. [W] -> [W]"""
    lows, highs = np.asarray(low, np.int64), np.asarray(high, np.int64)
    found: I64 = np.where(highs > lows, _measure(a, highs) - _measure(a, lows), 0)
    return found


def depth_lengths(start: ArrayLike, end: ArrayLike) -> I64:
    """Entry k: how much time exactly k of the intervals cover; entry 0 is always 0.

    With one union per stream as intervals: how long exactly k streams worked at once.
    """
    starts, ends = _arrays(start, end)
    if not len(starts):
        return np.zeros(1, np.int64)
    times = np.concatenate((starts, ends))
    change = np.repeat(np.array([1, -1], np.int64), len(starts))
    order = np.lexsort((change, times))  # ends first: touching intervals do not meet
    depth = np.cumsum(change[order])[:-1]
    widths = np.diff(times[order])
    lengths = np.zeros(int(depth.max()) + 1, np.int64)
    np.add.at(lengths, depth, widths)
    lengths[0] = 0
    return lengths


def _arrays(start: ArrayLike, end: ArrayLike) -> tuple[I64, I64]:
    starts, ends = np.asarray(start, np.int64), np.asarray(end, np.int64)
    kept = ends > starts
    return starts[kept], ends[kept]


def _joined(a: Spans, b: Spans) -> Spans:
    return union(np.concatenate((a.start, b.start)), np.concatenate((a.end, b.end)))


def _measure(a: Spans, at: I64) -> I64:
    """How much of the set lies before each time."""
    if not len(a.start):
        return np.zeros(len(at), np.int64)
    before = np.concatenate(([0], np.cumsum(a.end - a.start)))
    index = np.searchsorted(a.start, at, side="right")
    running = np.maximum(a.end[index - 1] - at, 0)  # of the interval that `at` may lie in
    measured: I64 = before[index] - np.where(index > 0, running, 0)
    return measured


def _deep_enough(times: I64, change: I64, depth: int) -> Spans:
    """Where the running sum of the changes reaches `depth`."""
    order = np.lexsort((change, times))  # ends first, as above
    times, deep = times[order], np.cumsum(change[order]) >= depth
    edge = np.diff(np.concatenate(([0], deep.astype(np.int8))))
    return union(times[edge == 1], times[edge == -1])
