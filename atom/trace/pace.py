"""How steps follow one another: groups of one shape, iterations of decode and draft, the steady
stretch, and how far ahead of the GPU the host launches."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from atom.trace.timeline import StepTime, windows
from atom.trace.types import NONE, RankModel

FEWEST_STEADY = 3


@dataclass(frozen=True, slots=True)
class StepGroup:
    """Steps of one shape. Times are of GPU work, ns; means but where said."""

    kind: str
    shape: str
    steps: int
    median_ns: float
    mean_ns: float
    min_ns: int
    max_ns: int
    std_ns: float  # of the sample; 0 for one step
    total_ns: int
    busy_ns: float
    sum_ns: float
    computation_ns: float
    exposed_communication_ns: float
    exposed_copy_ns: float
    other_ns: float
    idle_ns: float
    idle_before_ns: float
    cpu_ns: float
    rows: float
    graph_launches: float
    indices: tuple[int, ...]  # into RankModel.steps
    warnings: int  # steps with a warning


@dataclass(frozen=True, slots=True)
class Iteration:
    """A decode step and the draft steps behind it. ns of GPU work; -1: not known."""

    decode: int  # index of the step
    decode_ns: int
    draft_ns: int  # sum of the draft steps' spans
    drafts: int
    until_next_ns: int  # from this decode's first work to the next one's; -1 for the last

    @property
    def total_ns(self) -> int:
        return self.decode_ns + self.draft_ns


@dataclass(frozen=True, slots=True)
class Steady:
    """The longest stretch in which steps of one shape follow one another."""

    shape: str
    first: int  # index of its first step
    steps: int
    span_ns: int  # from the first one's first work to the last one's
    mean_interval_ns: float
    median_interval_ns: float
    p99_interval_ns: float
    tokens_per_s: float  # computed, by the labels, accepted or not; 0 if they do not say
    idle_share: float  # of the span, no work of the rank


@dataclass(frozen=True, slots=True)
class Launches:
    """Calls that put work on the device within the windows of the steps."""

    calls: int  # with a known launch
    graphs: int
    rows: int
    rows_without_launch: int
    median_delay_ns: float  # from the call to the start of its first work
    p90_delay_ns: float
    median_queue: float  # calls not yet begun on the device, seen at each call
    max_queue: int


def group_steps(steps: Sequence[StepTime]) -> list[StepGroup]:
    """By shape; kinds in the order of their first step, within one the most time first, drafts by
    their place."""
    shapes: dict[tuple[str, str], list[StepTime]] = {}
    for step in steps:
        shapes.setdefault((step.kind, step.shape), []).append(step)
    kinds = list(dict.fromkeys(step.kind for step in steps))
    groups = [_group(found) for found in shapes.values()]
    by_time = sorted(groups, key=lambda g: (kinds.index(g.kind), -g.total_ns))
    drafts = iter(sorted((g for g in groups if g.kind == "draft"), key=lambda g: g.shape))
    return [next(drafts) if g.kind == "draft" else g for g in by_time]


def _group(steps: list[StepTime]) -> StepGroup:
    spans = [s.gpu_ns for s in steps]

    def mean(name: str) -> float:
        return statistics.fmean(getattr(s, name) for s in steps)

    return StepGroup(
        kind=steps[0].kind,
        shape=steps[0].shape,
        steps=len(steps),
        median_ns=statistics.median(spans),
        mean_ns=mean("gpu_ns"),
        min_ns=min(spans),
        max_ns=max(spans),
        std_ns=statistics.stdev(spans) if len(spans) > 1 else 0.0,
        total_ns=sum(spans),
        busy_ns=mean("busy_ns"),
        sum_ns=mean("sum_ns"),
        computation_ns=mean("computation_ns"),
        exposed_communication_ns=mean("exposed_communication_ns"),
        exposed_copy_ns=mean("exposed_copy_ns"),
        other_ns=mean("other_ns"),
        idle_ns=mean("idle_ns"),
        idle_before_ns=mean("idle_before_ns"),
        cpu_ns=mean("cpu_ns"),
        rows=mean("rows"),
        graph_launches=mean("graph_launches"),
        indices=tuple(s.index for s in steps),
        warnings=sum(bool(s.warning) for s in steps),
    )


def iterations(steps: Sequence[StepTime]) -> list[Iteration]:
    """Every decode step with the draft steps before the next step of another kind."""
    found: list[tuple[StepTime, list[StepTime]]] = []
    open_now = False
    for step in steps:
        if step.kind == "decode":
            found.append((step, []))
        elif step.kind == "draft" and open_now:
            found[-1][1].append(step)
        open_now = step.kind == "decode" or (open_now and step.kind == "draft")
    decodes = [decode for decode, _ in found]
    until = [
        b.start_ns - a.start_ns if a.part == b.part else NONE
        for a, b in itertools.pairwise(decodes)
    ]
    until = [*until, NONE][: len(decodes)]
    return [
        Iteration(d.index, d.gpu_ns, sum(s.gpu_ns for s in drafts), len(drafts), wait)
        for (d, drafts), wait in zip(found, until, strict=True)
    ]


def steady(steps: Sequence[StepTime]) -> Steady | None:
    """None where no shape has `FEWEST_STEADY` steps in a row; draft steps do not break a row."""
    rows: list[list[StepTime]] = []
    for step in steps:
        if step.kind == "draft":
            continue
        last = rows[-1][-1] if rows else step
        if rows and (last.part, last.shape) == (step.part, step.shape):
            rows[-1].append(step)
        else:
            rows.append([step])
    rows = [row for row in rows if len(row) >= FEWEST_STEADY]
    if not rows:
        return None
    row = max(rows, key=lambda r: r[-1].start_ns - r[0].start_ns)
    span = row[-1].start_ns - row[0].start_ns
    intervals = np.diff([s.start_ns for s in row])
    tokens = [s.tokens for s in row[:-1]]
    # Drafts run within the stretch and have idle time of their own.
    within = [s for s in steps if row[0].start_ns <= s.start_ns < row[-1].start_ns]
    idle = sum(s.idle_ns for s in within) + sum(s.idle_before_ns for s in within[1:])
    return Steady(
        shape=row[0].shape,
        first=row[0].index,
        steps=len(row),
        span_ns=span,
        mean_interval_ns=float(intervals.mean()),
        median_interval_ns=float(np.median(intervals)),
        p99_interval_ns=float(np.percentile(intervals, 99)),
        tokens_per_s=sum(tokens) / span * 1e9 if span and min(tokens) >= 0 else 0.0,
        idle_share=min(1.0, (idle + row[-1].idle_before_ns) / span) if span else 0.0,
    )


def launches(model: RankModel) -> Launches | None:
    """None if the file has no launches (a CPU profile, a file without runtime events)."""
    gpu = model.trace.gpu
    touched = np.zeros(len(gpu), bool)
    for low, high in windows(model):
        touched |= (gpu.ts < high) & (gpu.end > low)
    inside = np.flatnonzero(touched)
    known = inside[(model.launch[inside] >= 0) & (gpu.correlation[inside] > 0)]
    if not len(known):
        return None
    _, first, count = np.unique(gpu.correlation[known], return_index=True, return_counts=True)
    called, began = model.launch[known[first]], gpu.ts[known[first]]
    order = np.argsort(called, kind="stable")
    begun = np.searchsorted(np.sort(began), called[order], side="right")
    queue = np.arange(1, len(order) + 1) - begun
    graph_calls = sum(s.graph_launches for s in model.steps if s.counts)
    return Launches(
        calls=len(first),
        graphs=graph_calls,
        rows=int(count.sum()),
        rows_without_launch=len(inside) - len(known),
        median_delay_ns=float(np.median(began - called)),
        p90_delay_ns=float(np.percentile(began - called, 90)),
        median_queue=float(np.median(queue)),
        max_queue=int(queue.max()),
    )
