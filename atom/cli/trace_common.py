"""What the `atom trace` commands share: their arguments, and reading what these name."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from atom.trace.types import Analysis, RankModel

Paths = Annotated[
    list[Path],
    typer.Argument(
        metavar="PATHS",
        help="Traces (*.json, *.json.gz, *.json.zst), or folders: all ranks below them.",
        show_default=False,
    ),
]
CaptureTrace = Annotated[
    Path | None,
    typer.Option(
        "--capture-trace",
        metavar="FILE",
        help="The trace of graph capture, if it is not beside the trace.",
        show_default=False,
    ),
]
Device = Annotated[
    str,
    typer.Option(
        metavar="auto|gpu|cpu",
        help="Whose work is analysed; cpu takes operators' own time, for runs without a GPU.",
    ),
]
Kind = Annotated[
    str | None,
    typer.Option(
        metavar="KIND",
        help="Only steps of this kind: prefill, decode, mixed, draft, step. (default: all)",
        show_default=False,
    ),
]
Rank = Annotated[
    int | None,
    typer.Option(metavar="N", help="Of this rank. (default: the lowest)", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def load_analysis(
    paths: Sequence[Path], capture: Path | None = None, device: str = "auto"
) -> Analysis:
    """Read and explain the traces; their warnings go to stderr, once, and need no second print.

    Raises:
        TraceError: one line for the user, see `atom.trace.analysis.load`.
    """
    from atom.cli.common import console
    from atom.trace.analysis import load

    # Seconds for a gigabyte: whoever waits at a terminal sees that something is done.
    with console(stderr=True).status("reading traces") if sys.stderr.isatty() else nullcontext():
        analysis = load(paths, capture, device)
    for warning in analysis.warnings:
        sys.stderr.write(f"atom: warning: {warning}\n")
    return analysis


def check_kind(model: RankModel, kind: str | None) -> str | None:
    """`kind`, if there are such steps; raises `TraceError` with those that there are."""
    from atom.trace.choice import what_there_is
    from atom.trace.errors import TraceError

    if kind is not None and not any(step.counts and step.kind == kind for step in model.steps):
        raise TraceError(f"--kind {kind}: no such steps; {what_there_is(model.steps)}")
    return kind
