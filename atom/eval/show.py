"""Evaluations for people in a terminal: the list of them, one run's scores, its samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from atom.bench import names
from atom.bench.history.runs import better, commit_of, recipe_of, started_at
from atom.bench.history.show import shortest_ids
from atom.bench.types import Interval, RunResult
from atom.eval.compare import first_metric, main_metric
from atom.eval.report import figure
from atom.eval.select import Chosen, is_right
from atom.eval.wording import choice, chosen_per_character, harmless, question

if TYPE_CHECKING:
    from atom.eval.stored import Stored
    from atom.eval.types import Sample

LONG = 1200  # characters of a text that is shown among others; --full shows all
ROOM_FOR_IDS = 120
ROOM_FOR_ENDS = 100  # columns, from which the ends of an interval are shown
LABEL = 11  # columns before a sample's texts


def scores_of(run: RunResult) -> dict[str, dict[str, Interval]]:
    """Task -> metric -> score, in the run's order."""
    found: dict[str, dict[str, Interval]] = {}
    for name, interval in run.metrics.items():
        task, sign, metric = name.rpartition("/")
        if sign and not names.is_name(name):
            found.setdefault(task, {})[metric] = interval
    asked = run.workload.get("tasks")
    order = [task for task in asked if task in found] if isinstance(asked, Mapping) else []
    return {task: found[task] for task in dict.fromkeys([*order, *found])}


def task_facts(run: RunResult, task: str) -> Mapping[str, Any]:
    tasks = run.workload.get("tasks")
    facts = tasks.get(task) if isinstance(tasks, Mapping) else None
    return facts if isinstance(facts, Mapping) else {}


def score_text(interval: Interval) -> str:
    return figure(interval.value)


def half_text(interval: Interval) -> str:
    """Half the interval of 95 %; "" where none is known."""
    if interval.low == interval.high:
        return ""
    half = (interval.high - interval.low) / 2
    return f"±{figure(half)}"


def state_of(run: RunResult, name: str) -> str:
    """Against its threshold: ok, or below (above, where less is better); "" without one."""
    limit = run.slo.get(name)
    if limit is None:
        return ""
    value = run.metrics[name].value
    if better(run, name) == "lower":
        return "ok" if value <= limit else "above"
    return "ok" if value >= limit else "below"


def print_list(out: Console, runs: Sequence[RunResult], all_ids: Sequence[str]) -> None:
    """A row for each task of each run, by its main metric."""
    short = shortest_ids(all_ids) if out.width < ROOM_FOR_IDS else {}
    columns = ["run", "name", "task", "metric", "score", "95%", "n", "threshold"]
    if out.width >= ROOM_FOR_IDS:
        columns += ["shots", "commit"]
    else:
        columns.remove("metric")
    rows = []
    for run in runs:
        for position, (task, metrics) in enumerate(scores_of(run).items()):
            metric = first_metric(list(metrics), main_metric(run, run, task))
            facts = task_facts(run, task)
            cells = {
                "run": "" if position else short.get(run.run_id, run.run_id),
                "name": "" if position else run.name,
                "task": task,
                "metric": metric,
                "score": score_text(metrics[metric]),
                "95%": half_text(metrics[metric]),
                "n": _count(facts.get("samples")),
                "threshold": _limit(run, f"{task}/{metric}"),
                "shots": _count(facts.get("num_fewshot")),
                "commit": "" if position else commit_of(run)[:8],
            }
            rows.append(cells)
    kept = [c for c in columns if any(row[c] for row in rows)]
    table = _table(*kept, right=("score", "95%", "n", "threshold", "shots"))
    for row in rows:
        table.add_row(*(_state_cell(row[c]) if c == "threshold" else Text(row[c]) for c in kept))
    out.print(table)


def _limit(run: RunResult, name: str) -> str:
    state = state_of(run, name)
    return f"{run.slo[name]:g} {state}" if state else ""


def _state_cell(text: str) -> Text:
    return Text(text, style="" if text.endswith("ok") else "red")


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else ""


def print_run(out: Console, stored: Stored) -> None:
    """A run's scores, and what can be looked at."""
    run = stored.run
    server = run.provenance.get("server")
    kind = str(server.get("kind") or "") if isinstance(server, Mapping) else ""
    parts = [run.name, f"run {run.run_id}", started_at(run)[:16].replace("T", " ") + " UTC"]
    out.print(Text(" · ".join(parts), style="bold"))
    commit = commit_of(run)[:12]
    told = {"model": run.model, "server": kind, "recipe": recipe_of(run), "commit": commit}
    line = " · ".join(f"{key} {value}" for key, value in told.items() if value)
    out.print(Text(line, style="dim"), soft_wrap=True)
    out.print(_scores(run, stored.counts, ends=out.width >= ROOM_FOR_ENDS))
    drafts = [
        f"{label} {run.metrics[name].value:{form}}"
        for name, label, form in (
            ("acceptance_rate", "accepted draft tokens", ".1%"),
            ("accept_length", "tokens a pass", ".2f"),
        )
        if name in run.metrics
    ]
    if drafts:
        out.print(Text(" · ".join(drafts)))
    for note in run.notes:
        out.print(Text(f"note: {note}", style="yellow"))
    if stored.counts:
        hint = f"atom eval show {run.run_id} --wrong shows the samples that were answered wrong"
    else:
        hint = "no samples are stored with this run: it holds scores only"
    out.print(Text(hint, style="dim"), soft_wrap=True)


