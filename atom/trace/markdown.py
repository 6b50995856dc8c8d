"""performance_summary.md: upstream's sections with their columns first, then ours; plots beside it.

Every step is timed by its GPU work; the host's span, which upstream's summary shows, stands beside.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from pathlib import Path

from atom.trace.kernels import short_name
from atom.trace.markdown_steps import decode, draft, iterations, prefill
from atom.trace.md import cpu_span, escaped, figure, share, table
from atom.trace.ranking import UNKNOWN, Top
from atom.trace.summary import RankSummary, Summary, idle_parts, summarize, told_kinds
from atom.trace.timeline import Gap
from atom.trace.types import Analysis
from atom.trace.words import count, duration, percent, size

FILE = "performance_summary.md"


def write_summary(analysis: Analysis, folder: Path, summary: Summary | None = None) -> list[Path]:
    """Write performance_summary.md and its plots into `folder`, which is made if need be.

    Returns what was written, the Markdown first.
    """
    from atom.trace.plots import write_plots

    summary = summary or summarize(analysis)
    folder.mkdir(parents=True, exist_ok=True)
    plots = write_plots(analysis, summary, folder)
    path = folder / FILE
    path.write_text(markdown(summary, {p.stem: p.name for p in plots}), encoding="utf-8")
    return [path, *plots]


def markdown(summary: Summary, plots: dict[str, str] | None = None) -> str:
    """The document. `plots`: stem -> file name relative to it, of those that exist."""
    plots = plots or {}
    rank = summary.first
    parts = [
        *_head(summary),
        *prefill(rank),
        *decode(rank),
        *draft(rank),
        *iterations(rank),
        *figure(plots, "performance_summary_steps", "Time of every step over the run"),
        *_shapes(rank),
        *_time(rank, summary.device, plots),
        *_one_step(plots),
        *_rankings(rank, "module", "Modules"),
        *_rankings(rank, "kernel", "Top kernels"),
        "## Classes of kernels",
        "",
        *figure(plots, "performance_summary_classes", "Classes of kernels by kind of step"),
        *_classes(rank),
        *_rankings(rank, "layer", "Layers"),
        *_communication(rank),
        *_ranks(summary),
        *_launches(rank),
        *_match(rank),
        *_how_to_read(summary),
    ]
    return "\n".join(parts).rstrip() + "\n"


def _head(summary: Summary) -> list[str]:
    rank = summary.first
    about = [rank.model, rank.device_name, f"rank {rank.rank}"]
    if len(summary.ranks) > 1:
        about[-1] = f"{len(summary.ranks)} ranks; the tables are of rank {rank.rank}"
    lines = ["# Trace Performance Summary", "", f"File: `{Path(rank.path).name}`  "]
    lines.append(", ".join(part for part in about if part) + "  ")
    if summary.capture:
        lines.append(f"Graphs named by: `{summary.capture}`  ")
    if summary.device == "cpu":
        lines.append(
            "Operators' own time on the CPU stands for GPU work below, operators for kernels.  "
        )
    lines += ["", *(f"- {escaped(line)}" for line in summary.headlines), ""]
    if summary.warnings:
        lines += [*(f"> Warning: {escaped(line)}  " for line in summary.warnings), ""]
    return lines


def _shapes(rank: RankSummary) -> list[str]:
    rows = [
        [g.shape + (" (*)" if g.warnings else ""), f"{g.steps:,}", duration(g.median_ns),
         duration(g.min_ns), duration(g.max_ns), percent(share(g.busy_ns, g.mean_ns)),
         duration(g.idle_ns), duration(g.idle_before_ns), duration(g.exposed_communication_ns),
         cpu_span(g.cpu_ns), f"{g.rows:,.0f}", f"{g.graph_launches:.3g}"]
        for g in rank.groups
    ]  # fmt: skip
    columns = ["Steps", "Count", "Median", "Min", "Max", "Busy", "Idle", "Idle before",
               "Exposed comm", "CPU span", "Kernels", "Graphs"]  # fmt: skip
    lines = ["## Steps by shape", "", *table(columns, rows, "lrrrrrrrrrrr"), ""]
    warnings = dict.fromkeys(step.warning for step in rank.steps if step.warning)
    lines += [f"(*) {escaped(warning)}  " for warning in warnings]
    if rank.steady:
        s = rank.steady
        rate = f": {s.tokens_per_s:,.0f} tokens/s computed" if s.tokens_per_s else ""
        lines += [
            f"Steady stretch: {s.steps:,} steps of {s.shape} in a row (from step {s.first}), one "
            f"every {duration(s.mean_interval_ns)} (median {duration(s.median_interval_ns)}, p99 "
            f"{duration(s.p99_interval_ns)}){rate}; idle {percent(s.idle_share)}.",
            "",
        ]
    return lines


def _time(rank: RankSummary, device: str, plots: dict[str, str]) -> list[str]:
    if device == "cpu" or not rank.devices:
        return []
    lines = ["## Where the time goes", ""]
    lines += figure(plots, "performance_summary_time", "Computing, exposed communication, idle")
    for time in rank.devices:
        parts = [
            ("Computing", time.computation_ns),
            ("Exposed communication", time.exposed_communication_ns),
            ("Exposed copies", time.exposed_copy_ns),
            *((f"Idle: {words}", ns) for words, ns in idle_parts(time)),
        ]
        rows = [[w, duration(ns), percent(share(ns, time.span_ns))] for w, ns in parts if ns]
        rows.append(["**From first to last step**", duration(time.span_ns), "100%"])
        name = f"GPU {time.device}" if len(rank.devices) > 1 else "GPU"
        lines += [*table([name, "Time", "Share"], rows, "lrr"), ""]
        busy = f"Busy {duration(time.busy_ns)}; durations add up to {duration(time.sum_ns)}. "
        hidden = time.communication_ns - time.exposed_communication_ns
        if time.communication_ns:
            busy += f"Communication {duration(time.communication_ns)}, {duration(hidden)} hidden. "
        if time.streams > 1:
            at_once = duration(time.concurrent_ns)
            busy += f"{time.streams} streams, {at_once} with several at work at once."
        lines += [busy.rstrip(), ""]
        if time.gaps:
            lines += ["Longest idle gaps:", "", *_gaps(rank, time.gaps), ""]
    return lines


def _gaps(rank: RankSummary, gaps: Iterable[Gap]) -> list[str]:
    labels = {step.index: step.label for step in rank.steps}
    rows = []
    for gap in gaps:
        host = duration(gap.host_ns) if gap.host_ns >= 0 else "?"
        names = [f"`{short_name(name)}`" for name in (gap.before, gap.after)]
        step = f"`{labels[gap.step]}`" if gap.step in labels else ""
        rows.append([duration(gap.ns), host, *names, step])
    return table(["Gap", "Host late by", "After", "Before", "In step"], rows, "rrlll")


def _one_step(plots: dict[str, str]) -> list[str]:
    lines = figure(plots, "performance_summary_step", "One step, kernel by kernel")
    return ["## One step", "", *lines] if lines else []


def _rankings(rank: RankSummary, by: str, title: str) -> list[str]:
    """One table per kind of step."""
    lines = []
    for kind in told_kinds(rank, limit=5):
        found = rank.top[kind][by]
        if any(row.name not in UNKNOWN.values() for row in found.rows):
            head = f"### {kind}: {count(found.steps, 'step')}" if kind else "### all work"
            lines += [head, "", *_ranking(found)]
    return [f"## {title}", "", *lines] if lines else []


def _classes(rank: RankSummary) -> list[str]:
    kinds = [kind for kind in rank.kinds if kind.busy_ns]
    shares = [dict(kind.classes) for kind in kinds]
    rows = [
        [row.name, *(percent(share[row.name]) if row.name in share else "" for share in shares)]
        for row in rank.top[""]["class"].rows
    ]
    columns = ["Class", *(kind.kind for kind in kinds)]
    return [*table(columns, rows, "l" + "r" * len(kinds)), ""]


def _ranking(found: Top) -> list[str]:
    steps = max(found.steps, 1)
    inner = "Module" if found.by == "kernel" else "Kernel with most time"
    name = {"kernel": "Kernel", "module": "Module", "layer": "Layer", "class": "Class"}[found.by]
    rows = [
        [f"`{r.name}`", percent(r.share), duration(r.own_ns / steps), f"{r.calls:,}",
         duration(r.mean_ns), duration(r.min_ns), duration(r.max_ns), f"`{r.where}`"]
        for r in found.rows
    ]  # fmt: skip
    rest = found.busy_ns - sum(r.own_ns for r in found.rows)
    if rest > 0:
        more = f"{found.names - len(found.rows):,} more"
        rows.append([more, percent(rest / found.busy_ns), duration(rest / steps), *[""] * 5])
    columns = [name, "Share", "Per step", "Calls", "Mean", "Min", "Max", inner]
    return [*table(columns, rows, "lrrrrrrl"), ""]


def _communication(rank: RankSummary) -> list[str]:
    if not rank.collectives:
        return []
    rows = [
        [c.kind, f"`{c.name}`", f"{c.calls:,}", duration(c.total_ns), duration(c.mean_ns),
         duration(c.exposed_ns), size(c.nbytes) if c.sized_calls else "not recorded",
         f"{c.algbw_gbps:.1f}" if c.sized_calls else "", f"{c.busbw_gbps:.1f}" if c.busbw_gbps
         else ""]
        for c in rank.collectives
    ]  # fmt: skip
    columns = ["Collective", "Kernel", "Calls", "Total", "Mean", "Exposed", "Size", "algbw GB/s",
               "busbw GB/s"]  # fmt: skip
    return [
        "## Communication", "", *table(columns, rows, "llrrrrrrr"), "",
        "A kernel's time includes waiting for the other ranks, so that bandwidths are lower "
        "bounds.", "",
    ]  # fmt: skip


def _ranks(summary: Summary) -> list[str]:
    skewed = summary.skew
    if skewed is None:
        return []
    lines = ["## Ranks", ""]
    rows = [
        [str(s.rank), duration(s.gpu_ns), duration(s.busy_ns), duration(s.communication_ns),
         duration(s.wait_ns)]
        for s in skewed.ranks
    ]  # fmt: skip
    if rows:
        columns = ["Rank", "Step", "Busy", "Communication", "Waiting"]
        lines += [*table(columns, rows, "rrrrr"), ""]
        lines += [
            f"Means of {count(skewed.steps, 'step')}. Waiting: of each collective, the time beyond "
            f"the rank that took least; {count(skewed.collectives, 'collective')} compared.",
            "",
        ]
    return [*lines, escaped(skewed.note), ""] if skewed.note else lines


def _launches(rank: RankSummary) -> list[str]:
    found = rank.launches
    if found is None:
        return []
    leads = [s.lead_ns for s in rank.steps if s.lead_known]
    rows = [
        ["Calls that put work on the GPU", f"{found.calls:,}"],
        ["of them graph launches", f"{found.graphs:,}"],
        ["Kernels and copies", f"{found.rows:,}"],
        ["without a launch in the file", f"{found.rows_without_launch:,}"],
        ["From call to start, median", duration(found.median_delay_ns)],
        ["From call to start, p90", duration(found.p90_delay_ns)],
        ["Calls waiting on the GPU, median at a call", f"{found.median_queue:.0f}"],
        ["Calls waiting on the GPU, most", f"{found.max_queue:,}"],
    ]
    if leads:
        rows.append(["From a step's first call to its start, median",
                     duration(statistics.median(leads))])  # fmt: skip
    return ["## Launches", "", *table(["", ""], rows, "lr"), ""]


def _match(rank: RankSummary) -> list[str]:
    match = rank.match
    lines = ["## How kernels found their modules", ""]
    rows = [[how, f"{n:,}", percent(n / match.rows)] for how, n in match.by.items()]
    lines += [*table(["", "Rows", "Share"], rows, "lrr"), ""]
    lines += [f"- {escaped(note)}" for note in match.notes]
    if match.unmatched:
        order = sorted(match.unmatched.items(), key=lambda item: (-item[1], item[0]))[:10]
        rows = [[f"`{short_name(name)}`", f"{n:,}"] for name, n in order]
        lines += ["", *table(["Without a module", "Rows"], rows, "lr")]
        if len(match.unmatched) > len(order):
            lines += ["", f"{len(match.unmatched) - len(order):,} more names."]
    return [*lines, ""]


def _how_to_read(summary: Summary) -> list[str]:
    unit = "GPU" if summary.device == "gpu" else "CPU"
    found = summary.first.top[""]["kernel"]
    return [
        "## How to read this",
        "",
        f"A step's duration is the span of the {unit} work that it launched. Busy is the union of "
        "that work, idle the rest of the span in which nothing ran. Idle before: since the work of "
        "the step before ended. CPU span: how long the host took to enqueue the step, or waited.",
        "",
        "Modules, kernels, classes and layers are ranked by own time: what no kernel that started "
        "earlier covers. Own times add up to the busy time, durations (calls x mean) may not: "
        f"here {duration(found.busy_ns)} and {duration(found.total_ns)}. "
        "A class is a judgement by the kernel's name.",
        "",
    ]
