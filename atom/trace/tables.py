"""A breakdown laid out as tables: columns, rows, totals. The one source of sheets, CSV and JSON.

Durations are microseconds (ns / 1000, so three decimals are exact), shares are percent. A column
that has one value per run of kernels holds it in the run's first row and None in the others, so
that it adds up to its total; the module's name stands in every row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from atom.trace.breakdown import Breakdown, ranges
from atom.trace.cxx import demangle
from atom.trace.kernels import kernel_class
from atom.trace.shapes import shapes_text
from atom.trace.types import NONE, Match

Cell = str | int | float | None
UNMATCHED = "<unmatched>"
HOW = {
    Match.NONE: UNMATCHED,
    Match.LAUNCH: "launch",
    Match.GRAPH_NODE: "graph node",
    Match.CAPTURE: "capture",
    Match.ALIGNED: "aligned",
    Match.BLOCKS: "guess from blocks",
}
HOW_MEANS = {
    Match.NONE: "no module is known",
    Match.LAUNCH: "its launch lies within the module's scope",
    Match.GRAPH_NODE: "the trace names the node of the graph, the capture trace knows its module",
    Match.CAPTURE: "same place and same name in the sequence of the capture trace",
    Match.ALIGNED: "by aligning the sequences, which differ somewhere",
    Match.BLOCKS: "no scopes: the layer is a repeating block of kernels, the module a part of it",
}


@dataclass(frozen=True, slots=True)
class Column:
    """`kind`: text, name (a long one), prose (wrapped), us, pct, int."""

    header: str
    key: str  # in JSON
    kind: str
    means: str
    per_run: bool = False  # merged over the rows of a run
    bar: bool = False  # drawn as data bars


@dataclass(frozen=True, slots=True)
class Chart:
    """Bars of `value` by `label` (headers): of the first rows, or of all in order ("columns")."""

    title: str
    label: str
    value: str
    rows: Sequence[tuple[str, float]]
    style: str = "bar"  # or "col"


@dataclass(slots=True)
class Table:
    """One sheet."""

    name: str
    columns: tuple[Column, ...]
    rows: list[list[Cell]] = field(default_factory=list)
    runs: list[tuple[int, int]] = field(default_factory=list)  # first and last row of each run
    total: list[Cell] | None = None
    strong: set[int] = field(default_factory=set)  # rows in bold
    notes: list[str] = field(default_factory=list)  # in the title of its first chart
    charts: list[Chart] = field(default_factory=list)
    below: bool = False  # charts under the table, not beside it

    def objects(self) -> list[dict[str, Cell]]:
        """Rows for JSON."""
        keys = [column.key for column in self.columns]
        return [dict(zip(keys, row, strict=True)) for row in self.rows]

    def total_object(self) -> dict[str, Cell] | None:
        if self.total is None:
            return None
        found = zip(self.columns, self.total, strict=True)
        return {column.key: value for column, value in found if value is not None}


_MODULE = Column("cpu_module", "cpu_module", "text", "module that launched the kernel", True)
_KERNEL = Column("gpu_kernel", "gpu_kernel", "name", "kernel's full name, demangled")
_DURATION = Column("duration_us", "duration_us", "us", "time on the GPU", bar=True)
_CLASS = Column("class", "class", "text", "kind of kernel, by its name")
_STREAM = Column("stream", "stream", "int", "GPU stream")
_OP = Column("op", "op", "text", "operator that launched it")
_SHAPES = Column("shapes", "shapes", "name", "inputs of that operator, if they were recorded")
_MATCHED = Column("match", "match", "text", "how the module was found; see the sheet match")
# One definition in all sheets, so that a kernel has one figure.
ADDS = Column(
    "adds_us", "adds_us", "us",
    "what it adds to the step's busy time: its duration less what kernels before it cover; adds up"
    " to the union",
)  # fmt: skip
OF_STEP = Column("pct of step", "pct_of_step", "pct", "adds_us as share of the step's busy time")
# The seeds' eight, in their order and by their names.
_MAIN = (
    _MODULE,
    _KERNEL,
    _DURATION,
    Column("pct%", "pct", "pct", "share of the TOTAL of duration_us"),
    Column("sum per module", "sum_per_module_us", "us", "sum of the run's durations", True),
    Column("module_pct%", "module_pct", "pct", "share of the TOTAL", True, True),
    Column("avg duration_us", "avg_duration_us", "us", "mean over the layers of the group"),
    Column("avg sum per module", "avg_sum_per_module_us", "us", "mean of the run's sum", True),
)
_MAIN_MORE = (
    ADDS,
    OF_STEP,
    Column("avg over steps", "avg_over_steps_us", "us", "mean of this layer over like steps"),
    Column("min over steps", "min_over_steps_us", "us", "least of those steps"),
    Column("max over steps", "max_over_steps_us", "us", "most of those steps"),
    Column("start_us", "start_us", "us", "since the step's first GPU work"),
    _STREAM,
    _CLASS,
    _MATCHED,
    _OP,
    _SHAPES,
)


def us(ns: float) -> float:
    return ns / 1000


def share(part: float, whole: float) -> float:
    return 100 * part / whole if whole else 0.0


def module_text(module: str) -> str:
    return module or UNMATCHED


def tables(made: Breakdown) -> list[Table]:
    """All sheets of a workbook but the last, `about`."""
    from atom.trace.overviews import (
        layers_table,
        match_table,
        modules_table,
        steps_table,
        unmatched_table,
    )

    made_tables = [
        main_table(made),
        kernel_summary(made),
        modules_table(made),
        layers_table(made),
        step_table(made),
        steps_table(made),
        match_table(made),
    ]
    return [*made_tables, unmatched_table(made)] if made.unmatched else made_tables


def main_table(made: Breakdown) -> Table:
    """The seeds' sheet: one layer, or the whole step where there are no layers."""
    table = Table(made.kind, (*_MAIN, *_MAIN_MORE))
    total, busy = made.layer_sum_ns, made.step.busy_ns
    for run in made.runs:
        first = len(table.rows)
        mean = run.mean_sum_ns
        for kernel in run.kernels:
            head = kernel is run.kernels[0]
            layers, steps = kernel.over_layers, kernel.over_steps
            table.rows.append(
                [
                    module_text(run.module),
                    demangle(kernel.name),
                    us(kernel.duration_ns),
                    share(kernel.duration_ns, total),
                    us(run.sum_ns) if head else None,
                    share(run.sum_ns, total) if head else None,
                    us(layers.mean) if layers else None,
                    us(mean) if head and mean is not None else None,
                    us(kernel.adds_ns),
                    share(kernel.adds_ns, busy),
                    us(steps.mean) if steps else None,
                    us(steps.low) if steps else None,
                    us(steps.high) if steps else None,
                    us(kernel.start_ns),
                    kernel.stream,
                    kernel_class(kernel.name),
                    HOW[kernel.match],
                    kernel.op,
                    shapes_text(kernel.op_args),
                ]
            )
        table.runs.append((first, len(table.rows) - 1))
    means = [run.mean_sum_ns for run in made.runs]
    mean_total = sum(mean for mean in means if mean is not None) if None not in means else None
    row: list[Cell] = ["TOTAL", None, us(total), share(total, total)]
    row += [us(total), share(total, total)]
    row += [None if mean_total is None else us(mean_total)] * 2
    adds = sum(kernel.adds_ns for run in made.runs for kernel in run.kernels)
    row += [us(adds), share(adds, busy)]
    table.total = row + [None] * (len(table.columns) - len(row))
    table.notes, table.below = headline(made) + made.notes, True
    table.charts = [module_chart(made)]
    return table


