"""performance_summary.md: upstream's sections with their columns first, then ours; plots beside it.

Every step is timed by its GPU work; the host's span, which upstream's summary shows, stands beside.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from atom.trace.ranking import Top
from atom.trace.summary import RankSummary, Summary, idle_parts, summarize
from atom.trace.timeline import StepTime
from atom.trace.types import Analysis
from atom.trace.words import count, duration, percent, size

FILE = "performance_summary.md"
MAX_PREFILLS = 50
MAX_ITERATIONS = 10


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
        *_prefill(rank),
        *_decode(rank),
        *_draft(rank),
        *_iterations(rank),
        *_figure(plots, "performance_summary_steps", "GPU time of every step over the run"),
        *_shapes(rank),
        *_time(rank, summary.device, plots),
        *_one_step(plots),
        *_ranking(rank.top["module"], "Modules"),
        *_ranking(rank.top["kernel"], "Top kernels"),
        *_figure(plots, "performance_summary_classes", "Classes of kernels by kind of step"),
        *_ranking(rank.top["class"], "Classes of kernels"),
        *_ranking(rank.top["layer"], "Layers"),
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
        lines.append('"GPU" below: operators\' own time on the CPU; the trace was read that way.  ')
    lines += ["", *(f"- {_escaped(line)}" for line in summary.headlines), ""]
    if summary.warnings:
        lines += [*(f"> Warning: {_escaped(line)}  " for line in summary.warnings), ""]
    return lines


# --- upstream's sections ----------------------------------------------------------------------


def _of(rank: RankSummary, *kinds: str) -> list[StepTime]:
    return [step for step in rank.steps if step.kind in kinds]


def _prefill(rank: RankSummary) -> list[str]:
    steps = _of(rank, "prefill", "mixed")
    if not steps:
        return ["## Prefill", "", "No prefill steps.", ""]
    shown = steps[:MAX_PREFILLS]
    rows = [
        [str(i), f"`{s.label}`", duration(s.gpu_ns), percent(_share(s.busy_ns, s.gpu_ns)),
         duration(s.idle_before_ns), _cpu(s.cpu_ns)]
        for i, s in enumerate(shown)
    ]  # fmt: skip
    columns = ["#", "Label", "Duration", "Busy", "Idle before", "CPU span"]
    lines = ["## Prefill", "", *_table(columns, rows, "rlrrrr"), ""]
    if len(steps) > len(shown):
        lines += [f"The first {len(shown)} of {len(steps)} steps.  "]
    return [*lines, f"Total: {duration(sum(s.gpu_ns for s in steps))}", ""]


def _decode(rank: RankSummary) -> list[str]:
    steps = _of(rank, "decode")
    if not steps:
        return ["## Decode", "", "No decode steps.", ""]
    spans = [s.gpu_ns for s in steps]
    known = [s.cpu_ns for s in steps if s.cpu_ns]
    rows = [
        ["Iterations", f"{len(spans):,}", f"{len(known):,}"],
        ["Mean", duration(statistics.fmean(spans)), _cpu(statistics.fmean(known or [0]))],
        ["Min", duration(min(spans)), _cpu(min(known, default=0))],
        ["Max", duration(max(spans)), _cpu(max(known, default=0))],
        ["Total", duration(sum(spans)), _cpu(sum(known))],
    ]
    return ["## Decode", "", *_table(["", "GPU", "CPU span"], rows, "lrr"), ""]


def _draft(rank: RankSummary) -> list[str]:
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
    lines += [*_table(columns, rows, "lrrrrr"), ""]
    rest = [means[place] for place in order[1:]]
    if rest and first > 1.1 * statistics.fmean(rest):
        lines += [f"Step {order[0]} is slower than the others: "
                  f"{duration(first)} against {duration(statistics.fmean(rest))}.", ""]  # fmt: skip
    return lines


def _place(step: StepTime) -> str:
    """ "1/3" of draft[1/3 bs=30]."""
    return step.label.partition("[")[2].partition(" ")[0].rstrip("]") or step.label


def _iterations(rank: RankSummary) -> list[str]:
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
    lines = [title, "", *_table(columns, [*rows, average], "rrrrrr"), ""]
    if len(found) > MAX_ITERATIONS:
        lines += [f"The first {MAX_ITERATIONS} of {len(found):,}; the average is of all.", ""]
    return lines


# --- ours -------------------------------------------------------------------------------------


def _shapes(rank: RankSummary) -> list[str]:
    rows = [
        [g.shape + (" (*)" if g.warnings else ""), f"{g.steps:,}", duration(g.median_ns),
         duration(g.min_ns), duration(g.max_ns), percent(_share(g.busy_ns, g.mean_ns)),
         duration(g.idle_ns), duration(g.idle_before_ns), duration(g.exposed_communication_ns),
         _cpu(g.cpu_ns), f"{g.rows:,.0f}", f"{g.graph_launches:.3g}"]
        for g in rank.groups
    ]  # fmt: skip
    columns = ["Steps", "Count", "Median", "Min", "Max", "Busy", "Idle", "Idle before",
               "Exposed comm", "CPU span", "Kernels", "Graphs"]  # fmt: skip
    lines = ["## Steps by shape", "", *_table(columns, rows, "lrrrrrrrrrrr"), ""]
    warnings = dict.fromkeys(step.warning for step in rank.steps if step.warning)
    lines += [f"(*) {_escaped(warning)}  " for warning in warnings]
    if rank.steady:
        s = rank.steady
        rate = f": {s.tokens_per_s:,.0f} tokens/s" if s.tokens_per_s else ""
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
    lines += _figure(plots, "performance_summary_time", "Computing, exposed communication, idle")
    for time in rank.devices:
        parts = [
            ("Computing", time.computation_ns),
            ("Exposed communication", time.exposed_communication_ns),
            ("Exposed copies", time.exposed_copy_ns),
            *((f"Idle: {words}", ns) for words, ns in idle_parts(time)),
        ]
        rows = [[w, duration(ns), percent(_share(ns, time.span_ns))] for w, ns in parts if ns]
        rows.append(["**From first to last step**", duration(time.span_ns), "100%"])
        name = f"GPU {time.device}" if len(rank.devices) > 1 else "GPU"
        lines += [*_table([name, "Time", "Share"], rows, "lrr"), ""]
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


def _gaps(rank: RankSummary, gaps: Iterable[object]) -> list[str]:
    from atom.trace.kernels import short_name
    from atom.trace.timeline import Gap

    labels = {step.index: step.label for step in rank.steps}
    rows = []
    for gap in gaps:
        assert isinstance(gap, Gap)
        host = duration(gap.host_ns) if gap.host_ns >= 0 else "?"
        names = [f"`{short_name(name)}`" for name in (gap.before, gap.after)]
        step = f"`{labels[gap.step]}`" if gap.step in labels else ""
        rows.append([duration(gap.ns), host, *names, step])
    return _table(["Gap", "Host late by", "After", "Before", "In step"], rows, "rrlll")


def _one_step(plots: dict[str, str]) -> list[str]:
    lines = _figure(plots, "performance_summary_step", "One step, kernel by kernel")
    return ["## One step", "", *lines] if lines else []


def _ranking(found: Top, title: str) -> list[str]:
    if not found.rows or (found.by in ("module", "layer") and found.rows[0].share == 1):
        return []
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
    return [f"## {title}", "", *_table(columns, rows, "lrrrrrrl"), ""]


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
        "## Communication", "", *_table(columns, rows, "llrrrrrrr"), "",
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
        lines += [*_table(columns, rows, "rrrrr"), ""]
        lines += [
            f"Means of {count(skewed.steps, 'step')}. Waiting: of each collective, the time beyond "
            f"the rank that took least; {count(skewed.collectives, 'collective')} compared.",
            "",
        ]
    return [*lines, _escaped(skewed.note), ""] if skewed.note else lines


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
    return ["## Launches", "", *_table(["", ""], rows, "lr"), ""]


def _match(rank: RankSummary) -> list[str]:
    match = rank.match
    lines = ["## How kernels found their modules", ""]
    rows = [[how, f"{n:,}", percent(n / match.rows)] for how, n in match.by.items()]
    lines += [*_table(["", "Rows", "Share"], rows, "lrr"), ""]
    lines += [f"- {_escaped(note)}" for note in match.notes]
    if match.unmatched:
        from atom.trace.kernels import short_name

        order = sorted(match.unmatched.items(), key=lambda item: (-item[1], item[0]))[:10]
        rows = [[f"`{short_name(name)}`", f"{n:,}"] for name, n in order]
        lines += ["", *_table(["Without a module", "Rows"], rows, "lr")]
        if len(match.unmatched) > len(order):
            lines += ["", f"{len(match.unmatched) - len(order):,} more names."]
    return [*lines, ""]


def _how_to_read(summary: Summary) -> list[str]:
    unit = "GPU" if summary.device == "gpu" else "CPU"
    found = summary.first.top["kernel"]
    return [
        "## How to read this",
        "",
        f"A step's duration is the span of the {unit} work that it launched. Busy is the union of "
        "that work, idle the rest of the span in which nothing ran. Idle before: since the work of "
        "the step before ended. CPU span: how long the host took to enqueue the step, or waited.",
        "",
        "Modules, kernels, classes and layers are ranked by own time: what no kernel that started "
        "earlier covers. Own times add up to the busy time, durations (calls x mean) may not: "
        f"here {duration(found.busy_ns)} and {duration(found.total_ns)}. Per step: own time over "
        f"{count(found.steps, 'step')}. A class is a judgement by the kernel's name.",
        "",
    ]


# --- pieces -----------------------------------------------------------------------------------


def _figure(plots: dict[str, str], stem: str, text: str) -> list[str]:
    return [f"![{text}]({plots[stem]})", ""] if stem in plots else []


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], align: str) -> list[str]:
    rules = ["---:" if side == "r" else "---" for side in align]
    lines = [list(columns), rules, *([_cell(cell) for cell in row] for row in rows)]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _escaped(text: str) -> str:
    """Names of kernels in a sentence: no HTML, no emphasis."""
    for char in "\\<>*_|`":
        text = text.replace(char, "\\" + char)
    return text


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _cpu(ns: float) -> str:
    return duration(ns) if ns > 0 else ""


def _delta(ns: float) -> str:
    return ("-" if ns < 0 else "+") + duration(abs(ns)) if ns else "-"
