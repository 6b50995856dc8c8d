"""Upstream's sections of performance_summary.md: prefill, decode, draft, iterations.

Titles and columns are upstream's, in its order, with ours behind them.
"""

from __future__ import annotations

import statistics

from atom.trace.md import cpu_span, share, table
from atom.trace.summary import RankSummary
from atom.trace.timeline import StepTime
from atom.trace.words import duration, percent

MAX_PREFILLS = 50
MAX_ITERATIONS = 10


def _of(rank: RankSummary, *kinds: str) -> list[StepTime]:
    return [step for step in rank.steps if step.kind in kinds]


def prefill(rank: RankSummary) -> list[str]:
    steps = _of(rank, "prefill", "mixed")
    if not steps:
        return ["## Prefill", "", "No prefill steps.", ""]
    shown = steps[:MAX_PREFILLS]
    rows = [
        [str(i), f"`{s.label}`", duration(s.gpu_ns), percent(share(s.busy_ns, s.gpu_ns)),
         duration(s.idle_before_ns), cpu_span(s.cpu_ns)]
        for i, s in enumerate(shown)
    ]  # fmt: skip
    columns = ["#", "Label", "Duration", "Busy", "Idle before", "CPU span"]
    lines = ["## Prefill", "", *table(columns, rows, "rlrrrr"), ""]
    if len(steps) > len(shown):
        lines += [f"The first {len(shown)} of {len(steps)} steps.  "]
    return [*lines, f"Total: {duration(sum(s.gpu_ns for s in steps))}", ""]


def decode(rank: RankSummary) -> list[str]:
    steps = _of(rank, "decode")
    if not steps:
        return ["## Decode", "", "No decode steps.", ""]
    spans = [s.gpu_ns for s in steps]
    known = [s.cpu_ns for s in steps if s.cpu_ns]
    rows = [
        ["Iterations", f"{len(spans):,}", f"{len(known):,}"],
        ["Mean", duration(statistics.fmean(spans)), cpu_span(statistics.fmean(known or [0]))],
        ["Min", duration(min(spans)), cpu_span(min(known, default=0))],
        ["Max", duration(max(spans)), cpu_span(max(known, default=0))],
        ["Total", duration(sum(spans)), cpu_span(sum(known))],
    ]
    return ["## Decode", "", *table(["", "GPU", "CPU span"], rows, "lrr"), ""]


def draft(rank: RankSummary) -> list[str]:
    steps = _of(rank, "draft")
    if not steps:
        return []
    title = "## Draft (MTP) Step Breakdown"
    spans = [s.gpu_ns for s in steps]
    lines = [title, "", f"Total steps: {len(steps):,}  "]
    lines += [f"Mean per step: {duration(statistics.fmean(spans))}  "]
    lines += [f"Total: {duration(sum(spans))}", ""]
    places: dict[str, list[int]] = {}
    for step in steps:
        places.setdefault(_place(step), []).append(step.gpu_ns)
    means = {place: statistics.fmean(found) for place, found in places.items()}
    order = sorted(places)
    first = means[order[0]]
    rows = [
        [place, f"{len(places[place]):,}", duration(means[place]), duration(min(places[place])),
         duration(max(places[place])), _delta(means[place] - first)]
        for place in order
    ]  # fmt: skip
    columns = ["Step", "Calls", "Mean", "Min", "Max", "delta vs step 0"]
    lines += [*table(columns, rows, "lrrrrr"), ""]
    rest = [means[place] for place in order[1:]]
    if rest and first > 1.1 * statistics.fmean(rest):
        lines += [f"Step {order[0]} is slower than the others: "
                  f"{duration(first)} against {duration(statistics.fmean(rest))}.", ""]  # fmt: skip
    return lines


def _place(step: StepTime) -> str:
    """ "1/3" of draft[1/3 bs=30]."""
    return step.label.partition("[")[2].partition(" ")[0].rstrip("]") or step.label


def iterations(rank: RankSummary) -> list[str]:
    found = rank.iterations
    if not any(i.drafts for i in found):
        return []

    def row(name: str, decode: float, draft: float, until: float) -> list[str]:
        ratio = percent(draft / decode) if decode else ""
        last = duration(until) if until >= 0 else ""
        return [name, duration(decode), duration(draft), duration(decode + draft), ratio, last]

    rows = [
        row(str(n), i.decode_ns, i.draft_ns, i.until_next_ns)
        for n, i in enumerate(found[:MAX_ITERATIONS])
    ]
    until = [i.until_next_ns for i in found if i.until_next_ns >= 0]
    average = row(
        "Average",
        statistics.fmean(i.decode_ns for i in found),
        statistics.fmean(i.draft_ns for i in found),
        statistics.fmean(until) if until else -1,
    )
    columns = ["#", "Decode", "Draft (sum)", "Total", "Draft/Decode", "To the next"]
    title = "## Iteration Timing (decode + draft)"
    lines = [title, "", *table(columns, [*rows, average], "rrrrrr"), ""]
    if len(found) > MAX_ITERATIONS:
        lines += [f"The first {MAX_ITERATIONS} of {len(found):,}; the average is of all.", ""]
    return lines


def _delta(ns: float) -> str:
    return ("-" if ns < 0 else "+") + duration(abs(ns)) if ns else "-"