def headline(made: Breakdown) -> list[str]:
    """What the first sheet shows, in sentences."""
    step, choice = made.step, made.choice
    device = "CPU" if made.device == "CPU" else "GPU"
    lines = [
        f"Step {step.index}: {step.label}",
        f"{choice.how[:1].upper()}{choice.how[1:]}.",
        f"{device} time {us(step.gpu_ns):,.1f} us: busy {us(step.busy_ns):,.1f}, idle"
        f" {us(step.gpu_ns - step.busy_ns):,.1f}; {len(step.rows):,} kernels and copies.",
    ]
    if made.layer is None or made.group is None:
        return lines
    lines.append(
        f"Layer {made.layer}: sum {us(made.layer_sum_ns):,.2f} us, union"
        f" {us(made.layer_busy_ns):,.2f} us, first start to last end"
        f" {us(made.layer_span_ns):,.2f} us."
    )
    group = made.group
    if len(group.layers) > 1:
        lines.append(
            f"Averages over layers: the {len(group.layers)} layers of group {group.name}"
            f" ({ranges(group.layers)}), which run the same kernels."
        )
    else:
        lines.append("No other layer runs the same kernels, so there is no average over layers.")
    outlier = group.outlier
    if outlier is not None:
        lines.append(
            f"Layer {outlier.layer} stands out: {us(outlier.busy_ns):,.2f} us, the median is"
            f" {us(outlier.median_ns):,.2f}; {module_text(outlier.module)} takes"
            f" {us(outlier.module_ns):,.2f} in it, {us(outlier.module_median_ns):,.2f} in others."
        )
    if made.same_steps > 1:
        lines.append(
            f"Over steps: layer {made.layer} in {made.same_steps} of"
            f" {len(made.choice.alike)} steps with {choice.shape}, those with the same kernels."
        )
    return lines


