"""A summary and a ranking in the terminal: sentences first, then tables that fit 80 columns.

Colour only repeats what a word beside it says; without Unicode the bars are ASCII.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from atom.trace.ranking import UNKNOWN, Top
from atom.trace.summary import OVERLAP, RankSummary, Summary, idle_parts, told_kinds
from atom.trace.timeline import DeviceTime
from atom.trace.words import count, duration, percent, size

MAX_GROUPS = 12
MAX_ITERATIONS = 10
WIDE, WIDEST = 100, 130  # columns from which tables show more
BAR = 20


class Column(NamedTuple):
    title: str
    right: bool = True
    ratio: int = 0  # of what width is left; 0: as wide as it must be


def print_summary(console: Console, summary: Summary, rows: int = 10) -> None:
    """The whole profile; tables are of the first rank, and say so where there are more."""
    rank = summary.first
    _title(console, summary)
    lines = Table.grid(padding=(0, 1, 0, 0))
    for line in summary.headlines:
        lines.add_row(_bullet(console), Text(line))
    console.print(lines)
    console.print()
    _steps(console, rank, summary.device)
    for time in rank.devices if summary.device == "gpu" else ():
        _device(console, time, alone=len(rank.devices) == 1)
    for kind in told_kinds(rank):
        _rankings(console, rank, kind, rows, summary.device)
    _classes(console, rank)
    _iterations(console, rank)
    _collectives(console, rank)
    _skew(console, summary)
    _notes(console, rank)


def _rankings(console: Console, rank: RankSummary, kind: str, rows: int, device: str) -> None:
    """Of one kind of step; what to read of overlap is said once, below."""
    shown = [rank.top[kind][by] for by in ("module", "kernel")]
    if all(row.name in UNKNOWN.values() for row in shown[0].rows):
        shown = shown[1:]
    for place, found in enumerate(shown):
        steps = f": {count(found.steps, f'{kind} step')}" if kind else ""
        last = place == len(shown) - 1
        what = "operator" if found.by == "kernel" and device == "cpu" else found.by
        print_top(console, found, rows, title=f"Time by {what}{steps}", explain=last)


def _classes(console: Console, rank: RankSummary) -> None:
    """Shares of busy time, kinds of step side by side."""
    shares = {kind.kind: dict(kind.classes) for kind in rank.kinds if kind.busy_ns}
    if not shares:
        return
    order = sorted(rank.top[""]["class"].rows, key=lambda row: -row.own_ns)
    grid = _table(console, [Column("class", False), *(Column(kind) for kind in shares)])
    for row in order:
        cells = [shares[kind].get(row.name, 0.0) for kind in shares]
        if any(cells):
            _row(grid, [row.name, *(percent(cell) if cell else "" for cell in cells)])
    console.print(Text("Busy time by class of kernel", style="bold"))
    console.print(grid)
    console.print()


def print_top(
    console: Console, found: Top, rows: int, title: str = "", *, explain: bool = True
) -> None:
    """A ranking by own time; what is left out is one row, so that shares add up."""
    overlap = found.total_ns > OVERLAP * found.busy_ns
    wide, widest = console.width >= WIDE, console.width >= WIDEST
    per_step = found.kind != "" and found.steps > 1
    columns = [
        Column("share"),
        Column("per step" if per_step else "time"),
        Column("calls"),
        *([Column("mean")] if wide or not overlap else []),
        *([Column("min"), Column("max")] if wide else []),
        *([Column("class", False)] if widest and found.by != "class" else []),
        Column(found.by, False, 3),
        *([Column("module" if found.by == "kernel" else "kernel", False, 2)] if widest else []),
    ]
    grid = _table(console, columns)
    shown = found.rows[:rows]
    steps = max(found.steps, 1)
    for row in shown:
        cells = {
            "share": percent(row.share),
            "per step": duration(row.own_ns / steps),
            "time": duration(row.own_ns),
            "calls": f"{row.calls:,}",
            "mean": duration(row.mean_ns),
            "min": duration(row.min_ns),
            "max": duration(row.max_ns),
            "class": row.kernel_class,
            "module": row.where,
            "kernel": row.where,
        }
        cells[found.by] = row.name
        _row(grid, [cells[column.title] for column in columns])
    rest = found.busy_ns - sum(row.own_ns for row in shown)
    if rest > 0:
        cells = {"share": percent(rest / found.busy_ns)}
        cells[found.by] = f"{found.names - len(shown):,} more"
        cells |= {"per step": duration(rest / steps), "time": duration(rest)}
        _row(grid, [cells.get(column.title, "") for column in columns], style="dim")
    if title:
        console.print(Text(title, style="bold"))
    console.print(grid)
    if overlap and explain:
        console.print(
            Text(
                f"Shares and times are of the {duration(found.busy_ns)} of busy time: what no "
                f"earlier kernel covers. Durations add up to {duration(found.total_ns)}.",
                style="dim",
            )
        )
    console.print()


def _title(console: Console, summary: Summary) -> None:
    rank = summary.first
    parts = [rank.model, rank.device_name, _ranks(summary), count(len(rank.steps), "step")]
    if summary.device == "cpu":
        parts.append("operators' own time on the CPU")
    console.print(Text(_separator(console).join(part for part in parts if part), style="bold"))
    if summary.capture:
        console.print(Text(f"graphs named by {summary.capture}", style="dim"))


def _ranks(summary: Summary) -> str:
    if len(summary.ranks) == 1:
        return f"rank {summary.first.rank}"
    return f"{len(summary.ranks)} ranks (tables: rank {summary.first.rank})"


def _steps(console: Console, rank: RankSummary, device: str) -> None:
    wide = console.width >= WIDE
    exposed = any(g.exposed_communication_ns for g in rank.groups)
    columns = [
        Column("steps", False, 1),
        Column("n"),
        Column("median"),
        *([Column("min"), Column("max"), Column("±")] if wide else []),
        *([] if wide or exposed else [Column("max")]),
        Column("busy"),
        Column("idle"),
        Column("before"),
        *([Column("exposed")] if exposed else []),
        Column("CPU"),
        *([Column("kernels")] if wide else []),
    ]
    grid = _table(console, columns)
    groups = rank.groups[:MAX_GROUPS]
    for group in groups:
        cells = {
            "steps": group.shape + (" *" if group.warnings else ""),
            "n": f"{group.steps:,}",
            "median": duration(group.median_ns),
            "min": duration(group.min_ns),
            "max": duration(group.max_ns),
            "±": duration(group.std_ns) if group.steps > 1 else "",
            "busy": percent(group.busy_ns / group.mean_ns if group.mean_ns else 0),
            "idle": duration(group.idle_ns),
            "before": duration(group.idle_before_ns),
            "exposed": duration(group.exposed_communication_ns),
            "CPU": duration(group.cpu_ns) if group.cpu_ns else "",
            "kernels": f"{group.rows:,.0f}",
        }
        _row(grid, [cells[column.title] for column in columns])
    legend = "by their GPU work; idle within it, and before it"
    if device == "cpu":
        legend = "by their operators; idle: none of them, within a step and before it"
    if exposed:
        legend += "; exposed communication"
    console.print(Text("Steps", style="bold"), Text(legend, style="dim"))
    console.print(grid)
    if len(rank.groups) > MAX_GROUPS:
        more = len(rank.groups) - MAX_GROUPS
        console.print(Text(f"{more} more shapes; --json has all", style="dim"))
    warned = [step for step in rank.steps if step.warning]
    for warning in list(dict.fromkeys(step.warning for step in warned))[:3]:
        console.print(Text(f"* {warning}", style="yellow"))
    console.print()


def _device(console: Console, time: DeviceTime, *, alone: bool) -> None:
    name = "Time" if alone else f"Time of GPU {time.device}"
    parts = [
        ("computing", time.computation_ns, "green"),
        ("exposed communication", time.exposed_communication_ns, "magenta"),
        ("exposed copies", time.exposed_copy_ns, "cyan"),
        *((f"idle: {words}", ns, "yellow") for words, ns in idle_parts(time)),
    ]
    grid = _table(console, [Column("share"), Column("time"), Column("", False), Column("", False)])
    grid.show_header = False
    for words, ns, colour in parts:
        if ns:
            share = ns / time.span_ns
            bar = Text(_bar(console, share), style=colour)
            grid.add_row(percent(share), duration(ns), bar, Text(words))
    console.print(
        Text(name, style="bold"),
        Text(f"{duration(time.span_ns)} from the first step's work to the last's", style="dim"),
    )
    console.print(grid)
    if time.concurrent_ns:
        console.print(
            Text(
                f"{percent(time.concurrent_ns / time.span_ns)} of it with several of its "
                f"{time.streams} streams at work at once",
                style="dim",
            )
        )
    console.print()


def _iterations(console: Console, rank: RankSummary) -> None:
    if not any(i.drafts for i in rank.iterations):
        return
    columns = ["#", "decode", "draft", "total", "draft/decode", "to the next"]
    grid = _table(console, [Column(c) for c in columns])
    for number, i in enumerate(rank.iterations[:MAX_ITERATIONS]):
        ratio = percent(i.draft_ns / i.decode_ns) if i.decode_ns else ""
        until = duration(i.until_next_ns) if i.until_next_ns >= 0 else ""
        times = [duration(i.decode_ns), duration(i.draft_ns), duration(i.total_ns)]
        _row(grid, [str(number), *times, ratio, until])
    console.print(Text("Iterations", style="bold"), Text("decode and draft steps", style="dim"))
    console.print(grid)
    if len(rank.iterations) > MAX_ITERATIONS:
        more = len(rank.iterations) - MAX_ITERATIONS
        console.print(Text(f"{more} more; --json has all", style="dim"))
    console.print()


def _collectives(console: Console, rank: RankSummary) -> None:
    if not rank.collectives:
        return
    columns = ["time", "calls", "mean", "exposed", "size", "busbw", "collective"]
    grid = _table(console, [Column(c, c != "collective", int(c == "collective")) for c in columns])
    for each in rank.collectives:
        known = each.sized_calls > 0
        _row(
            grid,
            [
                duration(each.total_ns),
                f"{each.calls:,}",
                duration(each.mean_ns),
                duration(each.exposed_ns),
                size(each.nbytes) if known else "?",
                f"{each.busbw_gbps:.0f} GB/s" if each.busbw_gbps else "?",
                f"{each.kind}: {each.name}",
            ],
        )
    console.print(Text("Communication", style="bold"))
    console.print(grid)
    console.print()


def _skew(console: Console, summary: Summary) -> None:
    skewed = summary.skew
    if skewed is None:
        return
    columns = ["rank", "step", "busy", "communication", "waits"]
    grid = _table(console, [Column(c) for c in columns])
    for share in skewed.ranks:
        times = [share.gpu_ns, share.busy_ns, share.communication_ns, share.wait_ns]
        _row(grid, [str(share.rank), *(duration(t) for t in times)])
    console.print(
        Text("Ranks", style="bold"),
        Text(f"mean of {skewed.steps} steps; waits: in collectives, for others", style="dim"),
    )
    if skewed.ranks:
        console.print(grid)
    if skewed.note:
        console.print(Text(skewed.note, style="yellow"))
    console.print()


def _notes(console: Console, rank: RankSummary) -> None:
    for note in rank.match.notes:
        console.print(Text(note, style="dim"))
    if rank.match.unmatched:
        from atom.trace.kernels import short_name

        order = sorted(rank.match.unmatched.items(), key=lambda item: -item[1])
        told = ", ".join(f"{count} x {short_name(name)}" for name, count in order[:5])
        more = f" and {len(order) - 5} more kernels" if len(order) > 5 else ""
        console.print(Text(f"Without a module: {told}{more}", style="dim"))


# --- pieces -----------------------------------------------------------------------------------


def _table(console: Console, columns: Sequence[Column]) -> Table:
    piped = not console.is_terminal
    grid = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        grid.add_column(
            column.title,
            justify="right" if column.right else "left",
            # Numbers are never cut; a name that does not fit is folded.
            no_wrap=column.right or piped,
            overflow="fold",
            ratio=column.ratio or None if not piped else None,
        )
    return grid


def _row(grid: Table, cells: Iterable[str], style: str = "") -> None:
    grid.add_row(*(Text(cell) for cell in cells), style=style)


def _bar(console: Console, share: float) -> str:
    if console.options.ascii_only:
        return ("#" * round(share * BAR)).ljust(BAR)
    eighths = max(1, round(share * BAR * 8))
    return ("█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()).ljust(BAR)


def _bullet(console: Console) -> Text:
    return Text("-" if console.options.ascii_only else "•")


def _separator(console: Console) -> str:
    return " - " if console.options.ascii_only else " · "
