"""Templates of graphs: from the trace of their capture, or from eager steps of a run.

A captured launch is one that has no work on the device in its file. On ROCm it carries its
kernel's name; on NVIDIA names come from the same body run eagerly just before (our engine's
`warm_up`), and the recorded launches say how many there are and where they belong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from atom.trace.labels import RECORD, WARM_UP
from atom.trace.mapping.align import align
from atom.trace.mapping.launches import (
    calls_named,
    first_row,
    launch_kinds,
    names_or_none,
    outermost,
    parse_capture,
    parse_capture_file,
)
from atom.trace.mapping.types import EagerStep, Template
from atom.trace.types import I8, I32, I64, NONE, CpuKind, RankTrace


@dataclass(frozen=True, slots=True)
class _Span:
    """An annotation on a thread."""

    name: str
    start: int
    end: int
    track: int


def capture_templates(capture: RankTrace, place: I32) -> list[Template]:
    """Every graph that the file saw captured, by time; `place` is [R], of `capture.runtime`.

    A file without `capture_*` annotations is one capture as a whole, of the size its name tells.
    Captures in which nothing was recorded give the warm-up's kernels, with a note that says so.
    """
    assert len(place) == len(capture.runtime), (len(place), len(capture.runtime))
    spans = [s for s in _annotations(capture) if parse_capture(s.name) is not None]
    seen = _Seen.of(capture, place)
    found = [_template(seen, span, *_kind(span)) for span in spans]
    if not spans and len(capture.runtime):
        stem = capture.path.name.split(".")[0]
        found = [_template(seen, _Span(stem, -1, 1 << 62, NONE), "", parse_capture_file(stem))]
    return [t for t in found if t is not None]


def eager_templates(trace: RankTrace, place: I32, steps: Sequence[EagerStep]) -> list[Template]:
    """Eager steps with modules for at least half of their kernels, equal ones once."""
    found: dict[tuple[str, int, bytes], Template] = {}
    for step in steps:
        known = np.where(step.launch >= 0, place[np.maximum(step.launch, 0)], NONE)
        if 2 * int((known >= 0).sum()) < len(known):
            continue
        name = trace.gpu.name[step.rows]
        key = (step.kind, step.size, name.tobytes() + known.astype(np.int32).tobytes())
        if key in found:
            continue
        found[key] = Template(
            label=step.label,
            kind=step.kind,
            size=step.size,
            eager=True,
            source=trace,
            launch=step.launch.astype(np.int64),
            name=name.astype(np.int32),
            gpu_kind=trace.gpu.kind[step.rows],
            place=known.astype(np.int32),
            stream=trace.gpu.stream[step.rows],
            piece=np.zeros(len(step.rows), np.int32),
            note=f"kernels are named by the eager step {step.label}, not by a capture",
        )
    return list(found.values())


def _kind(span: _Span) -> tuple[str, int]:
    parsed = parse_capture(span.name)
    assert parsed is not None, span
    return parsed


def _annotations(trace: RankTrace) -> list[_Span]:
    rows = np.flatnonzero(trace.cpu.kind == CpuKind.ANNOTATION)
    cpu = trace.cpu
    return [
        _Span(
            trace.strings[int(cpu.name[i])],
            int(cpu.ts[i]),
            int(cpu.ts[i] + cpu.dur[i]),
            int(cpu.track[i]),
        )
        for i in rows
        if _matters(trace.strings[int(cpu.name[i])])
    ]


def _matters(name: str) -> bool:
    return name in (RECORD, WARM_UP) or parse_capture(name) is not None


@dataclass(frozen=True, slots=True)
class _Seen:
    """The file's launches, by time. [n] each."""

    trace: RankTrace
    row: I64  # of trace.runtime
    ts: I64
    track: I32
    kind: I8
    gpu: I64  # its first row of trace.gpu; -1: recorded only
    place: I32
    children: tuple[_Span, ...]
    begins: I64  # rows of trace.runtime: a stream begins, ends to be captured
    ends: I64

    @staticmethod
    def of(trace: RankTrace, place: I32) -> _Seen:
        kinds = launch_kinds(trace)
        row = np.flatnonzero(kinds != 255).astype(np.int64)
        gpu = first_row(trace)[row]
        outer = outermost(trace, row)
        np.maximum.at(gpu, outer, gpu)  # what the inner call launched, the outer did
        own = outer == np.arange(len(row))
        row, gpu = row[own], gpu[own]
        return _Seen(
            trace=trace,
            row=row,
            ts=trace.runtime.ts[row],
            track=trace.runtime.track[row],
            kind=kinds[row],
            gpu=gpu,
            place=place[row],
            children=tuple(s for s in _annotations(trace) if s.name in (RECORD, WARM_UP)),
            begins=calls_named(trace, r"StreamBeginCapture"),
            ends=calls_named(trace, r"StreamEndCapture"),
        )

    def within(self, span: _Span) -> I64:
        """Indices of the launches that start within the span, on its thread."""
        low, high = np.searchsorted(self.ts, [span.start, span.end])
        picked = np.arange(low, high, dtype=np.int64)
        return picked if span.track < 0 else picked[self.track[picked] == span.track]

    def child(self, span: _Span, name: str) -> list[_Span]:
        return [
            c
            for c in self.children
            if c.name == name
            and (span.track < 0 or c.track == span.track)
            and span.start <= c.start
            and c.end <= span.end
        ]


