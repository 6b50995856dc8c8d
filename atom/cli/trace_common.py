"""What the `atom trace` commands share: their arguments, and reading what these name."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from atom.trace.types import Analysis

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
