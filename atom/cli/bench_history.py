"""`atom bench list | show | export | import`: the run history on the command line."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atom.bench.errors import BenchError
from atom.cli.common import console, print_json
from atom.cli.flags import CONTEXT

if TYPE_CHECKING:
    from atom.bench.history import History
    from atom.bench.types import RunResult

app = typer.Typer(context_settings=CONTEXT, add_completion=False)

SHOWN = 20  # of `list`, without --limit

HistoryFile = Annotated[
    Path | None,
    typer.Option(
        "--history",
        metavar="FILE",
        help="The history. (default: $ATOM_HISTORY, else ~/.local/share/atom/history.db)",
    ),
]
Kind = Annotated[str | None, typer.Option(help="bench or eval.", metavar="KIND")]
Model = Annotated[
    str | None, typer.Option(help="Only this model, in full or its last part.", metavar="NAME")
]
Recipe = Annotated[
    str | None, typer.Option(help="Only this recipe: name, file or hash.", metavar="RECIPE")
]
Commit = Annotated[
    str | None, typer.Option(help="Only this commit of the server; its beginning.", metavar="SHA")
]
Fingerprint = Annotated[
    str | None, typer.Option(help="Only runs of this experiment.", metavar="HEX")
]
Since = Annotated[str | None, typer.Option(help="Not older: 2026-11-21, 7d, 12h.", metavar="WHEN")]
Limit = Annotated[int | None, typer.Option(help="At most so many, the newest.", min=1)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def list_runs(
    history: HistoryFile = None,
    kind: Kind = None,
    model: Model = None,
    recipe: Recipe = None,
    commit: Commit = None,
    fingerprint: Fingerprint = None,
    since: Since = None,
    limit: Annotated[
        int | None, typer.Option(help=f"At most so many (default {SHOWN}; 0: all).", min=0)
    ] = None,
    as_json: Json = False,
) -> None:
    """List the runs of the history, newest first.

    The beginning of an id is enough to name a run, as are last, last~1, a recipe or a commit.
    """
    from atom.bench.history.show import document_row, print_list

    most = SHOWN if limit is None else limit or None
    with _open(history) as store:
        runs = store.find(
            kind=kind,
            model=model,
            recipe=recipe,
            commit=commit,
            fingerprint=fingerprint,
            since=since,
            limit=most,
        )
        if as_json:
            print_json([document_row(run) for run in runs])
            return
        if not runs:
            there = store.count()
            _say(
                f"none of the {there:,} runs in {store.path} is like that"
                if there
                else f"no runs in {store.path} yet: atom bench adds them, atom bench import takes "
                "in result files"
            )
            return
        print_list(console(), runs, store.ids(""))
        if most is not None and len(runs) == most and store.count() > most:
            _say(f"the newest {most} of {store.count():,} runs; --limit 0 lists all")


@app.command()
def show(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN", help="An id or its beginning, last, last~1, a recipe, commit or file."
        ),
    ] = "last",
    history: HistoryFile = None,
    records: Annotated[
        bool, typer.Option("--records", help="With --json: the samples, too.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show one run whole: metrics with intervals, repeats, and where it comes from."""
    from atom.bench.history.export import load
    from atom.bench.history.show import print_run, print_several

    if records and not as_json:
        raise BenchError("--records needs --json: samples are shown as JSON only")
    with _open(history) as store:
        runs = store.resolve(run)
        if as_json:
            from atom.bench.history.documents import Loaded, to_document

            stored = set(store.ids(""))
            whole = [
                next(iter(load(store, [r], records=records))) if r.run_id in stored else Loaded(r)
                for r in runs
            ]
            found = [to_document(*loaded) for loaded in whole]
            print_json(found[0] if len(found) == 1 else found)
            return
        out = console()
        if len(runs) == 1:
            print_run(out, runs[0])
        else:
            print_several(out, runs, store.ids(""))


