"""`atom eval list | show | compare`: the evaluations of the history on the command line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atom.cli.common import console, print_json
from atom.cli.flags import CONTEXT
from atom.eval.errors import EvalError

if TYPE_CHECKING:
    from atom.eval.compare import EvalComparison
    from atom.eval.select import Chosen, Wanted
    from atom.eval.stored import Stored
    from atom.eval.types import Sample

app = typer.Typer(context_settings=CONTEXT, add_completion=False)

SCHEMA = 1  # of --json
LISTED = 20  # runs of `list`, without --limit
SAMPLES = 10  # of each task, of `show`, without --limit
CHANGED = 5  # of each task and direction, of `compare`
WORSE = 3  # exit code of --fail-on-worse
NAMES = (
    "An id or its beginning, last, last~1, a recipe, a model, a commit; or a file: ours, or "
    "lm-eval's results_*.json or samples_*.jsonl."
)

HistoryFile = Annotated[
    Path | None,
    typer.Option(
        "--history",
        metavar="FILE",
        help="The history. (default: $ATOM_HISTORY, else ~/.local/share/atom/history.db)",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def list_runs(
    history: HistoryFile = None,
    model: Annotated[
        str | None,
        typer.Option(help="Only this model, in full or its last part.", metavar="NAME"),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Only this recipe: name, file or hash.", metavar="RECIPE")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="Only runs with this task.", metavar="TASK")
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="Not older: 2026-11-21, 7d, 12h.", metavar="WHEN")
    ] = None,
    limit: Annotated[
        int, typer.Option(help="At most so many runs, the newest (0: all).", min=0)
    ] = LISTED,
    as_json: Json = False,
) -> None:
    """List the evaluations of the history, newest first, each task by its main metric."""
    from atom.bench.history import History
    from atom.bench.history.show import document_row
    from atom.eval.show import print_list, scores_of
    from atom.eval.stored import KIND

    with History(history) as store:
        runs = store.find(kind=KIND, model=model, recipe=recipe, since=since)
        found = [run for run in runs if task is None or task in scores_of(run)]
        shown = found[:limit] if limit else found
        if as_json:
            print_json([{**document_row(run), "thresholds": run.slo} for run in shown])
            return
        if not found:
            _say(
                f"no evaluation in {store.path} is like that; atom eval TASK adds one, "
                "atom bench import takes in lm-eval's results"
            )
            return
        print_list(console(), shown, store.ids(""))
        if len(shown) < len(found):
            _say(f"the newest {len(shown)} of {len(found):,} evaluations; --limit 0 lists all")


@app.command()
def show(
    run: Annotated[str, typer.Argument(metavar="RUN", help=NAMES)] = "last",
    wrong: Annotated[
        bool, typer.Option("--wrong", help="The samples that were answered wrong.")
    ] = False,
    right: Annotated[
        bool, typer.Option("--right", help="The samples that were answered right.")
    ] = False,
    task: Annotated[
        str | None, typer.Option(help="Samples of this task only.", metavar="TASK")
    ] = None,
    sample: Annotated[
        int | None, typer.Option(help="One sample, whole, by its number.", metavar="N")
    ] = None,
    grep: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Samples whose question, target or answer has this (a regular expression).",
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(help="What right and wrong are told by. (default: the task's main metric)"),
    ] = None,
    limit: Annotated[
        int, typer.Option(help="At most so many samples of each task (0: all).", min=0)
    ] = SAMPLES,
    full: Annotated[
        bool, typer.Option("--full", help="Whole prompts with their examples, whole answers.")
    ] = False,
    history: HistoryFile = None,
    as_json: Json = False,
) -> None:
    """Show one evaluation: its scores, or its samples as they were asked and answered."""
    from atom.bench.history import History
    from atom.eval.select import Wanted, choose
    from atom.eval.show import print_run, print_samples
    from atom.eval.stored import find

    if wrong and right:
        raise EvalError("--wrong and --right together are no sample; give one")
    wanted = Wanted(task, sample, wrong, right, grep, metric)
    with History(history) as store:
        found = find(store, run)
        if wanted == Wanted():
            if as_json:
                print_json(_summary(found))
            else:
                print_run(console(), found)
            return
        chosen = choose(found, wanted)
        most = limit or None
        if as_json:
            print_json({**_identity(found), "samples": _samples(chosen, most)})
            return
        what = "wrong " if wrong else "right " if right else ""
        whole = full or sample is not None
        print_samples(console(), chosen, limit=most, full=whole, what=what)
        _same_as_all(chosen, wanted)


def _same_as_all(chosen: list[Chosen], wanted: Wanted) -> None:
    if wanted.grep is not None and not any(each.samples for each in chosen):
        _say(f"no sample has {wanted.grep!r} in its question, target or answers")


def _identity(stored: Stored) -> dict[str, Any]:
    run = stored.run
    return {"schema": SCHEMA, "run_id": run.run_id, "model": run.model, "name": run.name}


def _summary(stored: Stored) -> dict[str, Any]:
    from atom.bench.history.documents import to_document

    return {**to_document(stored.run), "samples": stored.counts}


def _samples(chosen: list[Chosen], limit: int | None) -> list[dict[str, Any]]:
    from atom.bench.history import codec

    return [
        {
            "task": each.task,
            "metric": each.metric,
            "total": each.total,
            "matching": len(each.samples),
            "shown": codec.plain(each.samples[:limit]),
        }
        for each in chosen
    ]


@app.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help=f"The run to compare with. {NAMES}")],
    b: Annotated[str, typer.Argument(metavar="B", help="The run that is judged.")],
    task: Annotated[
        list[str] | None,
        typer.Option("--task", metavar="TASK", help="Only this task; may be given again."),
    ] = None,
    margin: Annotated[
        str | None,
        typer.Option(metavar="PERCENT", help='"Same" means within this. (default: 1%)'),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(help="The metric to judge by. (default: each task's main one)"),
    ] = None,
    every_metric: Annotated[
        bool, typer.Option("--all", help="Show every metric, not the main ones only.")
    ] = False,
    changed: Annotated[
        int,
        typer.Option(
            help="List at most so many changed samples each way (0: none, -1: all).", min=-1
        ),
    ] = CHANGED,
    fail_on_worse: Annotated[
        bool, typer.Option("--fail-on-worse", help="Exit code 3 if B is worse on any task.")
    ] = False,
    history: HistoryFile = None,
    as_json: Json = False,
) -> None:
    """Compare two evaluations question by question: McNemar's test on what changed."""
    from atom.bench.history import History
    from atom.eval.compare import MARGIN, compare
    from atom.eval.picture import print_comparison
    from atom.eval.stored import find

    within = MARGIN if margin is None else parse_margin(margin)
    with History(history) as store:
        left, right = find(store, a), find(store, b)
        if left.run.run_id == right.run.run_id:
            raise EvalError("A and B are the same run; atom eval list shows others")
        _check_tasks(task or [], left, right)
        samples = left.samples(), right.samples()
        if metric is not None:
            _check_metric(metric, samples[1])
        found = compare(
            left.run, right.run, *samples, margin=within, only=task or (), metric=metric
        )
    if as_json:
        print_json(_plain(found))
    else:
        most = None if changed < 0 else changed
        print_comparison(console(), found, every_metric=every_metric, changed=most)
    worse = any(each.main.verdict == "worse" for each in found.tasks if not each.group)
    raise typer.Exit(WORSE if worse and fail_on_worse else 0)


