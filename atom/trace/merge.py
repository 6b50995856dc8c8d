"""Several files of one rank, e.g. one per shape of `atom profile`, as one trace.

Files recorded one after the other are parts of a profile; at the same time, ranks that call
themselves the same (of different data-parallel groups). The times of parts are set one after the
other without the time between: nothing was recorded then, and it is not idle time.
`other["parts"]` says what came from where.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from atom.trace.errors import TraceError
from atom.trace.types import (
    NONE,
    CpuEvents,
    GpuAnnotations,
    GpuEvents,
    RankTrace,
    RuntimeEvents,
    Track,
)

Table = TypeVar("Table", CpuEvents, RuntimeEvents, GpuEvents, GpuAnnotations)

_STRINGS = frozenset({"name", "kernel", "args"})
_IDS = frozenset({"correlation", "external"})


def by_rank(traces: Sequence[RankTrace]) -> tuple[list[RankTrace], list[str]]:
    """One trace per rank, by rank, and lines that say what had to be assumed.

    Raises:
        TraceError: they cannot be of one profile: two models, devices, or times and places.
    """
    _check(traces)
    ranks: dict[int, list[list[RankTrace]]] = {}
    for trace in sorted(traces, key=lambda each: (each.rank, each.origin_us)):
        chains = ranks.setdefault(trace.rank, [])
        for chain in chains:
            if not _overlap(chain[-1], trace) and chain[-1].path.parent == trace.path.parent:
                chain.append(trace)
                break
        else:
            chains.append([trace])
    found: list[RankTrace] = []
    lines = []
    for rank, chains in sorted(ranks.items()):
        for a, b in itertools.combinations(chains, 2):
            if not any(_overlap(one, two) for one in a for two in b):
                raise TraceError(
                    f"{a[0].path} and {b[0].path} are both of rank {rank}, in different folders: "
                    "give one profile, or compare two with atom trace diff"
                )
        if len(chains) > 1:
            paths = ", ".join(str(chain[0].path) for chain in chains)
            lines.append(
                f"{len(chains)} files of rank {rank} were recorded at the same time and are taken "
                f"for different ranks: {paths}"
            )
        found += [merge_parts(chain) for chain in sorted(chains, key=lambda c: str(c[0].path))]
    if lines:  # then numbers of their own
        found = [replace(trace, rank=number) for number, trace in enumerate(found)]
    return found, lines


def _overlap(one: RankTrace, two: RankTrace) -> bool:
    first, second = sorted((one, two), key=lambda each: each.origin_us)
    return second.origin_us * 1000 < first.origin_us * 1000 + _end(first) - 1


def merge_parts(parts: Sequence[RankTrace]) -> RankTrace:
    """One trace of all of them, in the order of their clocks."""
    if len(parts) == 1:
        return parts[0]
    parts = sorted(parts, key=lambda part: part.origin_us)
    strings: dict[str, int] = {}
    tracks: dict[Track, int] = {}
    cpu, runtime, gpu, annotations = [], [], [], []
    about: list[dict[str, Any]] = []
    start = ids = 0
    for part in parts:
        shift = _Shift(
            start=start,
            ids=ids,
            strings=np.array(
                [strings.setdefault(text, len(strings)) for text in part.strings] + [NONE],
                dtype=np.int32,
            ),
            tracks=np.array(
                [tracks.setdefault(track, len(tracks)) for track in part.tracks] + [NONE],
                dtype=np.int32,
            ),
        )
        cpu.append(shift(part.cpu))
        runtime.append(shift(part.runtime))
        gpu.append(shift(part.gpu))
        annotations.append(shift(part.gpu_annotations))
        end = start + _end(part)
        about.append({"path": str(part.path), "start": start, "end": end})
        start, ids = end, ids + _last_id(part) + 1
    first = parts[0]
    return replace(
        first,
        strings=list(strings),
        tracks=list(tracks),
        cpu=_join(cpu),
        runtime=_join(runtime),
        gpu=_join(gpu),
        gpu_annotations=_join(annotations),
        other={**first.other, "parts": about},
        counts={
            key: sum(part.counts.get(key, 0) for part in parts)
            for key in {key for part in parts for key in part.counts}
        },
        num_bytes=sum(part.num_bytes for part in parts),
        warnings=tuple(warning for part in parts for warning in part.warnings),
    )


def _check(parts: Sequence[RankTrace]) -> None:
    for what, of in (("device", _device), ("model", _model)):
        found = {of(part): part.path for part in parts if of(part)}
        if len(found) > 1:
            (one, a), (two, b) = list(found.items())[:2]
            raise TraceError(
                f"{a} and {b} are of different {what}s ({one}, {two}): "
                "give the traces of one profile"
            )


def _device(part: RankTrace) -> str:
    return part.device_name


def _model(part: RankTrace) -> str:
    return str(part.atom.get("model", ""))


class _Shift:
    """A part's columns as the whole's."""

    def __init__(
        self, start: int, ids: int, strings: NDArray[np.int32], tracks: NDArray[np.int32]
    ) -> None:
        self.start, self.ids, self.strings, self.tracks = start, ids, strings, tracks

    def __call__(self, table: Table) -> Table:
        changed = {}
        for column in fields(table):
            values = getattr(table, column.name)
            if column.name in _STRINGS:
                changed[column.name] = self.strings[values]
            elif column.name == "track":
                changed[column.name] = self.tracks[values]
            elif column.name == "ts":
                changed[column.name] = values + self.start
            elif column.name in _IDS:  # each file counts from its own beginning
                changed[column.name] = np.where(values > 0, values + self.ids, values)
        return replace(table, **changed)


def _join(tables: Sequence[Table]) -> Table:
    first = tables[0]
    return type(first)(
        **{
            column.name: np.concatenate([getattr(table, column.name) for table in tables])
            for column in fields(first)
        }
    )


def _end(part: RankTrace) -> int:
    ends = [
        int((table.ts + np.maximum(table.dur, 0)).max())
        for table in (part.cpu, part.runtime, part.gpu, part.gpu_annotations)
        if len(table)
    ]
    return max(ends, default=0) + 1


def _last_id(part: RankTrace) -> int:
    found = [
        int(column.max())
        for column in (
            part.cpu.external,
            part.runtime.external,
            part.runtime.correlation,
            part.gpu.correlation,
            part.gpu.external,
            part.gpu_annotations.external,
        )
        if len(column)
    ]
    return max([0, *found])