@app.command()
def export(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN...]", help="Ids, last, recipes, commits. (default: all, or by options)"
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Where to. (default: stdout)"),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="json, jsonl, csv or xlsx. (default: by the file's ending, else json)",
        ),
    ] = None,
    records: Annotated[
        bool, typer.Option("--records", help="The samples, too (JSON and JSON lines).")
    ] = False,
    history: HistoryFile = None,
    kind: Kind = None,
    model: Model = None,
    recipe: Recipe = None,
    commit: Commit = None,
    fingerprint: Fingerprint = None,
    since: Since = None,
    limit: Limit = None,
) -> None:
    """Write runs as JSON, JSON lines, CSV or XLSX.

    JSON and JSON lines lose nothing and can be imported again; CSV has one row for each run.
    """
    from atom.bench.history import export as exports

    chosen = exports.format_of(output, form)
    filters = {
        "kind": kind,
        "model": model,
        "recipe": recipe,
        "commit": commit,
        "fingerprint": fingerprint,
        "since": since,
    }
    if records and chosen in ("csv", "xlsx"):
        raise BenchError(f"--records: {chosen} has no place for samples; use json or jsonl")
    if chosen == "xlsx" and output is None:
        raise BenchError("--format xlsx needs a file: -o FILE")
    if runs and (limit or any(filters.values())):
        raise BenchError("give runs or options that choose runs, not both")
    with _open(history) as store:
        found = (
            _named(store, runs)
            if runs
            else store.find(
                kind=kind,
                model=model,
                recipe=recipe,
                commit=commit,
                fingerprint=fingerprint,
                since=since,
                limit=limit,
            )
        )
        if not found:
            raise BenchError(f"no such run in {store.path}; atom bench list shows what there is")
        if output is None:
            exports.write_text(store, found, sys.stdout, chosen, records=records)
            return
        count = exports.export(store, found, output, chosen, records=records)
        _say(f"{output}: {count} run{'s' * (count != 1)}")


@app.command("import")
def import_files(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Result files.")],
    model: Annotated[
        str | None,
        typer.Option(help="The model of results that do not name theirs.", metavar="NAME"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be added; add nothing.")
    ] = False,
    history: HistoryFile = None,
    as_json: Json = False,
) -> None:
    """Take in result files: ours, ATOM's, vLLM's and SGLang's, lm-eval's, and data.js.

    What is there already is not added again. A bad file keeps no other out; the exit code is 2.
    """
    told = []
    with _open(history) as store:
        for path in files:
            told.append(_import(store, path, model, dry_run))
    if as_json:
        print_json(told)
    else:
        for each in told:
            _tell(each, dry_run)
    if any("error" in each for each in told):
        raise typer.Exit(BenchError.exit_code)


def _import(store: History, path: Path, model: str | None, dry_run: bool) -> dict[str, object]:
    from atom.bench.history.importers import read_results

    try:
        loaded = read_results(path, model=model)
    except BenchError as error:
        return {"file": str(path), "error": str(error)}
    added: list[str] = []
    there: list[str] = []
    for run, records, evaluated in loaded:
        fresh = not store.has(run) if dry_run else store.add(run, records, evaluated)
        (added if fresh else there).append(run.run_id)
    return {"file": str(path), "added": added, "already": there}


def _tell(told: dict[str, object], dry_run: bool) -> None:
    if "error" in told:
        sys.stderr.write(f"atom: error: {' '.join(str(told['error']).split())}\n")
        return
    added, there = told["added"], told["already"]
    assert isinstance(added, list)
    assert isinstance(there, list)
    would = "would be added" if dry_run else "added"
    parts = [f"{len(added)} run{'s' * (len(added) != 1)} {would}"]
    if there:
        parts.append(f"{len(there)} already there")
    typer.echo(f"{told['file']}: {', '.join(parts)}")


def _named(store: History, texts: Sequence[str]) -> list[RunResult]:
    """The stored runs of these names, each once."""

    def all_of() -> Iterator[RunResult]:
        stored = set(store.ids(""))
        for text in texts:
            for run in store.resolve(text):
                if run.run_id not in stored:
                    raise BenchError(f"{text} is a file: import it first, then export")
                yield run

    return list({run.run_id: run for run in all_of()}.values())


def _open(path: Path | None) -> History:
    from atom.bench.history import History

    return History(path)


def _say(text: str) -> None:
    """For people, beside the data on stdout."""
    sys.stderr.write(f"{text}\n")
