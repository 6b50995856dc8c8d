"""Sorts events into the four tables; pairs begins with ends; ends what has no end."""

from __future__ import annotations

from collections import Counter
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atom.trace.reader import event as ev
from atom.trace.reader.columns import (
    UNKNOWN,
    Strings,
    Table,
    Texts,
    exact_nanoseconds,
    integers,
    nanoseconds,
)
from atom.trace.reader.ends import Phase, close_open, pair
from atom.trace.types import I64, CpuKind, GpuKind, Track

_MODULE, _PYTHON = "nn.Module: ", "python_function"
# Category -> kind; those in capitals are of Kineto before 2022.
_CPU = {
    "cpu_op": CpuKind.OP,
    "Operator": CpuKind.OP,
    "user_annotation": CpuKind.ANNOTATION,
    _PYTHON: CpuKind.PYTHON,
}
_GPU = {
    "kernel": GpuKind.KERNEL,
    "Kernel": GpuKind.KERNEL,
    "gpu_memcpy": GpuKind.MEMCPY,
    "Memcpy": GpuKind.MEMCPY,
    "gpu_memset": GpuKind.MEMSET,
    "Memset": GpuKind.MEMSET,
}
_OPEN = -1  # the duration of what has no end, until `close_open`
_I4, _I8, _U1 = np.int32, np.int64, np.uint8
_SHAPES = ("Input Dims", "Input type", "Concrete Inputs", "Input Strides")
_LAUNCH = ("grid", "block")
_COLLECTIVE = ("Collective name", "In msg nelems", "Out msg nelems", "Group size", "dtype")
_NO_COLLECTIVE = ev.NO_ARGS.collective
_category = attrgetter("cat")


def _table_of(category: str) -> str:
    if category in _CPU:
        return "cpu"
    if category in _GPU:
        return "gpu"
    if category == "Runtime" or category.endswith(("_runtime", "_driver")):
        return "runtime"
    return "spans" if category == "gpu_user_annotation" else ""


