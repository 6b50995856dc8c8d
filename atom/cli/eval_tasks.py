"""`atom eval tasks`: which tasks there are, bundled and lm-eval's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atom.cli.common import add_row, console, print_json, table
from atom.cli.flags import CONTEXT

if TYPE_CHECKING:
    from atom.eval.tasks import TaskInfo

app = typer.Typer(context_settings=CONTEXT, add_completion=False)

LISTED = 40  # lines, without --limit
SCHEMA = 1  # of --json
WIDE = 104  # columns, from which on the licences are shown


@app.command("tasks")
def tasks(
    pattern: Annotated[
        str | None,
        typer.Argument(help="Part of a name, or with * and ?; without it: those that need no net."),
    ] = None,
    include_path: Annotated[
        Path | None,
        typer.Option("--include-path", metavar="DIR", help="Your own task YAMLs, too."),
    ] = None,
    limit: Annotated[
        int, typer.Option(help="At most so many of lm-eval's (0: all).", min=0)
    ] = LISTED,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, all of them.")] = False,
) -> None:
    """List the tasks that `atom eval` knows.

    Bundled ones come with their data and need no network. Any other name of lm-eval's works when
    its data can be fetched or is in the Hugging Face cache.
    """
    from atom.eval.errors import EvalError
    from atom.eval.tasks import list_tasks

    found = list_tasks(pattern, include_path=include_path)
    if not found:
        raise EvalError(
            f"no task's name has {pattern!r} in it; atom eval tasks 'gsm*' is a pattern"
        )
    if as_json:
        rows = [_as_json(info) for info in found]
        print_json({"format": "atom-eval-tasks", "schema_version": SCHEMA, "tasks": rows})
        return
    _print(found, pattern, limit)


def _as_json(info: TaskInfo) -> dict[str, object]:
    return {name: value for name, value in info._asdict().items() if value not in (None, "", ())}


def _print(found: list[TaskInfo], pattern: str | None, limit: int) -> None:
    out = console()
    near = [info for info in found if info.source != "lm-eval"]
    far = [info for info in found if info.source == "lm-eval"]
    if near:
        wide = out.width >= WIDE
        shown = table("task", "rows", "shots", "kind", *(["licence of the data"] if wide else []))
        for info in near:
            cells = (_name(info), _count(info), _shots(info), _kind(info))
            add_row(shown, *cells, *([info.licence] if wide else []))
        out.print(shown)
    if far:
        if near:
            out.print()
        shown = table("lm-eval's task", "kind", "data set")
        for info in far[: limit or None]:
            add_row(shown, info.name, _kind(info), _dataset(info))
        out.print(shown)
        if limit and len(far) > limit:
            out.print(f"... and {len(far) - limit:,} more (--limit 0)")
    if pattern is None:
        out.print("\nThese need no network. atom eval tasks PATTERN searches lm-eval's names, too.")


def _name(info: TaskInfo) -> str:
    return f"{info.name} ({', '.join(info.aliases)})" if info.aliases else info.name


def _count(info: TaskInfo) -> str:
    return "" if info.num_documents is None else f"{info.num_documents:,}"


def _shots(info: TaskInfo) -> str:
    return "" if info.num_fewshot is None else str(info.num_fewshot)


def _dataset(info: TaskInfo) -> str:
    return f"{info.dataset} (bundled)" if info.bundled_rows else info.dataset


def _kind(info: TaskInfo) -> str:
    if info.kind == "task":
        return info.output_type.replace("_", " ") or "task"
    return f"{info.kind} of {len(info.members)}"
