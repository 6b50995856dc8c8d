"""The sheets beside the first: modules, layers, steps, how kernels were matched, ranks, about."""

from __future__ import annotations

from collections.abc import Sequence

from atom.trace.alike import LayerGroup
from atom.trace.breakdown import Breakdown, ranges
from atom.trace.choice import shape_text
from atom.trace.cxx import demangle
from atom.trace.kernels import kernel_class, short_name
from atom.trace.tables import (
    ADDS,
    HOW,
    HOW_MEANS,
    OF_STEP,
    Cell,
    Chart,
    Column,
    Table,
    module_text,
    share,
    us,
)
from atom.trace.types import NONE, Match

_MOST_BARS = 15
_MOST_POINTS = 2000  # of a chart


def modules_table(made: Breakdown) -> Table:
    """Modules of the whole step by total time, each over its layers."""
    columns = (
        Column("module", "module", "text", "without the layer's number"),
        Column("layers", "layers", "int", "that have it; empty outside of the layers"),
        Column("calls", "calls", "int", "kernels in the step"),
        Column("sum_us", "sum_us", "us", "sum over the step", bar=True),
        Column("pct%", "pct", "pct", "share of the sum of all"),
        Column("busy_us", "busy_us", "us", "union: below the sum where its kernels overlap"),
        ADDS,
        OF_STEP,
        Column("avg per layer", "avg_per_layer_us", "us", "sum by layers"),
        Column("min layer", "min_layer_us", "us", "the fastest layer's sum"),
        Column("max layer", "max_layer_us", "us", "the slowest layer's sum"),
        Column("slowest layer", "slowest_layer", "int", "which that is"),
        Column("kernels", "kernels", "name", "what it runs, by time"),
    )
    table = Table("modules", columns)
    total, busy = made.step.sum_ns, made.step.busy_ns
    for row in made.modules:
        inside = row.in_layers
        table.rows.append(
            [
                module_text(row.module),
                row.layers if inside else None,
                row.calls,
                us(row.sum_ns),
                share(row.sum_ns, total),
                us(row.busy_ns),
                us(row.adds_ns),
                share(row.adds_ns, busy),
                us(row.sum_ns / row.layers) if inside else None,
                us(row.low_ns) if inside else None,
                us(row.high_ns) if inside else None,
                row.slowest_layer if inside else None,
                ", ".join(short_name(name) for name in row.kernels),
            ]
        )
    calls = sum(row.calls for row in made.modules)
    table.total = ["TOTAL", None, calls, us(total), share(total, total)]
    table.total += [us(busy), us(busy), share(busy, busy)] + [None] * 5
    table.notes = [f"The whole of step {made.step.index}: {made.step.label}"]
    bars = [(module_text(row.module), us(row.sum_ns)) for row in made.modules[:_MOST_BARS]]
    table.charts = [Chart("Time in the step by module, us", "module", "us", bars)]
    return table


def layers_table(made: Breakdown) -> Table:
    """One row per layer; what is outside of the layers follows."""
    columns = (
        Column("layer", "layer", "text", "0-based"),
        Column("group", "group", "text", "layers of one group run the same kernels"),
        Column("kernels", "kernels", "int", "kernels and copies"),
        Column("sum_us", "sum_us", "us", "sum of durations"),
        Column("busy_us", "busy_us", "us", "union of them", bar=True),
        ADDS,
        OF_STEP,
        Column("span_us", "span_us", "us", "first start to last end"),
        Column("idle_us", "idle_us", "us", "span less busy: none of the layer's kernels runs"),
        Column("start_us", "start_us", "us", "since the step's first GPU work"),
    )
    table = Table("layers", columns)
    busy = made.step.busy_ns
    for row in made.layers:
        if row.layer == made.layer:
            table.strong.add(len(table.rows))
        values: list[Cell] = [str(row.layer), row.group, row.kernels]
        values += [us(row.sum_ns), us(row.busy_ns), us(row.adds_ns), share(row.adds_ns, busy)]
        values += [us(row.span_ns), us(row.span_ns - row.busy_ns), us(row.start_ns)]
        table.rows.append(values)
    outside = [run for run in made.step_runs if run.layer == NONE]
    if outside:
        kernels = sum(len(run.kernels) for run in outside)
        total = sum(run.sum_ns for run in outside)
        adds = sum(kernel.adds_ns for run in outside for kernel in run.kernels)
        values = ["outside", None, kernels, us(total), None, us(adds), share(adds, busy)]
        table.rows.append([*values, None, None, None])
    table.total = ["STEP", None, len(made.step.rows), us(made.step.sum_ns), us(busy)]
    table.total += [us(busy), share(busy, busy)]
    table.total += [us(made.step.gpu_ns), us(made.step.gpu_ns - busy), None]
    table.notes = group_notes(made)
    bars = [(str(row.layer), us(row.busy_ns)) for row in made.layers]
    if bars:
        table.charts = [Chart("Busy time by layer, us", "layer", "us", bars, "col")]
    return table


