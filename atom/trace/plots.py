"""The plots of performance_summary.md: SVG files beside it, small, readable in light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from atom.trace.kernels import CLASSES, kernel_class, short_name
from atom.trace.pace import StepGroup
from atom.trace.ranking import own_times
from atom.trace.summary import RankSummary, Summary, idle_parts
from atom.trace.svg import COLOURS, WIDTH, Svg, log_ticks, text_width, ticks
from atom.trace.types import I64, Analysis, RankModel, Step
from atom.trace.words import duration, percent

STEM = "performance_summary"
KIND_COLOURS = {
    "prefill": "#f59e0b",
    "decode": "#3b82f6",
    "mixed": "#10b981",
    "draft": "#d946ef",
    "step": "#3b82f6",
}
PARTS = {
    "computing": "#3b82f6",
    "exposed communication": "#d946ef",
    "exposed copies": "#14b8a6",
    "other work": "#94a3b8",
    "waiting for the host to launch": "#f59e0b",
    "launch latency": "#facc15",
    "gaps between launched kernels": "#fb923c",
    "gaps beside copies": "#c2853a",
    "launch not in the file": "#a8a29e",
    "idle": "#ef4444",
    "idle before": "#fca5a5",
}
LEFT, RIGHT = 150, 16  # of the drawings' bars
LOG_FROM = 30.0  # longest over shortest step from which the axis is logarithmic
MAX_STREAMS = 6
MAX_LABEL = 24
HANGING = 110.0  # what the last name below a layer needs on the right


def write_plots(analysis: Analysis, summary: Summary, folder: Path) -> list[Path]:
    """Write those that have something to show, of the first rank; gives their paths."""
    rank = summary.first
    drawn = {
        "steps": draw_steps(rank, summary.device),
        "time": draw_time(rank, summary.device),
        "classes": draw_classes(rank),
        "step": draw_step(analysis.first, rank),
    }
    written = []
    for name, drawing in drawn.items():
        if drawing is not None:
            path = folder / f"{STEM}_{name}.svg"
            path.write_text(drawing.render(), encoding="utf-8")
            written.append(path)
    return written


# --- steps over time --------------------------------------------------------------------------


def draw_steps(rank: RankSummary, device: str) -> Svg | None:
    """A dot per step: when it began, how long its GPU work took."""
    steps = [s for s in rank.steps if s.gpu_ns > 0]
    if len(steps) < 2:
        return None
    svg = Svg(240, "Time of every step over the run")
    svg.text(16, 24, f"{device.upper()} time of every step", "title")
    kinds = list(dict.fromkeys(s.kind for s in steps))
    svg.legend(190, 24, [(KIND_COLOURS.get(k, COLOURS["other"]), k) for k in kinds])
    x0, x1, y0, y1 = 70.0, WIDTH - 20.0, 200.0, 44.0
    low, high = min(s.gpu_ns for s in steps), max(s.gpu_ns for s in steps)
    logarithmic = high > LOG_FROM * low
    marks = log_ticks(low, high) if logarithmic else ticks(high)
    scale = math.log10 if logarithmic else float
    bottom, top = scale(marks[0]), scale(marks[-1])
    for mark in marks:
        y = y0 + (y1 - y0) * (scale(mark) - bottom) / (top - bottom)
        svg.line(x0, y, x1, y, "grid")
        svg.text(x0 - 6, y + 4, _tick(mark), "dim small", "end")
    start = steps[0].start_ns
    span = max(max(s.start_ns for s in steps) - start, 1)
    cells: dict[tuple[str, int], tuple[float, float]] = {}
    for step in steps:  # the extremes of each column of pixels are all that shows
        x = round(x0 + (x1 - x0) * (step.start_ns - start) / span)
        y = y0 + (y1 - y0) * (scale(step.gpu_ns) - bottom) / (top - bottom)
        least, most = cells.get((step.kind, x), (y, y))
        cells[step.kind, x] = (min(least, y), max(most, y))
    for (kind, x), extremes in cells.items():
        for y in dict.fromkeys(extremes):
            svg.dot(x, y, KIND_COLOURS.get(kind, COLOURS["other"]))
    svg.line(x0, y0, x1, y0)
    for mark in (t for t in ticks(span, 6) if t <= span):
        at = x0 + (x1 - x0) * mark / span
        svg.line(at, y0, at, y0 + 4)
        svg.text(at, y0 + 16, _tick(mark), "dim small", "middle")
    note = "start of the step" + (", logarithmic above" if logarithmic else "")
    svg.text(x1, y0 + 32, note, "dim small", "end")
    return svg


def _tick(ns: float) -> str:
    for unit, size in (("s", 1e9), ("ms", 1e6), ("us", 1e3)):
        if ns >= size:
            return f"{ns / size:g} {unit}"
    return f"{ns:g} ns" if ns else "0"


# --- where the time goes ----------------------------------------------------------------------


def draw_time(rank: RankSummary, device: str) -> Svg | None:
    """One bar per device for the whole run, one per shape of steps for its mean step."""
    if device == "cpu" or not rank.devices:
        return None
    bars: list[tuple[str, float, list[tuple[str, float]]]] = []
    for time in rank.devices:
        parts: list[tuple[str, float]] = [
            ("computing", time.computation_ns),
            ("exposed communication", time.exposed_communication_ns),
            ("exposed copies", time.exposed_copy_ns),
            *idle_parts(time),
        ]
        name = f"GPU {time.device}, whole run" if len(rank.devices) > 1 else "whole run"
        bars.append((name, time.span_ns, parts))
    for group in sorted(rank.groups, key=lambda g: -g.total_ns)[:6]:
        bars.append((group.shape, group.mean_ns + group.idle_before_ns, _group_parts(group)))
    return _stacked("Where the time goes: the run, and a mean step of each shape", bars, PARTS)


def _group_parts(group: StepGroup) -> list[tuple[str, float]]:
    return [
        ("idle before", group.idle_before_ns),
        ("computing", group.computation_ns),
        ("exposed communication", group.exposed_communication_ns),
        ("exposed copies", group.exposed_copy_ns),
        ("other work", group.other_ns),
        ("idle", group.idle_ns),
    ]


def draw_classes(rank: RankSummary) -> Svg | None:
    """Busy time of each kind of step by class of kernel."""
    bars = [
        (
            kind.kind,
            kind.busy_ns / max(kind.steps, 1),
            [(name, share * kind.busy_ns) for name, share in kind.classes],
        )
        for kind in rank.kinds
        if kind.busy_ns
    ]
    if not bars:
        return None
    return _stacked("Busy time by class of kernel, mean step of each kind", bars, COLOURS)


def _stacked(
    title: str, bars: Sequence[tuple[str, float, list[tuple[str, float]]]], colours: dict[str, str]
) -> Svg:
    """Bars of equal width, each part as its share; the length stands at their right end."""
    used = [name for name in colours if any(p == name and ns for _, _, ps in bars for p, ns in ps)]
    probe = Svg(0, "")
    legend = probe.legend(16, 0, [(colours[name], name) for name in used])
    svg = Svg(44 + 30 * len(bars) + legend + 8, title)
    svg.text(16, 24, title, "title")
    left = max(LEFT, 26 + max(text_width(name) for name, _, _ in bars))
    width = WIDTH - RIGHT - left - 70
    for i, (name, length, parts) in enumerate(bars):
        y = 40 + 30 * i
        svg.text(left - 8, y + 15, name, "", "end")
        whole = sum(ns for _, ns in parts) or 1
        x = float(left)
        for part, ns in parts:
            w = width * ns / whole
            if ns:
                hint = f"{name}: {part} {percent(ns / whole)}"
                svg.rect(x, y, w, 21, colours.get(part, COLOURS["other"]), hint)
            if w > 34:
                svg.text(x + w / 2, y + 15, percent(ns / whole), "on small", "middle")
            x += w
        svg.text(left + width + 8, y + 15, duration(length), "dim")
    svg.legend(16, 40 + 30 * len(bars) + 18, [(colours[name], name) for name in used])
    return svg


# --- one step ---------------------------------------------------------------------------------


def draw_step(model: RankModel, rank: RankSummary) -> Svg | None:
    """The median step of the shape with most time: its streams by class, and one layer of it."""
    groups = [g for g in rank.groups if g.kind == "decode"] or list(rank.groups)
    if not groups:
        return None
    group = max(groups, key=lambda g: g.total_ns)
    order = sorted(group.indices, key=lambda i: (model.steps[i].gpu_ns, i))
    step = model.steps[order[(len(order) - 1) // 2]]
    if step.gpu_ns <= 0:
        return None
    streams = _streams(model, step)
    layer = _middle_layer(model, step)
    svg = Svg(74 + 34 * len(streams) + (150 if layer >= 0 else 0), "One step, kernel by kernel")
    svg.text(16, 24, f"{step.label}: {duration(step.gpu_ns)}", "title")
    names = (model.trace.strings[int(i)] for i in np.unique(model.trace.gpu.name[step.rows]))
    classes = {kernel_class(name) for name in names}
    used = [name for name in CLASSES if name in classes]
    y = svg.legend(16, 44, [(COLOURS[name], name) for name in used])
    for stream, rows in streams:
        svg.text(16, y + 17, f"stream {stream}", "dim")
        _strip(svg, model, step, rows, 84, y, WIDTH - 84 - RIGHT)
        y += 34
    if layer >= 0:
        _layer(svg, model, step, layer, y + 6)
        y += 150
    svg.height = y + 8
    return svg


def _streams(model: RankModel, step: Step) -> list[tuple[int, I64]]:
    """Those with most work first."""
    gpu = model.trace.gpu
    found = []
    for stream in np.unique(gpu.stream[step.rows]).tolist():
        rows = step.rows[gpu.stream[step.rows] == stream]
        found.append((stream, rows))
    found.sort(key=lambda each: -int(gpu.dur[each[1]].sum()))
    return found[:MAX_STREAMS]


def _strip(
    svg: Svg, model: RankModel, step: Step, rows: I64, x0: float, y: float, width: float
) -> None:
    """Each pixel column in the colour of the class with most own time in it, as high as busy."""
    gpu = model.trace.gpu
    cells = int(width)
    own = own_times(model, rows)
    end = gpu.end[rows]
    scale = cells / step.gpu_ns
    first = (end - own - step.gpu_start) * scale
    last = (end - step.gpu_start) * scale
    covered = np.zeros((len(CLASSES), cells + 1))
    kinds = [CLASSES.index(kernel_class(model.kernel_name(int(r)))) for r in rows]
    for kind, a, b in zip(kinds, first.tolist(), last.tolist(), strict=True):
        low, high = int(a), min(int(b), cells)
        if low == high:
            covered[kind, low] += b - a
        else:
            covered[kind, low] += low + 1 - a
            covered[kind, low + 1 : high] += 1
            covered[kind, high] += b - high
    share = np.minimum(covered.sum(axis=0), 1.0)
    best = covered.argmax(axis=0)
    svg.line(x0, y + 24, x0 + cells, y + 24, "grid")
    begin = 0
    for x in range(1, cells + 1):  # equal neighbours are one rectangle
        same = x < cells and best[x] == best[begin] and abs(share[x] - share[begin]) < 0.02
        if not same:
            height = 24 * share[begin]
            if height >= 0.3:
                colour = COLOURS[CLASSES[best[begin]]]
                svg.rect(x0 + begin, y + 24 - height, x - begin, height, colour)
            begin = x


def _middle_layer(model: RankModel, step: Step) -> int:
    """The layer whose kernels take the median time; -1 if none is known."""
    layers = model.layer[step.rows]
    found, inverse = np.unique(layers, return_inverse=True)
    sums = np.zeros(len(found), np.int64)
    np.add.at(sums, inverse, model.trace.gpu.dur[step.rows])
    known = sorted((int(s), int(layer)) for s, layer in zip(sums, found, strict=True) if layer >= 0)
    return known[len(known) // 2][1] if known else -1


def _layer(svg: Svg, model: RankModel, step: Step, layer: int, y: float) -> None:
    """A layer's kernels side by side by own time in the step: a first kernel that waits for the
    layer before has not worked yet. Names below."""
    gpu = model.trace.gpu
    within = model.layer[step.rows] == layer
    rows, own = step.rows[within], own_times(model, step.rows)[within]
    whole = int(own.sum()) or 1
    svg.text(16, y + 12, f"layer {layer}: {duration(whole)}, {len(rows)} kernels", "dim")
    x, width = 16.0, WIDTH - 16.0 - HANGING
    labels: list[tuple[str, float]] = []  # of neighbours of one module once
    for row, ns in zip(rows.tolist(), own.tolist(), strict=True):
        name = model.kernel_name(row)
        w = width * ns / whole
        module = model.module_name(row)
        hint = f"{short_name(name)} ({module}): {duration(int(gpu.dur[row]))}"
        svg.rect(x + 0.5, y + 20, max(w - 1, 0.5), 24, COLOURS[kernel_class(name)], hint)
        if w > 40:
            svg.text(x + w / 2, y + 36, duration(ns), "on small", "middle")
        label = module or short_name(name)
        if not labels or labels[-1][0] != label:
            labels.append((label, x + min(w / 2, 20)))
        x += w
    _hang(svg, labels, y + 56)


def _hang(svg: Svg, labels: list[tuple[str, float]], y: float) -> None:
    """Names aslant below their blocks, each where there is room for it."""
    reach = -math.inf
    for label, x in labels:
        if x < reach + 12:
            continue
        reach = x
        while len(label) > MAX_LABEL and "." in label:
            label = label.partition(".")[2]
        svg.text(x, y, label[:MAX_LABEL], "dim small", turn=35)