def module_chart(made: Breakdown) -> Chart:
    """Time of the first sheet by module, the largest first."""
    sums: dict[str, int] = {}
    for run in made.runs:
        name = module_text(run.module)
        sums[name] = sums.get(name, 0) + run.sum_ns
    ordered = sorted(sums.items(), key=lambda item: -item[1])[:15]
    where = "the step" if made.layer is None else f"layer {made.layer}"
    rows = [(name, us(ns)) for name, ns in ordered]
    return Chart(f"Time in {where} by module, us", "cpu_module", "us", rows)


def kernel_summary(made: Breakdown) -> Table:
    """Kernels of the whole step by total time."""
    columns = (
        _KERNEL,
        Column("calls", "calls", "int", "how often in the step"),
        Column("total_duration_us", "total_duration_us", "us", "sum over the step", bar=True),
        Column("avg_duration_us", "avg_duration_us", "us", "total by calls"),
        Column("pct%", "pct", "pct", "share of the sum of all"),
        ADDS,
        OF_STEP,
        Column("min_us", "min_us", "us", "least of a call"),
        Column("max_us", "max_us", "us", "most of a call"),
        _CLASS,
        Column("modules", "modules", "name", "where it runs, by time"),
    )
    table = Table("kernel_summary", columns)
    total, busy = made.step.sum_ns, made.step.busy_ns
    for row in made.kernels:
        table.rows.append(
            [
                demangle(row.name),
                row.calls,
                us(row.total_ns),
                us(row.total_ns / row.calls),
                share(row.total_ns, total),
                us(row.adds_ns),
                share(row.adds_ns, busy),
                us(row.low_ns),
                us(row.high_ns),
                kernel_class(row.name),
                ", ".join(module_text(module) for module in row.modules),
            ]
        )
    calls = sum(row.calls for row in made.kernels)
    table.total = ["TOTAL", calls, us(total), us(total / calls), share(total, total)]
    table.total += [us(busy), share(busy, busy)]
    table.total += [None] * (len(columns) - len(table.total))
    classes: dict[str, int] = {}
    for row in made.kernels:
        name = kernel_class(row.name)
        classes[name] = classes.get(name, 0) + row.total_ns
    by_time = sorted(classes.items(), key=lambda item: -item[1])
    rows = [(name, us(ns)) for name, ns in by_time]
    table.charts = [Chart("Time in the step by class, us", "class", "us", rows)]
    table.notes = [f"The whole of step {made.step.index}: {made.step.label}"]
    return table


def step_table(made: Breakdown) -> Table:
    """Every kernel of the step, in the order of the first sheet."""
    columns = (
        Column("layer", "layer", "int", "empty outside of the layers", True),
        _MODULE,
        _KERNEL,
        _DURATION,
        Column("pct%", "pct", "pct", "share of the TOTAL of duration_us"),
        Column("sum per module", "sum_per_module_us", "us", "sum of the run's durations", True),
        ADDS,
        OF_STEP,
        Column("start_us", "start_us", "us", "since the step's first GPU work"),
        Column("gap_us", "gap_us", "us", "the GPU had no work of the step for so long before it"),
        _STREAM,
        _CLASS,
        _MATCHED,
        _OP,
        _SHAPES,
    )
    table = Table("step", columns)
    total, busy = made.step.sum_ns, made.step.busy_ns
    for run in made.step_runs:
        first = len(table.rows)
        for kernel in run.kernels:
            table.rows.append(
                [
                    run.layer if run.layer != NONE else None,
                    module_text(run.module),
                    demangle(kernel.name),
                    us(kernel.duration_ns),
                    share(kernel.duration_ns, total),
                    us(run.sum_ns) if kernel is run.kernels[0] else None,
                    us(kernel.adds_ns),
                    share(kernel.adds_ns, busy),
                    us(kernel.start_ns),
                    us(kernel.gap_ns),
                    kernel.stream,
                    kernel_class(kernel.name),
                    HOW[kernel.match],
                    kernel.op,
                    shapes_text(kernel.op_args),
                ]
            )
        table.runs.append((first, len(table.rows) - 1))
    gaps = sum(kernel.gap_ns for run in made.step_runs for kernel in run.kernels)
    table.total = [None, "TOTAL", None, us(total), share(total, total), us(total)]
    table.total += [us(busy), share(busy, busy), None, us(gaps)] + [None] * 5
    return table