def _scores(run: RunResult, counts: Mapping[str, int], *, ends: bool) -> Table:
    rows = []
    for task, metrics in scores_of(run).items():
        facts = task_facts(run, task)
        for position, (metric, interval) in enumerate(metrics.items()):
            known = interval.low != interval.high
            rows.append(
                {
                    "task": "" if position else task,
                    "n": "" if position else _count(facts.get("samples") or counts.get(task)),
                    "shots": "" if position else _count(facts.get("num_fewshot")),
                    "metric": metric,
                    "score": score_text(interval),
                    "95%": half_text(interval),
                    "95% from": figure(interval.low) if known else "",
                    "to": figure(interval.high) if known else "",
                    "threshold": _limit(run, f"{task}/{metric}"),
                }
            )
    interval_columns = ("95% from", "to") if ends else ("95%",)
    shown = ("task", "n", "shots", "metric", "score", *interval_columns, "threshold")
    kept = [c for c in shown if any(row[c] for row in rows)]
    table = _table(*kept, right=("n", "shots", "score", "95%", "95% from", "to", "threshold"))
    for row in rows:
        table.add_row(*(_state_cell(row[c]) if c == "threshold" else Text(row[c]) for c in kept))
    return table


def print_samples(
    out: Console, chosen: Sequence[Chosen], *, limit: int | None, full: bool, what: str
) -> None:
    """The samples, at most `limit` of each task, and how many there are; `what`: "wrong " or ""."""
    for each in chosen:
        shown = each.samples if limit is None else each.samples[:limit]
        for sample in shown:
            print_sample(out, sample, each.metric, full=full)
        told = f"{each.task}: {len(shown):,} of {len(each.samples):,} {what}samples shown"
        if len(each.samples) != each.total:
            told += f"; {each.total:,} in all"
        more = "; --limit 0 shows all" if len(shown) < len(each.samples) else ""
        by = f", by {each.metric}" if what else ""
        out.print(Text(f"{told}{by}{more}", style="dim"), soft_wrap=True)


def print_sample(out: Console, sample: Sample, metric: str, *, full: bool = False) -> None:
    """One sample: question, target, answer, what the filters made of it, the choices."""
    right = is_right(sample, metric)
    word, style = {True: ("right", "green"), False: ("wrong", "red"), None: ("", "")}[right]
    heading = Text(f"{sample.task} {sample.doc_id}", style="bold")
    heading.append(f"  {word}" if word else "", style=style)
    for name, value in sample.metrics.items():
        if not name.startswith("perplexity"):  # of a sample it holds a log-likelihood
            heading.append(f"  {name} {value:g}", style="dim not bold")
    out.print(heading, soft_wrap=True)
    prompt = sample.prompt if full else question(sample)
    if prompt.strip():
        _print_text(out, "prompt" if full else "question", prompt, full)
    scored = [answer for answer in sample.answers if "logprob" in answer]
    if len(scored) > 1:
        out.print(_choices(sample, scored))
    else:
        _print_text(out, "target", sample.target, full)
        _print_answer(out, sample, scored, full)
    out.print()


def _print_answer(
    out: Console, sample: Sample, scored: Sequence[Mapping[str, Any]], full: bool
) -> None:
    if scored:
        greedy = "the likeliest" if scored[0].get("is_greedy") else "not the likeliest"
        logprob = float(scored[0]["logprob"])
        _print_text(out, "found", f"logprob {logprob:.4f}, {greedy} continuation", full)
        return
    for answer in sample.answers:
        if answer.get("reasoning"):
            _print_text(out, "thinking", str(answer["reasoning"]), full)
        _print_text(out, "answer", str(answer.get("text", "")), full)
    said = [str(answer.get("text", "")) for answer in sample.answers]
    for name, text in sample.filtered.items():
        if name != "none" or text not in said:  # the filter that changes nothing
            _print_text(out, "filter", f"{name}: {text}", full)
    if sample.finish_reason == "length":
        count = f" ({sample.output_tokens:,} tokens)" if sample.output_tokens else ""
        _print_text(out, "cut", f"the answer was cut at the token limit{count}", full)


def _print_text(out: Console, label: str, text: str, full: bool) -> None:
    """Label and text side by side, the text folded to the terminal's width."""
    text = harmless(text.strip("\n"))
    if not full and len(text) > LONG:
        text = f"{text[:LONG]}… ({len(text) - LONG:,} more characters; --full shows all)"
    lead = Text(f"  {label}".ljust(LABEL), style="cyan")
    for line in (text or "(nothing)").split("\n"):
        for piece in Text(line.rstrip()).wrap(out, max(20, out.width - LABEL)) or [Text()]:
            row = Text.assemble(lead, piece)
            row.rstrip()
            out.print(row, soft_wrap=True)
            lead = Text(" " * LABEL)


def _choices(sample: Sample, scored: Iterable[Mapping[str, Any]]) -> Table:
    """Log-probabilities of the choices, and per character, as acc_norm chooses."""
    table = _table("  ", "logprob", "per char", "choice", right=("logprob", "per char"))
    by_length = chosen_per_character(sample)
    for number, answer in enumerate(scored):
        logprob = float(answer["logprob"])
        marks = [
            word
            for word, place in (
                ("right", sample.gold),
                ("chosen", sample.chosen),
                ("chosen per char", None if by_length == sample.chosen else by_length),
            )
            if place == number
        ]
        style = "green" if number == sample.gold else "red" if number == sample.chosen else ""
        length = len(str(answer.get("text", "")).strip())
        table.add_row(
            Text(f"  {', '.join(marks)}", style=style),
            Text(f"{logprob:.3f}"),
            Text(f"{logprob / length:.3f}" if length else ""),
            Text(harmless(choice(answer))),
        )
    return table


def _table(*columns: str, right: Sequence[str] = ()) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        number = column in right
        table.add_column(
            column,
            justify="right" if number else "left",
            no_wrap=number or column == "run",
            overflow="fold",
        )
    return table
