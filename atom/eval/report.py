"""The result of an evaluation for people: scores in a table, verdicts in sentences, what is next.

On a narrow terminal each task is a heading with a table of its own below.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from atom.bench.words import number
from atom.eval import acceptance
from atom.eval.types import Score, TaskResult
from atom.eval.verdict import Judged

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from atom.eval.compare import MetricComparison
    from atom.eval.session import Report

WIDE = 118  # columns that the one table needs
_STYLES = {"below": "red", "ok": "green", "none": ""}
_PAIRED = {"better": "green", "worse": "red", "same": "", "undecided": "", "trade-off": ""}


def print_report(console: Console, report: Report) -> None:
    judged = {one.name: one for one in report.judged}
    _heading(console, report)
    if console.width >= WIDE:
        _one_table(console, report, judged)
    else:
        for result in report.outcome.tasks:
            _task_table(console, result, judged)
    for one in report.judged:
        for text, style in _sentences(one, report.paired.get(one.name)):
            console.print(_text(text, style))
    told = acceptance.told(report.server)
    if told:
        console.print(_text(f"speculative decoding: {told}"))
    if report.acceptance_problem:
        console.print(_text(report.acceptance_problem, "red"))
    for note in report.run.notes:
        if note != report.acceptance_problem:
            console.print(_text(f"note: {note}", "yellow"))
    for problem in report.problems:
        console.print(_text(f"problem: {problem}", "red"))
    _footer(console, report)


def _heading(console: Console, report: Report) -> None:
    run = report.run
    said = [run.name] if run.name == run.model else [run.name, run.model]
    console.print(_text(" · ".join(said), "bold"))


def _one_table(console: Console, report: Report, judged: dict[str, Judged]) -> None:
    rows = []
    for result in report.outcome.tasks:
        first = [result.task, _count(result), _shots(result)]
        for metric, score in result.metrics.items():
            one = judged.get(f"{result.task}/{metric}")
            cells = [*first, *_metric(metric), *_figures(score), _threshold(one), _baseline(one)]
            rows.append([*(_text(cell) for cell in cells), _verdict(one)])
            first = ["", "", ""]
    used = [any(row[i].plain for row in rows) for i in range(len(_COLUMNS))]
    table = _table()
    for title, there in zip(_COLUMNS, used, strict=True):
        if there and title in _TEXTS:
            table.add_column(title, overflow="fold")
        elif there:
            table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(cell for cell, there in zip(row, used, strict=True) if there))
    console.print(table)


_COLUMNS = (
    "Task", "N", "Shots", "Metric", "Filter", "Value", "± stderr", "95% interval", "Threshold",
    "Baseline", "",
)  # fmt: skip
_TEXTS = ("Task", "Metric", "Filter", "")


def _task_table(console: Console, result: TaskResult, judged: dict[str, Judged]) -> None:
    shots = "" if result.kind == "group" else f", {result.num_fewshot}-shot"
    console.print(_text(f"{result.task}: {_count(result)} documents{shots}"))
    table = _table()
    table.add_column("  Metric", overflow="fold")
    for title in ("Value", "± stderr", "95% interval"):
        table.add_column(title, justify="right", no_wrap=True)
    expected = [judged.get(f"{result.task}/{metric}") for metric in result.metrics]
    if any(one is not None and one.threshold is not None for one in expected):
        table.add_column("Threshold", justify="right", no_wrap=True)
    if any(one is not None and one.baseline is not None for one in expected):
        table.add_column("Baseline", justify="right", no_wrap=True)
    titles = [str(column.header) for column in table.columns]
    for (metric, score), one in zip(result.metrics.items(), expected, strict=True):
        name, chosen = _metric(metric)
        cells = [f"  {name},{chosen}" if chosen else f"  {name}", *_figures(score)]
        cells += [_threshold(one)] if "Threshold" in titles else []
        cells += [_baseline(one)] if "Baseline" in titles else []
        style = "" if one is None else _STYLES[one.state]
        table.add_row(*(_text(c) for c in cells), style=style)
    console.print(table)


def _count(result: TaskResult) -> str:
    if result.num_samples == result.num_documents:
        return f"{result.num_samples:,}"
    return f"{result.num_samples:,} of {result.num_documents:,}"


def _shots(result: TaskResult) -> str:
    return "" if result.kind == "group" else str(result.num_fewshot)


def _metric(metric: str) -> tuple[str, str]:
    """("exact_match", "strict-match"); lm-eval's filter "none" is none."""
    name, _, chosen = metric.partition(",")
    return name, "" if chosen == "none" else chosen


