"""A `TraceDiff` in the terminal: the verdict, the steps, and what the costliest change is made of.

Every table's rows sum to its last one. Colours repeat what the words say.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from atom.cli.common import add_row, table
from atom.trace.attribution import Kind
from atom.trace.diff import OTHER_CONTEXT, Change, Row, StepDiff, TraceDiff
from atom.trace.kernels import short_names
from atom.trace.noise import Verdict
from atom.trace.verdict import by_shape, fails, percent, sentences, us

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

COLOURS: dict[Verdict, str] = {
    "slower": "red", "faster": "green", "undecided": "yellow", "same": "",
}  # fmt: skip
TABLES = 2  # shapes with tables of their own, unless all are asked for
MODULES = 8
SHAPES = 12
LAYERS_SHARE = 0.2  # of the difference, from which the layers are drawn
WIDE = 110  # columns from which module and kernel stand apart
LEVELS, ASCII_LEVELS = "▁▂▃▄▅▆▇█", "_.-=+*#@"


def print_diff(
    out: Console, found: TraceDiff, *, rows: int, every: bool, limit: float | None = None
) -> None:
    """`limit`: of --fail-above, as a share."""
    for i, line in enumerate(sentences(found)):
        out.print(Text(line, style="" if i else "bold"))
    for what, a, b in found.differences:
        out.print(Text(f"{what}: {a} | {b}", style="dim"))
    _print_steps(out, found)
    shown = by_shape(found)
    if not every:
        changed = [groups for groups in shown if groups[0].span.verdict != "same"]
        shown = (changed or shown[:1])[:TABLES]
    for groups in shown:
        _print_group(out, groups[0], rows, several=len(found.ranks) > 1)
    for letter, only in (("A", found.only_a), ("B", found.only_b)):
        if only:
            more = f" and {len(only) - SHAPES} more" if len(only) > SHAPES else ""
            out.print(Text(f"only in {letter}: {', '.join(only[:SHAPES])}{more}", style="yellow"))
    for note in found.notes:
        out.print(Text(f"note: {note}", style="yellow"))
    if limit is not None:
        _print_limit(out, found, limit)


def _print_steps(out: Console, found: TraceDiff) -> None:
    """One row for each shape and rank."""
    several = len(found.ranks) > 1
    made = table("step", *(["rank"] if several else []), "n", "A", "B", "change", "idle", "")
    for column in made.columns[1:-1]:
        column.justify = "right"
        column.no_wrap = True
    groups = sorted(found.groups, key=lambda g: (g.shape.kind, g.shape, g.rank))
    costly = sorted(groups, key=lambda g: -abs(g.cost_us))[: max(SHAPES, 4 * len(found.ranks))]
    for g in [g for g in groups if g in costly]:
        idle = [100 * (1 - y / x) if x else 0 for x, y in _sides(g)]
        add_row(
            made,
            str(g.shape),
            *([str(g.rank)] if several else []),
            f"{g.steps_a}" if g.steps_a == g.steps_b else f"{g.steps_a}|{g.steps_b}",
            us(g.span.a_us),
            us(g.span.b_us),
            percent(g) + _spread(g.span),
            f"{idle[0]:.0f}|{idle[1]:.0f}%",
            g.span.verdict,
            style=COLOURS[g.span.verdict],
        )
    out.print(made)
    if len(costly) < len(groups):
        out.print(Text(f"and {len(groups) - len(costly)} that changed less; --json has all"))


def _sides(g: StepDiff) -> list[tuple[float, float]]:
    return [(g.span.a_us, g.busy.a_us), (g.span.b_us, g.busy.b_us)]


def _spread(change: Change) -> str:
    if change.half_us is None or not change.a_us:
        return ""
    return f" ±{100 * change.half_us / change.a_us:.1f}"


def _print_group(out: Console, group: StepDiff, rows: int, *, several: bool) -> None:
    rank = f"rank {group.rank}, " if several else ""
    out.print()
    out.print(Text(f"{rank}{group.shape}: kernels, mean us per step", style="bold"))
    _print_rows(out, group, _folded(group.rows, group.modules, rows), kernels=True)
    in_modules = [r for r in group.rows if r.kind is Kind.KERNEL and r.module]
    if len({r.module for r in in_modules}) not in (0, len(in_modules)):
        out.print(Text("modules, mean us per step", style="bold"))
        _print_rows(out, group, _folded(group.modules, group.modules, MODULES), kernels=False)
    _print_layers(out, group)
    for note in group.notes:
        if note.startswith(OTHER_CONTEXT):
            continue  # it stands with the verdict
        out.print(Text(f"note: {note}", style="yellow"))


def _folded(rows: Sequence[Row], sums: Sequence[Row], most: int) -> tuple[list[Row], list[Row]]:
    """What is shown row by row, and the rest of the kernels. `sums` has idle and overlap whole."""
    kernels = [r for r in rows if r.kind is Kind.KERNEL]
    rest = kernels[most:] if len(kernels) > most + 1 else []
    shown = kernels[: len(kernels) - len(rest)] + [r for r in sums if r.kind is not Kind.KERNEL]
    return sorted(shown, key=lambda r: -abs(r.delta_us)), rest


def _print_rows(
    out: Console, group: StepDiff, rows: tuple[list[Row], list[Row]], *, kernels: bool
) -> None:
    single, rest = rows
    wide = out.width >= WIDE or not kernels
    names = short_names([n for r in group.rows for n in (r.name, r.was) if r.kind is Kind.KERNEL])
    titles = ["change", "share", "A", "B", *(["calls"] if kernels else []), ""]
    made = table(*titles, *(["module", "kernel"] if wide and kernels else ["where"]))
    for column in made.columns[: len(titles) - 1]:
        column.justify = "right"
        column.no_wrap = True
    for row in single:
        calls = [_calls(row, group)] if kernels else []
        if row.kind is not Kind.KERNEL:
            where = [*([""] if wide and kernels else []), _idle_words(row, group)]
        else:
            where = _where(row, names, wide=wide) if kernels else [row.name]
        _add(made, group, [row], [*calls, row.time.verdict, *where], COLOURS[row.time.verdict])
    if rest:
        words = f"{len(rest)} more {'kernels' if kernels else 'modules'}"
        blanks = [""] * (1 + kernels + (wide and kernels))
        _add(made, group, rest, [*blanks, words], "dim")
    cells = _numbers(group.span.a_us, group.span.b_us, group)
    blank = [""] if kernels else []
    tail = [*blank, group.span.verdict, *(blank if wide else []), "the step"]
    add_row(made, *cells, *tail, style="bold")
    out.print(made)


def _add(made: Table, group: StepDiff, rows: Iterable[Row], tail: list[str], style: str) -> None:
    listed = list(rows)
    a, b = sum(r.time.a_us for r in listed), sum(r.time.b_us for r in listed)
    add_row(made, *_numbers(a, b, group), *tail, style=style)


def _numbers(a: float, b: float, group: StepDiff) -> list[str]:
    total = group.span.delta_us
    known = abs(total) >= 0.001 * group.span.a_us
    share = f"{round(100 * (b - a) / total)}%" if known else ""
    return [f"{b - a:+,.2f}", share, f"{a:,.1f}", f"{b:,.1f}"]


def _calls(row: Row, group: StepDiff) -> str:
    if row.kind is not Kind.KERNEL:
        return ""
    a, b = row.a_calls / group.steps_a, row.b_calls / group.steps_b
    return f"{a:.4g}" if row.change in ("", "renamed") else f"{a:.4g}>{b:.4g}"


def _where(row: Row, names: dict[str, str], *, wide: bool) -> list[str]:
    kernel = names[row.name]
    if row.change in ("new", "vanished"):
        kernel = f"{row.change}: {kernel}"
    elif row.change == "renamed":
        kernel = f"{kernel}, was {names[row.was]}"
    if wide:
        return [row.module, kernel]
    return [f"{row.module}: {kernel}" if row.module else kernel]


def _idle_words(whole: Row, group: StepDiff) -> str:
    """With the module before which most of the difference is."""
    if whole.kind is Kind.OVERLAP:
        return "overlap of streams, taken off"
    words = "idle, the host is late" if whole.kind is Kind.HOST else "idle between kernels"
    parts = [r for r in group.rows if r.kind is whole.kind]
    top = max(parts, key=lambda r: abs(r.delta_us))
    if top.module and whole.delta_us and top.delta_us / whole.delta_us >= 0.5:
        words += f", most before {top.module}"
    return words


def _print_layers(out: Console, group: StepDiff) -> None:
    """The layers' differences as a row of bars: one that stands out is seen."""
    layers = [r for r in group.layers if r.name.startswith("layer ")]
    if len(layers) < 2:
        return
    deltas = [r.delta_us for r in layers]
    if abs(sum(deltas)) < LAYERS_SHARE * abs(group.span.delta_us):
        return
    least, most = min(deltas), max(deltas)
    low, high = min(least, 0.0), max(most, 0.0)  # bars begin at no change
    levels = ASCII_LEVELS if out.options.ascii_only else LEVELS
    top = len(levels) - 1
    scale = (high - low) or 1.0
    bars = "".join(levels[round((d - low) / scale * top)] for d in deltas)
    words = f"{us(least, sign=True)} to {us(most, sign=True)}"
    out.print(Text(f"layers {layers[0].name[6:]} to {layers[-1].name[6:]}, change {words}"))
    out.print(Text(f"  {bars}"))


def _print_limit(out: Console, found: TraceDiff, limit: float) -> None:
    failed = fails(found, limit)
    if not failed:
        out.print(Text(f"no step is slower by more than {100 * limit:g}%", style="green"))
        return
    names = ", ".join(dict.fromkeys(f"{g.shape} {percent(g)}" for g in failed))
    out.print(Text(f"slower by more than {100 * limit:g}%: {names}", style="bold red"))
