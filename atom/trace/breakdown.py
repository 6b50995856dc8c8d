"""One step of one kind, and one layer of it, kernel by kernel: what the sheets, CSV and JSON show.

The one source of all three; `atom.trace.tables` says how it is laid out. Integers are nanoseconds,
means are floats of them. A sum adds durations and exceeds the union ("busy") where kernels overlap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from atom.trace.alike import LayerGroup, LayerRow, Spread, group_layers, spread_over_steps
from atom.trace.choice import Choice, choose
from atom.trace.errors import TraceError
from atom.trace.intervals import union_length
from atom.trace.rollup import (
    KernelRow,
    MatchRow,
    ModuleRow,
    UnmatchedRow,
    added,
    kernels_in,
    matches_in,
    modules_in,
    unmatched_in,
)
from atom.trace.types import I64, NONE, Match, RankModel, Step

DEFAULT_LAYER = 3
_ON_CPU = "a run without a GPU: what is called a kernel here is an operator's own time on the host"


@dataclass(frozen=True, slots=True)
class Kernel:
    """One row of GPU work."""

    row: int  # of RankTrace.gpu
    name: str  # as in the file
    module: str  # without the layer's number; "" unmatched
    layer: int
    start_ns: int  # since the step's first GPU work
    duration_ns: int
    adds_ns: int  # to the step's busy time; see `rollup.added`
    gap_ns: int  # the device had no work of this step for so long before it
    stream: int
    op: str  # the operator that launched it, "" unknown
    op_args: str  # JSON of its shapes
    match: Match
    over_layers: Spread | None = None  # of the same kernel in the layers of the group
    over_steps: Spread | None = None  # of the same kernel in the steps of the same shape


@dataclass(frozen=True, slots=True)
class Run:
    """Contiguous kernels of one module on one stream."""

    module: str
    layer: int
    kernels: tuple[Kernel, ...]

    @property
    def sum_ns(self) -> int:
        return sum(kernel.duration_ns for kernel in self.kernels)

    @property
    def mean_sum_ns(self) -> float | None:
        """Mean over the layers of the group; None if there are no others to compare with."""
        means = [kernel.over_layers.mean for kernel in self.kernels if kernel.over_layers]
        return sum(means) if len(means) == len(self.kernels) else None


@dataclass(frozen=True, slots=True)
class Breakdown:
    """All that one workbook holds."""

    path: Path
    rank: int
    device: str
    kind: str
    choice: Choice
    layer: int | None  # None: no layers were found, `runs` is the whole step
    runs: list[Run]  # of the layer
    layer_sum_ns: int
    layer_busy_ns: int
    layer_span_ns: int
    group: LayerGroup | None  # the one of `layer`; the averages are over its layers
    same_steps: int  # steps that the averages over steps are of
    step_runs: list[Run]  # of the whole step
    modules: list[ModuleRow]
    layers: list[LayerRow]
    groups: list[LayerGroup]
    kernels: list[KernelRow]
    steps: list[Step]  # all of the rank
    matches: list[MatchRow]
    unmatched: list[UnmatchedRow]
    match_rate: float  # share of the rows of all steps with a module, 0 to 1
    match_notes: tuple[str, ...]  # which capture trace was used, what was guessed
    notes: list[str] = field(default_factory=list)  # what a reader must know, one line each

    @property
    def step(self) -> Step:
        return self.choice.step


def breakdown(
    model: RankModel, kind: str, layer: int | None = None, which: str | int = "median"
) -> Breakdown:
    """Take one step of `kind` apart.

    `layer` None means layer 3, or the last one of a smaller model. Raises `TraceError` if there is
    no such step, or no such layer in it.
    """
    choice = choose(model.steps, kind, which)
    step = choice.step
    layer = _layer(model, step, layer)
    step_runs = runs_of(model, step, step.rows)
    if layer is None:
        rows, runs, group, same = step.rows, step_runs, None, 0
        layers: list[LayerRow] = []
        groups: list[LayerGroup] = []
    else:
        rows = step.rows[model.layer[step.rows] == layer]
        layers, groups = group_layers(model, step)
        group = next(group for group in groups if layer in group.layers)
        over_steps, same = spread_over_steps(model, choice.alike, step, layer)
        over_layers = group.spread_by_row(layer) if len(group.layers) > 1 else {}
        runs = runs_of(model, step, rows, over_layers, over_steps)
    gpu = model.trace.gpu
    made = Breakdown(
        path=model.trace.path,
        rank=model.trace.rank,
        device=model.trace.device_name,
        kind=kind,
        choice=choice,
        layer=layer,
        runs=runs,
        layer_sum_ns=int(gpu.dur[rows].sum()),
        layer_busy_ns=union_length(gpu.ts[rows], gpu.end[rows]),
        layer_span_ns=int(gpu.end[rows].max() - gpu.ts[rows].min()),
        group=group,
        same_steps=same,
        step_runs=step_runs,
        modules=modules_in(model, step),
        layers=layers,
        groups=groups,
        kernels=kernels_in(model, step),
        steps=model.steps,
        matches=matches_in(model, step),
        unmatched=unmatched_in(model, step),
        match_rate=model.report.rate,
        match_notes=model.report.notes,
    )
    made.notes.extend(_notes(model, made, rows))
    return made


def runs_of(
    model: RankModel,
    step: Step,
    rows: I64,
    over_layers: dict[int, Spread] | None = None,
    over_steps: dict[int, Spread] | None = None,
) -> list[Run]:
    """`rows` of a step as runs of one module, in time order; runs of several streams stay whole."""
    trace = model.trace
    gpu, strings = trace.gpu, trace.strings
    gaps = dict(zip(step.rows.tolist(), _gaps(model, step.rows).tolist(), strict=True))
    adds = dict(zip(step.rows.tolist(), added(model, step).tolist(), strict=True))
    # Within a stream in time order: rows are, and the sort is stable.
    by_stream = rows[np.lexsort((rows, gpu.stream[rows], gpu.device[rows]))]
    runs: list[tuple[int, Run]] = []
    kernels: list[Kernel] = []
    place: tuple[int, ...] = ()
    for row in by_stream.tolist():
        found = tuple(int(of[row]) for of in (gpu.device, gpu.stream, model.module, model.layer))
        if kernels and found != place:
            runs.append(_run(kernels))
            kernels = []
        place = found
        op = int(model.op[row])
        args = int(model.op_args[row])
        kernels.append(
            Kernel(
                row=row,
                name=model.kernel_name(row),
                module=model.module_name(row),
                layer=int(model.layer[row]),
                start_ns=int(gpu.ts[row]) - step.gpu_start,
                duration_ns=int(gpu.dur[row]),
                adds_ns=adds[row],
                gap_ns=gaps[row],
                stream=int(gpu.stream[row]),
                op=strings[op] if op >= 0 else "",
                op_args=strings[args] if args >= 0 else "",
                match=Match(int(model.match[row])),
                over_layers=(over_layers or {}).get(row),
                over_steps=(over_steps or {}).get(row),
            )
        )
    if kernels:
        runs.append(_run(kernels))
    return [run for _, run in sorted(runs, key=lambda item: item[0])]


def _run(kernels: Sequence[Kernel]) -> tuple[int, Run]:
    return kernels[0].row, Run(kernels[0].module, kernels[0].layer, tuple(kernels))


def _gaps(model: RankModel, rows: I64) -> I64:
    """How long the step had no GPU work before each row; in sum its span less its union."""
    gpu = model.trace.gpu
    gaps = np.zeros(len(rows), np.int64)
    if len(rows) > 1:
        reached = np.maximum.accumulate(gpu.end[rows])
        gaps[1:] = np.maximum(gpu.ts[rows][1:] - reached[:-1], 0)
    return gaps


def layers_of(model: RankModel, step: Step) -> list[int]:
    """The layers that have kernels in the step, ascending."""
    found = np.unique(model.layer[step.rows])
    return [int(layer) for layer in found if layer != NONE]


def ranges(numbers: Sequence[int]) -> str:
    """[0, 1, 2, 5] -> "0-2, 5"; ascending numbers."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ", ".join("-".join(map(str, part)) for part in parts)


