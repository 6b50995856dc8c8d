"""A comparison of two evaluations in the terminal. Every colour has its word beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from atom.bench.compare.facts import RunFacts
from atom.eval.compare import Change, EvalComparison, MetricComparison, TaskComparison
from atom.eval.wording import one_line

COLOURS = {
    "worse": "red", "better": "green", "same": "", "undecided": "yellow", "trade-off": "yellow",
}  # fmt: skip
LEAST_P = 0.0001
WIDE = 100  # columns, from which the counts have a column of their own
SAID = 14  # columns of an answer in the list of changes
ANSWER_MARK = "Answer:"


def print_comparison(
    out: Console, found: EvalComparison, *, every_metric: bool = False, changed: int | None = 5
) -> None:
    """Who the runs are, each task with its test, what changed, the verdict.

    `changed`: at most so many changed samples of each task and direction; None: all.
    """
    for letter, run in (("A", found.a), ("B", found.b)):
        _say(out, f"{letter}  {_identity(run)}", "bold")
    for one in found.differences:
        if one.what != "commit":  # the first lines have it
            _say(out, f"   {one.what}: {one_line(one.a, 60)} -> {one_line(one.b, 60)}", "dim")
    if found.tasks:
        out.print(_tasks(found.tasks, every_metric, wide=out.width >= WIDE))
        _legend(out, found)
        for task in found.tasks:
            _say(out, evidence(task))
    for told in found.untested:
        _say(out, told)
    for task in found.tasks:
        if not task.group:
            _changes(out, task, changed)
    first = next((task for task in found.tasks if not task.group and (task.lost or task.won)), None)
    if changed != 0 and first is not None:
        sample = f"--task {first.task} --sample {(first.lost or first.won)[0].b_doc}"
        _say(out, f"atom eval show {found.b.run_id} {sample} shows the first whole", "dim")
    out.print(Text(found.verdict, style=f"bold {COLOURS[found.verdict]}".strip()), end="")
    out.print(Text(f": {found.sentence}"), soft_wrap=True)
    for note in [*(f"{t.task}: {n}" for t in found.tasks for n in t.notes), *found.notes]:
        _say(out, f"note: {note}", "yellow")


def _identity(run: RunFacts) -> str:
    parts = (run.name, f"run {run.run_id}", run.started_at[:16].replace("T", " "), run.server)
    commit = f"commit {run.commit}" if run.commit else ""
    return " · ".join(part for part in (*parts, commit) if part)


def _tasks(tasks: Sequence[TaskComparison], every_metric: bool, *, wide: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    counts = ("lost", "won") if wide else ()
    for name in ("task", "n", "A", "B", "B − A [95%]", *counts, "p", "verdict"):
        left = name in ("task", "verdict")
        justify: Literal["left", "right"] = "left" if left else "right"
        table.add_column(name, justify=justify, no_wrap=name != "task", overflow="fold")
    for task in tasks:
        table.add_row(*_cells(task.task, f"{task.n:,}", task.main, wide))
        for metric in task.metrics[1:] if every_metric else ():
            table.add_row(*_cells(f"  {metric.metric}", "", metric, wide), style="dim")
    return table


def _cells(name: str, n: str, found: MetricComparison, wide: bool) -> list[Text]:
    p = found.p_value if found.adjusted_p is None else found.adjusted_p
    cells = [
        name,
        n,
        _value(found, found.a),
        _value(found, found.b),
        change_text(found),
        *(("" if count is None else f"{count:,}") for count in (found.lost, found.won) if wide),
        "" if p is None else p_text(p),
    ]
    return [*map(Text, cells), Text(found.verdict, style=COLOURS[found.verdict])]


def _value(found: MetricComparison, value: float) -> str:
    return f"{value:.2%}" if found.scale == "share" else f"{value:.4g}"


def change_text(found: MetricComparison) -> str:
    """-2.80 [-4.6, -1.0] in points; of perplexities the ratio."""
    if found.change is None:
        return ""
    value, low, high = found.change.value, found.change.low, found.change.high
    if found.scale == "share":
        return f"{100 * value:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"
    if found.scale == "ratio":
        return f"×{value:.3f} [{low:.3f}, {high:.3f}]"
    return f"{value:+.3g} [{low:+.3g}, {high:+.3g}]"


def p_text(p: float) -> str:
    return f"<{LEAST_P}" if p < LEAST_P else f"{p:.4f}" if p < 0.1 else f"{p:.2f}"


def _legend(out: Console, found: EvalComparison) -> None:
    tested = [task for task in found.tasks if task.main.adjusted_p is not None]
    many = f", adjusted for {len(tested)} tasks" if len(tested) > 1 else ""
    said = "lost: right in A, wrong in B; won: the other way round; B − A in points"
    if any(task.main.scale == "ratio" for task in found.tasks):
        said += ", of perplexities B / A"
    _say(out, f"{said}; p: McNemar's exact test{many}; same: within {found.margin:.2%}", "dim")


def evidence(task: TaskComparison) -> str:
    """What stands behind the verdict, and what so many samples could have shown."""
    main = task.main
    said = f"{task.task}, {main.metric}: "
    if main.lost is not None and main.won is not None and main.p_value is not None:
        mid = "" if main.mid_p is None else f", mid-p {p_text(main.mid_p)}"
        said += (
            f"{main.lost + main.won:,} of {task.n:,} answered differently "
            f"({main.lost:,} lost, {main.won:,} won), "
            f"exact p {p_text(main.p_value)}{mid}"
        )
    elif main.p_value is not None:
        said += f"{task.n:,} paired scores, p {p_text(main.p_value)} (Student's t)"
    else:
        return f"{said}{task.n:,} pairs are too few for a test"
    if main.smallest is None:
        return f"{said}; so few can show no difference at all"
    unit = "%" if main.scale == "ratio" else " points" if main.scale == "share" else ""
    size = main.smallest if main.scale == "mean" else 100 * main.smallest
    return f"{said}; a difference of {size:.2g}{unit} would be found in 4 of 5 cases"


def _changes(out: Console, task: TaskComparison, limit: int | None) -> None:
    for title, changes in (
        ("right in A, wrong in B", task.lost),
        ("wrong in A, right in B", task.won),
    ):
        if not changes or limit == 0:
            continue
        shown = changes[:limit]
        count = f"{len(shown):,} of {len(changes):,}"
        _say(out, f"{task.task}: {title} ({count})", "bold cyan")
        out.print(_change_table(out, shown))


def _change_table(out: Console, changes: Sequence[Change]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("  sample", justify="right", no_wrap=True)
    table.add_column("question", no_wrap=True)
    for name in ("target", "A", "B"):
        table.add_column(name, no_wrap=True)
    room = max(16, out.width - 10 - 3 * (SAID + 2) - 2) if out.width < 1000 else 1000
    narrow = SAID if out.width < 1000 else 1000
    for one in changes:
        where = str(one.a_doc) if one.a_doc == one.b_doc else f"{one.a_doc}/{one.b_doc}"
        question = one.question.strip().removesuffix(ANSWER_MARK).removeprefix("Question:")
        answers = [one_line(text, narrow) for text in (one.target, one.a_said, one.b_said)]
        table.add_row(*map(Text, (where, one_line(question, room), *answers)))
    return table


def _say(out: Console, text: str, style: str = "") -> None:
    if out.options.ascii_only:
        text = text.replace("−", "-").replace("·", "-").replace("×", "x")
    out.print(Text(text, style=style), soft_wrap=out.width > 1000)
