"""Comparisons, gates and histories in the terminal: tables with intervals drawn, and sparklines.

Right is better, always: a latency that rose is drawn on the left. Every colour has its word beside
it, so nothing is lost without colours; without Unicode the drawings are ASCII.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from atom.bench import names
from atom.bench.compare import rules
from atom.bench.compare.comparison import Comparison, MetricComparison, change_text
from atom.bench.compare.facts import RunFacts
from atom.bench.compare.gate import GateReport
from atom.bench.compare.sweeps import SweepComparison
from atom.bench.compare.trend import ChangePoint, Series
from atom.bench.words import amount, short_name

COLOURS = {
    "worse": "red", "regression": "red", "better": "green", "same": "", "ok": "green",
    "undecided": "yellow", "suspicious": "yellow", "trade-off": "yellow", "no baseline": "yellow",
}  # fmt: skip
DRAWING = "worse|better"
NARROW = 13  # the least drawing that shows something
WIDE = 41
SPARK_RUNS = 48


class Glyphs(NamedTuple):
    axis: str
    margin: str
    line: str
    point: str
    left: str
    right: str
    spark: str
    arrow: str


UNICODE = Glyphs("│", "┊", "─", "●", "◂", "▸", "▁▂▃▄▅▆▇█", "→")
ASCII = Glyphs("|", ":", "-", "o", "<", ">", "_.-=+*#@", "->")


_TO_ASCII = str.maketrans({"·": "-", "±": "+-", "–": "-"})


def glyphs(console: Console) -> Glyphs:
    return ASCII if console.options.ascii_only else UNICODE


def print_comparison(
    console: Console, comparison: Comparison, *, every_metric: bool = False
) -> None:
    """Two runs: who they are, what differs in them, each metric, the verdict."""
    _print_heading(console, comparison)
    shown = [m for m in comparison.metrics if every_metric or _is_shown(m)]
    _print_metrics(console, shown)
    _print_legend(console, len(comparison.metrics) - len(shown))
    _print_verdict(console, comparison.verdict, comparison.sentence)
    for note in comparison.notes:
        _say(console, f"note: {note}", "yellow")
    _print_traces(console, comparison)


def print_sweep(console: Console, sweep: SweepComparison) -> None:
    """One row for each point."""
    first = sweep.points[0]
    for letter, run in (("A", first.a), ("B", first.b)):
        _print_side(console, letter, run.sweep_id or f"{len(sweep.points)} points", run)
    _print_differences(console, first, skip="load:")
    _print_points(console, sweep)
    _print_verdict(console, sweep.verdict, sweep.sentence)
    if sweep.primary_ratio is not None:
        change = 100 * (sweep.primary_ratio - 1)
        _say(console, f"{_name(first.primary)}, geometric mean over the points: {change:+.1f}%")
    for side, left in (("A", sweep.only_a), ("B", sweep.only_b)):
        if left:
            _say(console, f"only in {side}: {', '.join(left)}", "yellow")
    for note in dict.fromkeys(f"{p.point}: {n}" for p in sweep.points for n in p.notes):
        _say(console, f"note: {note}", "yellow")
    for each in sweep.points:
        _print_traces(console, each)


def _print_points(console: Console, sweep: SweepComparison) -> None:
    g = glyphs(console)
    first = sweep.points[0]
    others = [n for n in ("mean_ttft_ms", "mean_tpot_ms") if n != first.primary]
    rows = [_sweep_cells(p, others) for p in sweep.points]
    lengths = {row[0].partition(" ")[2] for row in rows}
    if len(lengths) == 1:
        _say(console, f"   {lengths.pop()}".rstrip())
        rows = [[row[0].partition(" ")[0], *row[1:]] for row in rows]
    limit = _limit([found for p in sweep.points if (found := p.metric(p.primary)) is not None])
    columns = ("point", _name(first.primary), *(short_name(n) for n in others))
    width = _room(console, rows, columns)
    table = _table(*columns, *((DRAWING,) if width else ()), "verdict")
    for each, row in zip(sweep.points, rows, strict=True):
        main = each.metric(each.primary)
        cells = [Text(c) for c in row]
        if width:
            cells.append(_drawn(main, width, limit, g) if main else Text(""))
        table.add_row(*cells, Text(each.verdict, style=COLOURS[each.verdict]))
    console.print(table)


def print_gate(console: Console, report: GateReport) -> None:
    """A run beside the earlier ones with its fingerprint."""
    _print_verdict(console, report.status, report.sentence)
    if not report.findings:
        return
    table = _table("metric", "earlier", "this run", "change", "limit", "noise", "")
    for f in report.findings:
        sign = "-" if names.better(f.metric) == "higher" else "+"
        state = (
            "confirmed" if f.confirmed
            else "beyond the limit" if f.alarming and f.noise is None
            else "beyond both" if f.alarming
            else "within the noise" if f.beyond_threshold
            else ""
        )  # fmt: skip
        table.add_row(
            Text(_name(f.metric)),
            Text(amount(f.metric, f.baseline)),
            Text(amount(f.metric, f.value)),
            Text(f"{100 * f.change:+.1f}%"),
            Text(f"{sign}{100 * f.threshold:.0f}%"),
            _text(console, "unknown" if f.noise is None else f"±{100 * f.noise:.1f}%"),
            Text(state, style=COLOURS["suspicious"] if state else ""),
        )
    console.print(table)
    _say(console, f"earlier: the median of {len(report.baseline_runs)} runs", "dim")


def print_history(console: Console, found: Series, marked: dict[str, str]) -> None:
    """The metric over the runs as a sparkline; `marked`: run id -> a letter below it."""
    points = found.points[-SPARK_RUNS:]
    if len(points) < 2:
        return
    values = [p.value for p in points]
    ends = f"{amount(found.metric, min(values))} to {amount(found.metric, max(values))}"
    _say(console, f"{_name(found.metric)}, last {len(points)} runs: {ends}", "bold")
    _say(console, "  " + sparkline(values, glyphs(console).spark))
    below = "".join(marked.get(p.run_id, " ") for p in points).rstrip()
    if below:
        _say(console, "  " + below)


def print_changes(console: Console, changes: Sequence[ChangePoint]) -> None:
    """Since when which metric has another level; metrics that changed together stand together."""
    arrow = glyphs(console).arrow
    for run_id in dict.fromkeys(c.run_id for c in sorted(changes, key=lambda c: c.run_id)):
        together = [c for c in changes if c.run_id == run_id]
        first = together[0]
        commits = f", commits {_short(first.commits)}" if first.commits else ""
        _say(console, f"changed on {first.at[:10]} with run {run_id}{commits}")
        for change in together:
            _say(console, f"  {describe_change(change, arrow)}", COLOURS[change.verdict])


def describe_change(change: ChangePoint, arrow: str = "->") -> str:
    """TPOT mean, ms: worse, +7.8% [+7.1, +8.5], 20.06 -> 21.62."""
    ratio = change.ratio
    size, low, high = (100 * (r - 1) for r in (ratio.value, ratio.low, ratio.high))
    levels = f"{amount(change.metric, change.before)} {arrow} {amount(change.metric, change.after)}"
    interval = f"{size:+.1f}% [{low:+.1f}, {high:+.1f}]"
    return f"{_name(change.metric)}: {change.verdict}, {interval}, {levels}"


def _short(commits: str) -> str:
    return "..".join(part[:9] for part in commits.split(".."))


def sparkline(values: Sequence[float], levels: str) -> str:
    low, high = min(values), max(values)
    top = len(levels) - 1
    if high == low:
        return levels[top // 2] * len(values)
    return "".join(levels[round((v - low) / (high - low) * top)] for v in values)


def interval_bar(m: MetricComparison, width: int, limit: float, g: Glyphs) -> str:
    """The interval of a change on an axis from -limit to +limit; better is right."""
    assert width % 2 == 1, width
    centre = width // 2
    cells = [" "] * width

    def place(share: float) -> int:
        return centre + round(max(-1.0, min(1.0, share / limit)) * centre)

    for edge in (-m.margin, m.margin):
        if abs(edge) < limit:
            cells[place(edge)] = g.margin
    cells[centre] = g.axis
    if m.change is None:
        return "".join(cells)
    base = 1.0 if m.scale == "ratio" else 0.0
    towards = 1.0 if names.better(m.name) == "higher" else -1.0
    ends = sorted(towards * (v - base) for v in (m.change.low, m.change.high))
    middle = towards * (m.change.value - base)
    if m.certain:
        for i in range(place(ends[0]), place(ends[1]) + 1):
            cells[i] = g.line
    if m.certain and ends[0] < -limit:
        cells[0] = g.left
    if m.certain and ends[1] > limit:
        cells[-1] = g.right
    if abs(middle) <= limit:
        cells[place(middle)] = g.point
    else:
        cells[0 if middle < 0 else -1] = g.left if middle < 0 else g.right
    return "".join(cells)


def _print_heading(console: Console, comparison: Comparison) -> None:
    for letter, run in (("A", comparison.a), ("B", comparison.b)):
        _print_side(console, letter, run.run_id, run)
    if comparison.point:
        _say(console, f"   {comparison.point}")
    _print_differences(console, comparison)


def _print_side(console: Console, letter: str, what: str, run: RunFacts) -> None:
    said = " · ".join(filter(None, (run.name, run.server, run.commit)))
    line = Text(f"{letter}  ", style="bold")
    line.append(_text(console, f"{what}  {said}", "not bold"))
    console.print(line)


def _print_differences(console: Console, comparison: Comparison, skip: str = "commit") -> None:
    for each in comparison.differences:
        if not each.what.startswith(("commit", skip)):
            _say(console, f"   {each.what}: {each.a} | {each.b}", "dim")


def _print_metrics(console: Console, metrics: Sequence[MetricComparison]) -> None:
    g = glyphs(console)
    columns = ("metric", "A", "B", "B from A, 95%")
    width = _room(console, [_cells(m) for m in metrics], columns)
    limit = _limit([m for m in metrics if m.headline])
    table = _table(*columns, *((DRAWING,) if width else ()), "verdict")
    for m in metrics:
        cells = [Text(c) for c in _cells(m)]
        if width:
            cells.append(_drawn(m, width, limit, g))
        table.add_row(*cells, Text(m.verdict, style=COLOURS[m.verdict]))
    console.print(table)


def _print_legend(console: Console, hidden: int) -> None:
    chance = f"{rules.EQUAL_ALPHA:.0%}"
    more = f"; {hidden} more metrics: --all" if hidden else ""
    margin = glyphs(console).margin
    _say(console, f"{margin} margin; same: at most {chance} chance to be beyond it{more}", "dim")


def _cells(m: MetricComparison) -> list[str]:
    return [_name(m.name), amount(m.name, m.a), amount(m.name, m.b), change_text(m)]


def _sweep_cells(comparison: Comparison, others: Sequence[str]) -> list[str]:
    main = comparison.metric(comparison.primary)
    cells = [comparison.point or comparison.b.run_id, change_text(main) if main else ""]
    for name in others:
        found = comparison.metric(name)
        relative = found.relative if found else None
        cells.append("" if relative is None else f"{100 * relative:+.1f}%")
    return cells


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    texts = ("metric", "point", DRAWING, "verdict", "")
    for column in columns:
        drawing = column == DRAWING
        table.add_column(
            column,
            justify="center" if drawing else "left" if column in texts else "right",
            no_wrap=True,
        )
    return table


def _room(console: Console, rows: Sequence[Sequence[str]], columns: Sequence[str]) -> int:
    """Columns left for the drawing: odd, 0 where there are too few."""
    widths = [max(len(c), *(len(row[i]) for row in rows)) for i, c in enumerate(columns)]
    left = min(console.width, 160) - sum(widths) - len(widths) - len("undecided") - 1
    left = min(left, WIDE)
    return 0 if left < NARROW else left - (left + 1) % 2


def _drawn(m: MetricComparison, width: int, limit: float, g: Glyphs) -> Text:
    return Text(interval_bar(m, width, limit, g), style=COLOURS[m.verdict])


def _limit(metrics: Sequence[MetricComparison]) -> float:
    """The axis' end: what the decided metrics need, between 12 % and 50 %."""
    reach = [
        abs(v - (1.0 if m.scale == "ratio" else 0.0))
        for m in metrics
        if m.change is not None and m.verdict != "undecided"
        for v in (m.change.low, m.change.high)
    ]
    return min(0.5, max(0.12, 1.1 * max(reach, default=0.0)))