def parse_margin(text: str) -> float:
    """`2%`, `2` or `0.02` -> 0.02; raises `EvalError` outside 0.01 % to 50 %."""
    try:
        value = float(text.strip().removesuffix("%"))
    except ValueError:
        value = -1.0
    share = value / 100 if text.strip().endswith("%") or value >= 0.5 else value
    if not 0.0001 <= share <= 0.5:
        raise EvalError(f"--margin {text}: write a percentage from 0.01% to 50%, e.g. 2%")
    return share


def _check_tasks(tasks: list[str], a: Stored, b: Stored) -> None:
    from atom.config.fields import nearest
    from atom.eval.show import scores_of

    for name in tasks:
        for letter, side in (("A", a), ("B", b)):
            known = {**side.counts, **scores_of(side.run)}
            if name not in known:
                raise EvalError(
                    f"--task {name}: {letter} has {', '.join(known)}{nearest(name, known)}"
                )


def _check_metric(metric: str, samples: dict[str, list[Sample]]) -> None:
    from atom.eval.select import check_metric

    there = dict.fromkeys(m for task in samples.values() for sample in task for m in sample.metrics)
    check_metric(metric, "B", list(there))


def _plain(found: EvalComparison) -> dict[str, Any]:
    from atom.bench.history import codec

    built: dict[str, Any] = codec.plain(found)
    return {"schema": SCHEMA, **built}


def _say(text: str) -> None:
    """For people, beside the data on stdout."""
    sys.stderr.write(f"{text}\n")