def _figures(score: Score) -> tuple[str, str, str]:
    error = "–" if score.stderr is None else f"{score.stderr:.4f}"
    known = score.low is not None and score.high is not None and score.low < score.high
    interval = f"{figure(score.low)}–{figure(score.high)}" if known else "–"
    arrow = "" if score.higher_is_better else " ↓"
    return f"{figure(score.value)}{arrow}", error, interval


def figure(value: float | None) -> str:
    """Four decimals, as scores are compared; large ones (perplexities) shorter, small ones (KL
    divergences) by their digits."""
    if value is None:
        return "–"
    if 0 < abs(value) < 0.001:
        return f"{value:.3g}"
    return f"{value:.4f}" if abs(value) < 10 else f"{value:,.2f}"


def _threshold(one: Judged | None) -> str:
    if one is None or one.threshold is None:
        return ""
    return f"{'≥' if one.score.higher_is_better else '≤'} {one.threshold:g}"


def _baseline(one: Judged | None) -> str:
    if one is None or one.baseline is None:
        return ""
    share = one.recovery
    recovered = "" if share is None else f" ({share:.1%})"
    return f"{figure(one.baseline.value)}{recovered}"


def _verdict(one: Judged | None) -> Text:
    return _text("") if one is None else _text(one.word(), _STYLES[one.state])


def _sentences(one: Judged, paired: MetricComparison | None) -> Iterator[tuple[str, str]]:
    if one.state != "none":
        yield one.sentence(), _STYLES[one.state]
    difference, noise = one.difference, one.difference_noise()
    if difference is None or one.baseline is None:
        return
    of = f" of {one.baseline.run_id}" if one.baseline.run_id else ""
    side = "above" if difference > 0 else "below"
    said = f"{one.name} is {abs(difference):.4f} {side} its baseline {one.baseline.value:g}{of}"
    if not difference:
        said = f"{one.name} equals its baseline {one.baseline.value:g}{of}"
    if paired is not None:
        yield f"{said}; {_pairs(paired)}", _PAIRED[paired.verdict]
        return
    if noise is not None:
        where = "within" if abs(difference) <= noise else "more than"
        said += f", {where} the noise of two independent samples (±{noise:.4f})"
    yield said, ""


def _pairs(found: MetricComparison) -> str:
    """What the documents that both runs have say of it."""
    parts = []
    if found.lost is not None and found.won is not None:
        parts.append(f"of the same documents {found.won:,} won, {found.lost:,} lost")
    if found.p_value is not None:
        test = "McNemar's exact test" if found.lost is not None else "paired t test"
        parts.append(f"{test} p = {found.p_value:.2g}")
    return ", ".join([*parts, found.verdict])


def _footer(console: Console, report: Report) -> None:
    outcome, run = report.outcome, report.run
    kept = f" ({outcome.kept:,} kept)" if outcome.kept else ""
    said = [
        f"run {run.run_id}",
        f"{number(outcome.duration_s)} s",
        f"{outcome.answers:,} answer{'s' * (outcome.answers != 1)}{kept}",
        f"{outcome.prompt_tokens:,} prompt and {outcome.output_tokens:,} output tokens",
    ]
    console.print(_text(" · ".join(said), "dim"))
    if report.files:
        samples = len(report.files) - 1
        also = f" and {samples} files of samples" if samples > 1 else " and its samples"
        console.print(_text(f"written {report.files[0]}{also if samples else ''}", "dim"))
    if not report.stored:
        return
    console.print(_text(f"next: atom eval show {run.run_id} --wrong", "dim"))
    runs = dict.fromkeys(
        one.baseline.run_id for one in report.judged if one.baseline and one.baseline.run_id
    )
    for earlier in runs:
        console.print(_text(f"      atom eval compare {earlier} {run.run_id}", "dim"))


def _table() -> Table:
    from rich.table import Table

    return Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))


def _text(text: str, style: str = "") -> Text:
    """Plain text: brackets in a model's name are no markup."""
    from rich.text import Text

    return Text(text, style=style)
