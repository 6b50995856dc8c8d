"""`atom serve`: resolve, say what was resolved, hand over to the server."""

from __future__ import annotations

import importlib
from typing import Annotated, Any

import typer

from atom._version import __version__
from atom.cli.common import console, resolve_target
from atom.cli.flags import CONTEXT, SettingsCommand, with_settings
from atom.config import Resolved
from atom.config.schema import SECTIONS
from atom.config.serial import changed

app = typer.Typer(context_settings=CONTEXT, add_completion=False)


@app.command(cls=SettingsCommand)
@with_settings(*SECTIONS)
def serve(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE|MODEL",
            help="A recipe (.toml), a Hugging Face id, a directory, a .gguf file; "
            "nothing: the embedded SmolLM2-135M-Instruct.",
        ),
    ] = None,
    tiny: Annotated[
        bool,
        typer.Option(
            "--tiny",
            help="Rehearse: a small random model of the same architecture, made on the spot.",
        ),
    ] = False,
    *,
    flags: dict[str, Any],
) -> None:
    """Serve a model with an OpenAI-compatible API.

    Settings come from the recipe, then ATOM_* variables, then flags; the last one wins.
    """
    resolved = resolve_target(target, flags)
    if tiny:
        _rehearse(resolved)
    print_changed(resolved)
    raise typer.Exit(_run(resolved))


def _run(resolved: Resolved) -> int:
    run = importlib.import_module("atom.server.run")
    code: int = run.serve(resolved.config)
    return code


def _rehearse(resolved: Resolved) -> None:
    """Serve a tiny model in the place of the one that is named; it goes with the server."""
    import sys
    import tempfile
    from pathlib import Path

    from atom.engine.rehearsal import rehearse

    with tempfile.TemporaryDirectory(prefix="atom-tiny-") as folder:
        rehearsal = rehearse(resolved, Path(folder))
        print_changed(rehearsal.resolved)
        for note in rehearsal.notes:
            sys.stderr.write(f"rehearsal: {note}\n")
        raise typer.Exit(_run(rehearsal.resolved))


def print_changed(resolved: Resolved) -> None:
    """The settings that differ from their defaults, with their sources, on stderr."""
    from rich.text import Text

    out = console(stderr=True)
    out.print(f"atom {__version__}", style="bold")
    for key, value in changed(resolved.config).items():
        source = resolved.sources.get(key.partition(".")[2])
        out.print(Text(f"  {key} = {value}  "), Text(str(source or ""), style="dim"), sep="")
