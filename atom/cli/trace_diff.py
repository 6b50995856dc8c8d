"""`atom trace diff A B`: what got slower from one profile to another, and which kernel it is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atom.cli.common import console, print_json
from atom.cli.flags import CONTEXT
from atom.cli.trace_common import AsJson, Device, Kind, load_analysis
from atom.trace.errors import SLOWER, TraceError

if TYPE_CHECKING:
    from atom.trace.types import Analysis

app = typer.Typer(context_settings=CONTEXT, add_completion=False)

ROWS = 8


@app.command("diff")
def diff_command(
    a: Annotated[
        Path, typer.Argument(metavar="A", help="Before: a trace, or a folder of all its ranks.")
    ],
    b: Annotated[Path, typer.Argument(metavar="B", help="After: what is judged.")],
    kind: Kind = None,
    rows: Annotated[
        int, typer.Option("--rows", "-n", min=1, help="Kernels shown for each kind of step.")
    ] = ROWS,
    every_step: Annotated[
        bool, typer.Option("--all", help="Tables for every shape of step, not the costliest alone.")
    ] = False,
    capture_a: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A's trace of graph capture, if not beside it."),
    ] = None,
    capture_b: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="B's trace of graph capture, if not beside it."),
    ] = None,
    device: Device = "auto",
    fail_above: Annotated[
        str | None,
        typer.Option(
            metavar="PERCENT",
            help="Exit code 3 if any kind of step is slower by more than this, e.g. 5%.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare two traces: which steps, layers, modules and kernels take more time in B.

    Steps of equal kind and shape compare by their means. The rows of a table sum to the step's
    difference.
    """
    from atom.trace.diff import diff
    from atom.trace.types import STEP_KINDS
    from atom.trace.verdict import fails

    if kind is not None and kind not in STEP_KINDS:
        raise TraceError(f"--kind {kind}: one of {', '.join(STEP_KINDS)}")
    limit = None if fail_above is None else parse_share(fail_above)
    sides = [_load("A", a, capture_a, device), _load("B", b, capture_b, device)]
    found = diff(*sides, kind=kind)
    if as_json:
        from atom.trace.diff_json import as_json as plain

        print_json({"a": str(a), "b": str(b), **plain(found, limit)})
    else:
        from atom.cli.trace_diff_tables import print_diff

        print_diff(console(), found, rows=rows, every=every_step, limit=limit)
    if limit is not None and fails(found, limit):
        raise typer.Exit(SLOWER)


def parse_share(text: str) -> float:
    """`5%`, `5` or `0.05` -> 0.05; raises `TraceError` below 0 and from 1000%."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)\s*(%?)", text.strip())
    value = float(match[1]) if match else -1.0
    share = value / 100 if match and (match[2] or value >= 1) else value
    if not 0 <= share < 10:
        raise TraceError(f"--fail-above {text}: write a percentage, e.g. 5%")
    return share


def _load(letter: str, path: Path, capture: Path | None, device: str) -> Analysis:
    try:
        return load_analysis([path], capture, device)
    except TraceError as error:
        raise TraceError(f"{letter}: {error}") from error