class Collector:
    """`add` every chunk, then `finish`."""

    def __init__(self, *, exact: bool, keep_python: bool) -> None:
        self._exact, self._keep_python = exact, keep_python
        self.strings = Strings()
        self._shapes = Texts(_SHAPES, self.strings)
        self._launches = Texts(_LAUNCH, self.strings)
        self._collectives = Texts((*_LAUNCH, *_COLLECTIVE), self.strings)
        self._tracks: dict[tuple[Any, Any], int] = {}
        self._track_keys: dict[tuple[str, str], int] = {}
        self._thread_names: dict[tuple[str, str], str] = {}
        self._phases: list[Phase] = []  # begins and ends, in the file's order
        self.counts: Counter[str] = Counter()
        self._unknown_times = 0
        self._open_events = 0
        self._no_begin = 0
        self._wrong_durations = 0
        times = {"ts": _I8, "dur": _I8, "name": _I4, "external": _I8}
        self._tables = {
            "cpu": Table(**times, track=_I4, kind=_U1, args=_I4),
            "runtime": Table(**times, track=_I4, correlation=_I8, kernel=_I4),
            "gpu": Table(**times, kind=_U1, device=_I4, stream=_I4, correlation=_I8,
                         graph_node=_I8, nbytes=_I8, args=_I4),
            "spans": Table(**times, device=_I4, stream=_I4),
        }  # fmt: skip
        self._routes: dict[tuple[ev.Scalar, ev.Scalar], str] = {}

    # Each chunk.

    def add(self, events: list[ev.Event]) -> None:
        """Sort one chunk's events in."""
        chosen: dict[str, list[ev.Event]] = {name: [] for name in (*self._tables, "phase", "meta")}
        chosen[""] = []
        routes = self._routes
        for event in events:
            key = (event.ph, event.cat)
            route = routes.get(key)
            if route is None:
                route = routes[key] = self._route(*key)
            chosen[route].append(event)
        self._count(events, chosen)
        for event in chosen["meta"]:
            self._metadata(event)
        for event in chosen["phase"]:
            self._phases.append(Phase.of(event, len(self._phases), self._ns([event.ts])[0]))
        for name, kept in self._tables.items():
            if chosen[name]:
                self._add(name, kept, chosen[name])

    def _count(self, events: list[ev.Event], chosen: dict[str, list[ev.Event]]) -> None:
        counts: Counter[Any] = Counter(map(_category, events))
        # An end is one event with its begin.
        counts -= Counter(event.cat for event in chosen["phase"] if event.ph == "E")
        counts["metadata"] = sum(event.cat is None for event in chosen["meta"])
        counts["other"] = counts.pop(None, 0) - counts["metadata"]
        for category, count in counts.items():
            if count:
                self.counts[str(category)] += count

    def _route(self, phase: ev.Scalar, category: ev.Scalar) -> str:
        if phase == "M":
            return "meta"
        table = _table_of(str(category)) if category is not None else ""
        if phase == "X":
            return table
        # An end need not repeat the category.
        return "phase" if phase == "E" or (phase == "B" and table) else ""

    def _metadata(self, event: ev.Event) -> None:
        if event.name == "thread_name" and event.args is not None and event.args.name is not None:
            self._thread_names[str(event.pid), str(event.tid)] = str(event.args.name)

    def _ns(self, times: list[Any]) -> I64:
        return exact_nanoseconds(times) if self._exact else nanoseconds(times)

    def _add(self, name: str, table: Table, events: list[ev.Event]) -> None:
        if name == "cpu" and not self._keep_python:
            events = [
                event
                for event in events
                if event.cat != _PYTHON or str(event.name).startswith(_MODULE)
            ]
        ts = self._ns([event.ts for event in events])
        known = ts != UNKNOWN
        if not known.all():
            self._unknown_times += int((~known).sum())
            kept = np.flatnonzero(known)
            events, ts = [events[index] for index in kept], ts[kept]
        if not events:
            return
        dur = nanoseconds([event.dur for event in events])
        bad = dur < 0
        if bad.any():
            self._wrong_durations += int((bad & (dur != UNKNOWN)).sum())
            dur[bad] = np.where(dur[bad] == UNKNOWN, _OPEN, 0)
        args = [event.args or ev.NO_ARGS for event in events]
        columns = getattr(self, f"_{name}")(events, args)
        table.add(ts=ts, dur=dur, name=self._names([event.name for event in events]),
                  external=integers([found.external for found in args]), **columns)  # fmt: skip

    def _names(self, names: list[Any]) -> list[int]:
        strings = self.strings
        if all(type(name) is str for name in names):
            return [strings[name] for name in names]
        return [strings.of("" if name is None else name) for name in names]

    def _cpu(self, events: list[ev.Event], args: list[ev.Args]) -> dict[str, Any]:
        kinds = [_CPU[event.cat] for event in events]  # type: ignore[index]
        if CpuKind.PYTHON in kinds:
            for index, event in enumerate(events):
                if event.cat == _PYTHON and str(event.name).startswith(_MODULE):
                    kinds[index] = CpuKind.MODULE
        shapes = self._shapes.indices(
            [(bytes(a.dims), bytes(a.types), bytes(a.concrete), bytes(a.strides)) for a in args]
        )
        return {"track": self._track(events), "kind": kinds, "args": shapes}

    def _runtime(self, events: list[ev.Event], args: list[ev.Args]) -> dict[str, Any]:
        return {
            "track": self._track(events),
            "correlation": integers([found.correlation for found in args]),
            "kernel": [self.strings.of(found.kernel) for found in args],
        }

    def _gpu(self, events: list[ev.Event], args: list[ev.Args]) -> dict[str, Any]:
        return {
            "kind": [_GPU[event.cat] for event in events],  # type: ignore[index]
            **_places(events, args),
            "correlation": integers([found.correlation for found in args]),
            "graph_node": integers([found.graph_node for found in args]),
            "nbytes": integers([found.nbytes for found in args]),
            "args": self._launch_args(args),
        }

    def _launch_args(self, args: list[ev.Args]) -> list[int]:
        found = self._launches.indices([(bytes(a.grid), bytes(a.block)) for a in args])
        for index, a in enumerate(args):
            if a.collective is not _NO_COLLECTIVE:
                more = (a.collective, a.in_nelems, a.out_nelems, a.group_size, a.dtype)
                row = tuple(bytes(value) for value in (a.grid, a.block, *more))
                (found[index],) = self._collectives.indices([row])
        return found

    def _spans(self, events: list[ev.Event], args: list[ev.Args]) -> dict[str, Any]:
        return _places(events, args)

    def _track(self, events: list[ev.Event]) -> list[int]:
        tracks = self._tracks
        found = []
        for event in events:
            key = (event.pid, event.tid)
            index = tracks.get(key)
            if index is None:
                text = (str(event.pid), str(event.tid))
                index = self._track_keys.setdefault(text, len(self._track_keys))
                tracks[key] = index
            found.append(index)
        return found

    # At the end.

    def finish(self) -> tuple[dict[str, dict[str, NDArray[Any]]], int]:
        """The tables, sorted by start, and the origin, ns."""
        paired, self._no_begin = pair(self._phases)
        self._phases = []
        self._add_pairs(paired)
        starts = {name: table.take("ts") for name, table in self._tables.items()}
        origin = min((int(ts.min()) for ts in starts.values() if len(ts)), default=0)
        done = {}
        for name, table in self._tables.items():
            ts = starts.pop(name)
            order: Any = slice(None)
            if len(ts) and bool((ts[1:] < ts[:-1]).any()):
                order = np.argsort(ts, kind="stable")
            ts = ts[order] - origin
            columns = table.finish(lambda _, column, order=order: column[order])  # type: ignore[misc]
            columns["ts"] = ts
            self._open_events += close_open(columns, list(self.strings))
            done[name] = columns
        return done, origin

    def _add_pairs(self, paired: list[Phase]) -> None:
        for name, table in self._tables.items():
            events = [phase.event for phase in paired if self._routed(phase) == name]
            if events:
                self._add(name, table, events)

    def _routed(self, phase: Phase) -> str:
        return self._route("X", phase.event.cat)

    @property
    def tracks(self) -> list[Track]:
        """In the order of their indices."""
        return [Track(*key, name=self._thread_names.get(key, "")) for key in self._track_keys]

    @property
    def warnings(self) -> list[str]:
        """One line each; complete after `finish`."""
        left_out = self._shapes.left_out + self._launches.left_out
        found = (
            ("events without a readable time, left out", self._unknown_times),
            ("events that end before they begin, counted as 0 us", self._wrong_durations),
            ("events without an end, which was set where what is round them ends, and for GPU "
             "work to 0 us", self._open_events),
            ("ends without a begin, left out", self._no_begin),
            ("events whose shapes were left out, as the file has too many different ones",
             left_out),
        )  # fmt: skip
        return [f"{what}: {count:,}" for what, count in found if count]


def _places(events: list[ev.Event], args: list[ev.Args]) -> dict[str, Any]:
    """Device and stream, which are also the process and thread of GPU work."""
    device, stream = [found.device for found in args], [found.stream for found in args]
    if None in device or None in stream:
        for index, event in enumerate(events):
            device[index] = event.pid if device[index] is None else device[index]
            stream[index] = event.tid if stream[index] is None else stream[index]
    return {"device": integers(device), "stream": integers(stream)}