def _layer(model: RankModel, step: Step, asked: int | None) -> int | None:
    there = layers_of(model, step)
    if asked is None:
        if not there:
            return None
        return DEFAULT_LAYER if DEFAULT_LAYER in there else there[-1]
    if asked in there:
        return asked
    where = f"{step.kind} step {step.index}"
    if not there:
        raise TraceError(
            f"--layer {asked}: no layers were found in the {where}; without --layer the workbook"
            " shows the whole step"
        )
    raise TraceError(f"--layer {asked}: the {where} has layers {ranges(there)}")


def _notes(model: RankModel, made: Breakdown, rows: I64) -> list[str]:
    step, gpu = made.step, model.trace.gpu
    notes = [_ON_CPU] if made.device == "CPU" else []  # see `atom.trace.device_cpu`
    if step.warning:
        notes.append(f"step {step.index}: {step.warning}")
    if made.layer is None:
        notes.append("no layers were found; the first sheet shows the whole step")
        return notes
    if made.layer != DEFAULT_LAYER and DEFAULT_LAYER not in layers_of(model, step):
        notes.append(f"the step has layers {ranges(layers_of(model, step))}")
    if made.layer_sum_ns > made.layer_busy_ns:
        more = (made.layer_sum_ns - made.layer_busy_ns) / 1000
        notes.append(f"kernels of the layer overlap: the sum exceeds the union by {more:,.2f} us")
    inside = step.rows[(gpu.ts[step.rows] >= gpu.ts[rows].min()) & (model.module[step.rows] < 0)]
    inside = inside[gpu.ts[inside] <= gpu.end[rows].max()]
    if len(inside):
        us = int(gpu.dur[inside].sum()) / 1000
        what = "1 kernel" if len(inside) == 1 else f"{len(inside):,} kernels"
        notes.append(
            f"{what} without a module, {us:,.2f} us, between the layer's first and last kernel:"
            " in no layer"
        )
    if any(kernel.match == Match.BLOCKS for run in made.runs for kernel in run.kernels):
        notes.append("no scopes: layers are repeating blocks of kernels, modules are their parts")
    return notes