def _is_shown(m: MetricComparison) -> bool:
    """The headline, tails and shares; the whole-run twins and other statistics are for --all."""
    return m.headline or m.name.startswith(("p99_ttft", "p99_tpot", "p99_itl", "p99_e2el")) or (
        m.name in ("request_goodput", "accept_length", "output_throughput_per_user")
    )  # fmt: skip


def _name(metric: str) -> str:
    """Short enough for 80 columns, with the unit."""
    short = {
        "steady_output_throughput": "Output tok/s, steady",
        "output_throughput": "Output tok/s",
        "steady_total_token_throughput": "Total tok/s, steady",
        "total_token_throughput": "Total tok/s",
        "output_throughput_per_user": "Output tok/s per user",
        "steady_request_throughput": "Requests/s, steady",
        "request_throughput": "Requests/s",
        "request_goodput": "Goodput, req/s",
        "error_rate": "Failed requests",
        "accept_length": "Tokens per pass",
    }
    if metric in short:
        return short[metric]
    unit = names.unit(metric)
    return f"{short_name(metric)}, {unit}" if unit == "ms" else short_name(metric)


def _print_verdict(console: Console, verdict: str, sentence: str) -> None:
    """The sentence, its claim in colour; a gate's sentences have the verdict before them."""
    claim, colon, rest = sentence.partition(":")
    if verdict in ("worse", "better", "same", "undecided") and colon:
        line = _text(console, claim + colon, f"bold {COLOURS[verdict]}".strip())
        line.append(_text(console, rest, "not bold default"))
    else:
        line = Text(verdict.upper(), style=f"bold {COLOURS[verdict]}".strip())
        line.append(_text(console, f"  {sentence}", "not bold default"))
    console.print(line)


def _print_traces(console: Console, comparison: Comparison) -> None:
    """Where both have traces, the next question is which kernel; the paths lead there."""
    traces = [
        [a["path"] for a in run.artefacts if a.get("kind") == "trace"]
        for run in (comparison.a, comparison.b)
    ]
    if all(traces):
        for letter, paths in zip("AB", traces, strict=True):
            for path in paths:
                _say(console, f"trace of {letter}: {path}")


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(_text(console, text, style))


def _text(console: Console, text: str, style: str = "") -> Text:
    """Plain text, brackets and all; without signs that the terminal cannot show."""
    if console.options.ascii_only:
        text = text.translate(_TO_ASCII)
    return Text(text, style=style)
