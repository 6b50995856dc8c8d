"""Ends: of begins that have one elsewhere in the file, and of events that have none."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atom.trace.reader import event as ev
from atom.trace.reader.columns import UNKNOWN
from atom.trace.types import I64

_FAMILY = re.compile(r"[^\[(#\d]*")  # "decode[bs=4]" and "decode[bs=8]" are of one


@dataclass(slots=True)
class Phase:
    """A "B" or "E" event."""

    event: ev.Event
    order: int  # in the file
    ns: int

    @classmethod
    def of(cls, event: ev.Event, order: int, ns: int) -> Phase:
        return cls(event, order, int(ns))


def pair(phases: list[Phase]) -> tuple[list[Phase], int]:
    """The begins with a duration, or none if it has no end; and how many ends have no begin.

    On each thread an end belongs to the last begin that is open, by time, then by place in the
    file, which is what the format says.
    """
    stacks: dict[tuple[str, str], list[Phase]] = defaultdict(list)
    found, orphans = [], 0
    for phase in sorted(phases, key=lambda phase: (phase.ns, phase.order)):
        event = phase.event
        stack = stacks[str(event.pid), str(event.tid)]
        if event.ph == "B":
            stack.append(phase)
            found.append(phase)
            event.ph, event.dur = "X", None
        elif stack and phase.ns != UNKNOWN:
            begin = stack.pop()
            begin.event.dur = (phase.ns - begin.ns) / 1000
        else:
            orphans += 1
    return sorted(found, key=lambda phase: phase.order), orphans


def close_open(columns: dict[str, Any], strings: list[str]) -> int:
    """Gives a duration to the rows, sorted by start, that have -1; their number.

    On the host it lasts until the end of the event round it, else of its thread, but not into the
    next event of its family (name up to the first bracket or digit). GPU work gets 0.
    """
    rows = np.flatnonzero(columns["dur"] < 0)
    if not len(rows):
        return 0
    if "track" not in columns:
        columns["dur"][rows] = 0
        return len(rows)
    for track in np.unique(columns["track"][rows]):
        mine = np.flatnonzero(columns["track"] == track)
        _close_track(columns["ts"][mine], columns["dur"], mine, columns["name"][mine], strings)
    return len(rows)


def _close_track(
    ts: I64, durations: I64, rows: NDArray[Any], names: NDArray[Any], strings: list[str]
) -> None:
    own = durations[rows]
    known = own >= 0
    ends = np.where(known, ts + own, ts)
    last = int(ends.max())
    families = {index: _family(strings[index]) for index in set(names.tolist())}
    # Backwards: the next start of each family. Forwards: the closed events that are open.
    following: dict[str, int] = {}
    limit = {}
    for place in range(len(ts) - 1, -1, -1):
        family = families[int(names[place])]
        if not known[place]:
            limit[place] = following.get(family, last)
        following[family] = int(ts[place])
    stack: list[int] = []
    for place in range(len(ts)):
        start = int(ts[place])
        while stack and stack[-1] <= start:
            stack.pop()
        if known[place]:
            end = int(ends[place])
        else:
            end = max(start, min([limit[place], *stack[-1:]]))
            durations[rows[place]] = end - start
        stack.append(end)


def _family(name: str) -> str:
    found = _FAMILY.match(name)
    assert found is not None
    return found.group()