def group_notes(made: Breakdown) -> list[str]:
    """Which layers are alike, one line per group."""
    if not made.groups:
        return ["No layers were found."]
    return [_group_note(group, made.groups[0]) for group in made.groups]


def _group_note(group: LayerGroup, largest: LayerGroup) -> str:
    text = (
        f"Group {group.name}: {_many(len(group.layers), 'layer')} ({ranges(group.layers)}),"
        f" {group.kernels} kernels, busy {us(group.mean_busy_ns):,.2f} us on average"
        f" ({us(group.low_busy_ns):,.2f} to {us(group.high_busy_ns):,.2f})"
    )
    if group is largest:
        return text
    parts = [
        f"{more:+d} {short_name(kernel)} in {module_text(module)}"
        for module, kernel, more in group.differs[:4]
    ]
    rest = len(group.differs) - len(parts)
    return f"{text}; against A: {', '.join(parts)}" + (f" and {rest} more" if rest else "")


def _many(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def steps_table(made: Breakdown) -> Table:
    """Every step of the rank."""
    columns = (
        Column("step", "step", "int", "its number, for --step"),
        Column("kind", "kind", "text", "prefill, decode, mixed, draft; step: unknown"),
        Column("label", "label", "name", "as in the trace"),
        Column("shape", "shape", "text", "steps of one shape are compared"),
        Column("gpu_us", "gpu_us", "us", "first start to last end of its GPU work", bar=True),
        Column("busy_us", "busy_us", "us", "union of its GPU work"),
        Column("sum_us", "sum_us", "us", "sum of its GPU work"),
        Column("idle_us", "idle_us", "us", "gpu_us less busy_us"),
        Column("idle%", "idle_pct", "pct", "share of gpu_us"),
        Column("cpu_us", "cpu_us", "us", "the host's span of the label; no measure of its cost"),
        Column("kernels", "kernels", "int", "kernels and copies"),
        Column("graph_launches", "graph_launches", "int", "graphs launched in it"),
        Column("start_us", "start_us", "us", "of its GPU work, since the trace's first event"),
        Column("found_by", "found_by", "text", "what made it a step"),
        Column("warning", "warning", "name", "what is wrong with it"),
    )
    table = Table("steps", columns)
    for step in made.steps:
        if step is made.step:
            table.strong.add(len(table.rows))
        gpu = step.gpu_ns
        table.rows.append(
            [
                step.index,
                step.kind,
                step.label,
                shape_text(step),
                us(gpu),
                us(step.busy_ns),
                us(step.sum_ns),
                us(gpu - step.busy_ns),
                share(gpu - step.busy_ns, gpu),
                us(step.cpu_ns) if step.cpu_start >= 0 else None,
                len(step.rows),
                step.graph_launches,
                us(step.gpu_start) if step.gpu_start >= 0 else None,
                step.found_by,
                step.warning,
            ]
        )
    same = [step for step in made.steps if step.kind == made.kind and len(step.rows)]
    points = [(str(step.index), us(step.gpu_ns)) for step in same[:_MOST_POINTS]]
    first = "" if len(same) <= _MOST_POINTS else f", the first {_MOST_POINTS:,}"
    title = f"GPU time of the {made.kind} steps{first}, us"
    table.charts = [Chart(title, "step", "us", points, "line" if len(points) > 40 else "col")]
    table.notes = [f"In bold: the step shown, {made.choice.how}."]
    return table


def match_table(made: Breakdown) -> Table:
    """How kernels came to their modules, in the step and in all steps, and which did not."""
    columns = (
        Column("how", "how", "text", "from certain to guessed"),
        Column("kernels", "kernels", "int", "in the step shown", bar=True),
        Column("pct%", "pct", "pct", "share of its kernels"),
        Column("sum_us", "sum_us", "us", "their time"),
        Column("time%", "time_pct", "pct", "share of the time"),
        Column("all steps: kernels", "all_kernels", "int", "in all steps that count"),
        Column("all steps: pct%", "all_pct", "pct", "share of those"),
        Column("all steps: sum_us", "all_sum_us", "us", "their time"),
        Column("meaning", "meaning", "name", "what stands behind it"),
    )
    table = Table("match", columns)
    count, total = len(made.step.rows), made.step.sum_ns
    every = sum(row.all_rows for row in made.matches)
    ordered = sorted(made.matches, key=lambda row: (row.match == Match.NONE, row.match))
    for row in ordered:
        here: list[Cell] = [row.rows, share(row.rows, count)]
        here += [us(row.sum_ns), share(row.sum_ns, total)]
        everywhere: list[Cell] = [row.all_rows, share(row.all_rows, every), us(row.all_ns)]
        table.rows.append([HOW[row.match], *here, *everywhere, HOW_MEANS[row.match]])
    table.total = ["TOTAL", count, share(count, count), us(total), share(total, total), every]
    table.total += [share(every, every), us(sum(row.all_ns for row in made.matches)), None]
    return table


def unmatched_table(made: Breakdown) -> Table:
    """Kernels without a module, by time."""
    columns = (
        Column("gpu_kernel", "gpu_kernel", "name", "kernel's full name, demangled"),
        Column("kernels", "kernels", "int", "in the step shown"),
        Column("sum_us", "sum_us", "us", "their time in the step shown", bar=True),
        Column("all steps: kernels", "all_kernels", "int", "in all steps that count"),
    )
    table = Table("unmatched", columns)
    for row in made.unmatched:
        table.rows.append([demangle(row.name), row.rows, us(row.sum_ns), row.all_rows])
    rows, ns = sum(r.rows for r in made.unmatched), sum(r.sum_ns for r in made.unmatched)
    table.total = ["TOTAL", rows, us(ns), sum(row.all_rows for row in made.unmatched)]
    return table


def ranks_table(found: Sequence[Breakdown]) -> Table:
    """The same kind of step on each rank, chosen on each by the same rule."""
    columns = (
        Column("rank", "rank", "int", "of the process"),
        Column("step", "step", "int", "its number on that rank"),
        Column("shape", "shape", "text", "of that step"),
        Column("gpu_us", "gpu_us", "us", "first start to last end of its GPU work"),
        Column("busy_us", "busy_us", "us", "union of its GPU work", bar=True),
        Column("idle_us", "idle_us", "us", "gpu_us less busy_us"),
        Column("communication_us", "communication_us", "us", "sum; waiting for others included"),
        Column("layer", "layer", "int", "that rank's layer: the one shown, if it has that"),
        Column("layer_us", "layer_us", "us", "union of that layer"),
        Column("kernels", "kernels", "int", "kernels and copies"),
        Column("file", "file", "name", "trace of the rank"),
    )
    table = Table("ranks", columns)
    for made in found:
        step = made.step
        told = sum(r.total_ns for r in made.kernels if kernel_class(r.name) == "communication")
        table.rows.append(
            [
                made.rank,
                step.index,
                shape_text(step),
                us(step.gpu_ns),
                us(step.busy_ns),
                us(step.gpu_ns - step.busy_ns),
                us(told),
                made.layer,
                us(made.layer_busy_ns) if made.layer is not None else None,
                len(step.rows),
                made.path.name,
            ]
        )
    table.strong = {0}
    table.notes = [f"The other sheets show rank {found[0].rank}."]
    bars = [(f"rank {made.rank}", us(made.step.busy_ns)) for made in found]
    table.charts = [Chart("Busy time of the step by rank, us", "rank", "us", bars, "col")]
    return table
