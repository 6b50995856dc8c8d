"""`atom bench compare`: two runs, sweeps, recipes, commits or files; or one against its past."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atom.bench.errors import REGRESSION, BenchError
from atom.cli.common import console, print_json
from atom.cli.flags import CONTEXT

if TYPE_CHECKING:
    from atom.bench.compare import ChangePoint, Series
    from atom.bench.history import History
    from atom.bench.types import RunResult

app = typer.Typer(context_settings=CONTEXT, add_completion=False)

SCHEMA = 1  # of --json
NOISE_RUNS = 20  # of each fingerprint, for what changes from start to start
NAMES = "an id or its beginning, a sweep, last, last~1, a recipe, a commit, a result file"


@app.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help=f"The run to compare with: {NAMES}.")],
    b: Annotated[
        str | None,
        typer.Argument(metavar="B", help="The run that is judged. Without it A is, by its past."),
    ] = None,
    margin: Annotated[
        str | None,
        typer.Option(
            metavar="PERCENT",
            help='"Same" means within this, for all metrics. (default: 5% throughput, 10% latency)',
        ),
    ] = None,
    every_metric: Annotated[bool, typer.Option("--all", help="Show every metric.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    history: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The history. (default: $ATOM_HISTORY, else ~/.local/share/atom/history.db)",
        ),
    ] = None,
) -> None:
    """Compare two runs, recipes, commits or files, or one run with its past.

    The exit code is 3 if B is worse than A.
    """
    from atom.bench.history import History

    wide = None if margin is None else parse_margin(margin)
    with History(history) as store:
        runs = store.resolve(a)
        if b is None:
            code = _against_the_past(store, runs, as_json)
        else:
            code = _against(store, runs, store.resolve(b), wide, every_metric, as_json)
    raise typer.Exit(code)


def parse_margin(text: str) -> float:
    """`3%`, `3` or `0.03` -> 0.03; raises `BenchError` outside 0.1 % to 50 %."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)\s*(%?)", text.strip())
    value = float(match[1]) if match else -1.0
    share = value / 100 if match and (match[2] or value >= 1) else value
    if not 0.001 <= share <= 0.5:
        raise BenchError(f"--margin {text}: write a percentage from 0.1% to 50%, e.g. 3%")
    return share


def _against(
    store: History,
    a: Sequence[RunResult],
    b: Sequence[RunResult],
    margin: float | None,
    every_metric: bool,
    as_json: bool,
) -> int:
    from atom.bench.compare.picture import print_comparison, print_sweep
    from atom.bench.compare.sweeps import compare_sweeps
    from atom.cli.bench_traces import of_comparison, print_told

    if [run.run_id for run in a] == [run.run_id for run in b]:
        raise BenchError("A and B are the same run; atom bench list shows others")
    histories = {run.fingerprint: _like(store, run) for run in a}
    found = compare_sweeps(a, b, margin=margin, histories=histories)
    told = of_comparison(found)
    if as_json:
        traces = [{"point": point, "lines": lines} for point, lines in told]
        print_json({"schema": SCHEMA, **_plain(found), "traces": traces})
    elif len(found.points) == 1 and not found.only_a and not found.only_b:
        out = console()
        only = found.points[0]
        print_comparison(out, only, every_metric=every_metric)
        marked = {only.a.run_id: "A", only.b.run_id: "B"}
        _print_past(store, next(r for r in a if r.run_id == only.a.run_id), only.primary, marked)
    else:
        print_sweep(console(), found)
    if not as_json:
        print_told(console(), told)
    return REGRESSION if found.verdict == "worse" else 0


def _against_the_past(store: History, runs: Sequence[RunResult], as_json: bool) -> int:
    from atom.bench.compare import gate_all
    from atom.bench.compare.facts import point
    from atom.bench.compare.picture import print_gate
    from atom.bench.compare.rules import throughput_name

    reports = gate_all([(run, store.find(fingerprint=run.fingerprint)) for run in runs])
    if as_json:
        changes = [change for run in runs for _, found in _trends(store, run) for change in found]
        print_json(
            {
                "schema": SCHEMA,
                "gates": [report.as_json() for report in reports],
                "changes": [_plain(change) for change in changes],
            }
        )
    else:
        out = console()
        for run, report in zip(runs, reports, strict=True):
            out.print(f"{run.name} {point(run)}  {run.run_id}", style="bold", markup=False)
            print_gate(out, report)
            _print_past(store, run, throughput_name(run), {run.run_id: "A"})
    return REGRESSION if any(report.regressed for report in reports) else 0


def _like(store: History, run: RunResult) -> list[RunResult]:
    from atom.bench.compare.gate import COUNTED

    if not run.fingerprint:
        return []
    same = store.find(fingerprint=run.fingerprint, limit=NOISE_RUNS)
    return [each for each in same if each.status in COUNTED]


def _trends(store: History, run: RunResult) -> list[tuple[Series, list[ChangePoint]]]:
    """The run's headline metrics over all runs like it."""
    from atom.bench.compare import changepoints, series
    from atom.bench.compare.rules import throughput_name

    if not run.fingerprint:
        return []
    same = store.find(fingerprint=run.fingerprint)
    columns = [
        series(same, name) for name in (throughput_name(run), "mean_ttft_ms", "mean_tpot_ms")
    ]
    return [(column, changepoints(column)) for column in columns]


def _print_past(store: History, run: RunResult, primary: str, marked: dict[str, str]) -> None:
    from atom.bench.compare.picture import print_changes, print_history

    trends = _trends(store, run)
    for column, _ in trends:
        if column.metric == primary:
            print_history(console(), column, marked)
    print_changes(console(), [change for _, changes in trends for change in changes])


def _plain(value: Any) -> dict[str, Any]:
    import msgspec

    built: dict[str, Any] = msgspec.to_builtins(value)
    return built