def _template(seen: _Seen, span: _Span, kind: str, size: int) -> Template | None:
    inside = seen.within(span)
    records = seen.child(span, RECORD)
    pool = np.concatenate([seen.within(r) for r in records]) if records else inside
    recorded = pool[seen.gpu[pool] < 0]
    piece = _pieces(seen, recorded, span)
    if (piece >= 0).any():  # launches outside of any captured stream lost their kernel otherwise
        recorded, piece = recorded[piece >= 0], piece[piece >= 0]
    warm_ups = seen.child(span, WARM_UP)
    warm = np.concatenate([seen.within(w) for w in warm_ups[-1:]]) if warm_ups else inside
    warm = warm[seen.gpu[warm] >= 0]
    if not warm_ups and len(recorded):
        warm = warm[warm < recorded[0]]
    if not len(recorded):
        if not len(warm):
            return None
        note = f"{span.name} recorded nothing: its kernels are those of the warm-up before it"
        recorded, piece = warm, np.zeros(len(warm), np.int32)
        return _build(seen, span, kind, size, recorded, seen.gpu[warm], piece, note)
    return _named(seen, span, kind, size, recorded, warm, np.maximum(piece, 0).astype(np.int32))


def _named(
    seen: _Seen, span: _Span, kind: str, size: int, recorded: I64, warm: I64, piece: I32
) -> Template:
    """Launches without a kernel's name take it from the warm-up's launch at the same place."""
    runtime_name = seen.trace.runtime.kernel[seen.row[recorded]]
    missing = (runtime_name < 0) & (seen.kind[recorded] == 0)
    if not missing.any() and not len(warm):
        no_rows = np.full(len(recorded), NONE, np.int64)
        return _build(seen, span, kind, size, recorded, no_rows, piece, "")
    partner = _same_place(seen, recorded, warm)
    rows = (
        np.where(partner >= 0, seen.gpu[warm[np.maximum(partner, 0)]], NONE)
        if len(warm)
        else np.full(len(recorded), NONE, np.int64)
    )
    unnamed = int((missing & (rows < 0)).sum())
    note = ""
    if unnamed:
        note = (
            f"{span.name}: {unnamed} of {len(recorded)} recorded launches have no kernel name"
            f" (its warm-up has {len(warm)} launches)"
        )
    return _build(seen, span, kind, size, recorded, rows.astype(np.int64), piece, note)


def _same_place(seen: _Seen, recorded: I64, warm: I64) -> I64:
    """Index into `warm` of the launch that `recorded` repeats; -1 where that is not certain."""
    if not len(warm):
        return np.full(len(recorded), NONE, np.int64)

    def token(index: I64) -> I64:
        return (seen.place[index].astype(np.int64) + 1) << 2 | seen.kind[index]

    def exact_token(index: I64) -> I64:
        call = seen.trace.runtime.name[seen.row[index]].astype(np.int64)
        return token(index) << 32 | call

    if np.array_equal(token(recorded), token(warm)):
        return np.arange(len(recorded), dtype=np.int64)
    # They differ somewhere: which function was called helps to tell where.
    both = np.concatenate([exact_token(recorded), exact_token(warm)])
    _, inverse = np.unique(both, return_inverse=True)
    ids = inverse.reshape(-1).astype(np.int32)
    ours, theirs = ids[: len(recorded)], ids[len(recorded) :]
    if len(theirs) > len(ours) and np.array_equal(ours, theirs[-len(ours) :]):
        return np.arange(len(theirs) - len(ours), len(theirs), dtype=np.int64)
    found = align(ours, theirs, seen.trace.gpu.name[seen.gpu[warm]])
    return np.full(len(ours), NONE, np.int64) if found is None else found.partner


def _pieces(seen: _Seen, recorded: I64, span: _Span) -> I32:
    """Number of the captured stream each launch lies in; -1 outside of all."""
    ts, track = seen.trace.runtime.ts, seen.trace.runtime.track
    begins, ends = seen.begins, seen.ends
    if span.track >= 0:
        begins = begins[track[begins] == span.track]
        ends = ends[track[ends] == span.track]
    begins = begins[(ts[begins] >= span.start) & (ts[begins] < span.end)]
    at = seen.ts[recorded]
    opened = np.searchsorted(ts[begins], at, side="right")
    closed = np.searchsorted(ts[ends], at, side="right")
    before = int((ts[ends] < span.start).sum())
    return np.where(opened > closed - before, opened - 1, NONE).astype(np.int32)


def _build(
    seen: _Seen,
    span: _Span,
    kind: str,
    size: int,
    recorded: I64,
    rows: I64,
    piece: I32,
    note: str,
) -> Template:
    trace = seen.trace
    launched = trace.runtime.kernel[seen.row[recorded]]
    from_row = names_or_none(trace, rows)
    has_row = rows >= 0
    stream = np.full(len(recorded), NONE, np.int32)
    gpu_kind = seen.kind[recorded].copy()
    if len(trace.gpu):
        safe = np.maximum(rows, 0)
        stream = np.where(has_row, trace.gpu.stream[safe], NONE).astype(np.int32)
        gpu_kind = np.where(has_row, trace.gpu.kind[safe], gpu_kind).astype(np.uint8)
    return Template(
        label=span.name,
        kind=kind,
        size=size,
        eager=False,
        source=trace,
        launch=seen.row[recorded],
        name=np.where(launched >= 0, launched, from_row).astype(np.int32),
        gpu_kind=gpu_kind,
        place=seen.place[recorded].astype(np.int32),
        stream=stream,
        piece=piece,
        note=note,
    )
