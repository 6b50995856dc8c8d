"""What a step's kernels come to: by module, by kernel, and by how their module was found."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from atom.trace.intervals import union_length
from atom.trace.types import I64, NONE, Match, RankModel, Step


def added(model: RankModel, step: Step) -> I64:
    """What each of the step's rows adds to its busy time, ns: its own time, less what rows before
    it cover. Parallel to `step.rows`; sums to the step's union.

    A kernel that was launched early (programmatic dependent launch) waits on the GPU for the one
    before it, and its duration holds that wait; what it adds does not.
    """
    gpu = model.trace.gpu
    start, end = gpu.ts[step.rows], gpu.end[step.rows]
    if len(start) > 1:
        reached = np.maximum.accumulate(end)[:-1]
        start = np.append(start[:1], np.maximum(start[1:], reached))
    adds: I64 = np.maximum(end - start, 0)
    return adds


@dataclass(frozen=True, slots=True)
class ModuleRow:
    """One module over the whole step."""

    module: str
    in_layers: bool  # else outside of the layers: embedding, head, sampling
    calls: int  # kernels
    sum_ns: int
    busy_ns: int
    adds_ns: int
    layers: int  # that have it
    low_ns: int  # least and most of a layer's sum
    high_ns: int
    slowest_layer: int  # -1 outside of layers
    kernels: tuple[str, ...]  # names as in the file, by total time


@dataclass(frozen=True, slots=True)
class KernelRow:
    """One kernel by name over the whole step."""

    name: str
    calls: int
    total_ns: int
    adds_ns: int
    low_ns: int
    high_ns: int
    modules: tuple[str, ...]  # by total time


@dataclass(frozen=True, slots=True)
class MatchRow:
    """How many kernels came to their module in one way."""

    match: Match
    rows: int  # in this step
    sum_ns: int
    all_rows: int  # in all steps of the rank
    all_ns: int


@dataclass(frozen=True, slots=True)
class UnmatchedRow:
    """A kernel's name that has rows without a module."""

    name: str
    rows: int  # in this step
    sum_ns: int
    all_rows: int  # in all steps of the rank


def modules_in(model: RankModel, step: Step) -> list[ModuleRow]:
    """By total time."""
    gpu = model.trace.gpu
    rows, adds = step.rows, added(model, step)
    inside = model.layer[rows] != NONE
    # A module's name inside the layers is another module than the same name outside.
    code = model.module[rows].astype(np.int64) * 2 + inside
    made = []
    for part in _split(code):
        mine = rows[part]
        layers = model.layer[mine]
        here, index = np.unique(layers, return_inverse=True)
        sums = np.bincount(index, weights=gpu.dur[mine]).astype(np.int64)
        within = bool(inside[part[0]])
        made.append(
            ModuleRow(
                module=model.module_name(int(mine[0])),
                in_layers=within,
                calls=len(mine),
                sum_ns=int(gpu.dur[mine].sum()),
                busy_ns=union_length(gpu.ts[mine], gpu.end[mine]),
                adds_ns=int(adds[part].sum()),
                layers=len(here) if within else 0,
                low_ns=int(sums.min()),
                high_ns=int(sums.max()),
                slowest_layer=int(here[int(sums.argmax())]) if within else NONE,
                kernels=_names_by_time(model, mine),
            )
        )
    return sorted(made, key=lambda row: -row.sum_ns)


def _names_by_time(model: RankModel, rows: I64) -> tuple[str, ...]:
    gpu = model.trace.gpu
    names, index = np.unique(gpu.name[rows], return_inverse=True)
    total = np.bincount(index, weights=gpu.dur[rows])
    return tuple(model.trace.strings[int(names[i])] for i in np.argsort(-total, kind="stable"))


def kernels_in(model: RankModel, step: Step) -> list[KernelRow]:
    """By total time."""
    gpu, adds = model.trace.gpu, added(model, step)
    made = []
    for part in _split(gpu.name[step.rows].astype(np.int64)):
        rows = step.rows[part]
        dur = gpu.dur[rows]
        modules, index = np.unique(model.module[rows], return_inverse=True)
        total = np.bincount(index, weights=dur)
        by_time = [int(modules[i]) for i in np.argsort(-total, kind="stable")]
        made.append(
            KernelRow(
                name=model.kernel_name(int(rows[0])),
                calls=len(rows),
                total_ns=int(dur.sum()),
                adds_ns=int(adds[part].sum()),
                low_ns=int(dur.min()),
                high_ns=int(dur.max()),
                modules=tuple(model.modules[i] if i >= 0 else "" for i in by_time),
            )
        )
    return sorted(made, key=lambda row: -row.total_ns)


def _split(code: I64) -> list[I64]:
    """The places of each value of `code`, ascending; values in order of their first place."""
    order = np.argsort(code, kind="stable")
    cuts = np.flatnonzero(np.diff(code[order])) + 1
    return sorted(np.split(order, cuts), key=lambda part: int(part[0]))


def matches_in(model: RankModel, step: Step) -> list[MatchRow]:
    match = model.match[step.rows]
    dur = model.trace.gpu.dur[step.rows]
    made = []
    for kind in Match:
        mine = match == kind
        report = model.report
        row = MatchRow(
            kind,
            int(mine.sum()),
            int(dur[mine].sum()),
            int(report.rows.get(kind, 0)),
            int(report.ns.get(kind, 0)),
        )
        if row.rows or row.all_rows:
            made.append(row)
    return made


def unmatched_in(model: RankModel, step: Step) -> list[UnmatchedRow]:
    """By time in the step, then by number in all steps."""
    gpu, names = model.trace.gpu, {}
    rows = step.rows[model.match[step.rows] == Match.NONE]
    for part in _split(gpu.name[rows].astype(np.int64)) if len(rows) else []:
        names[model.kernel_name(int(rows[part[0]]))] = rows[part]
    everywhere = model.report.unmatched
    made = []
    for name in {**names, **everywhere}:
        mine = names.get(name, rows[:0])
        ns = int(gpu.dur[mine].sum())
        made.append(UnmatchedRow(name, len(mine), ns, everywhere.get(name, len(mine))))
    return sorted(made, key=lambda row: (-row.sum_ns, -row.all_rows))
