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
    *,
    flags: dict[str, Any],
) -> None:
    """Serve a model with an OpenAI-compatible API.

    Settings come from the recipe, then ATOM_* variables, then flags; the last one wins.
    """
    resolved = resolve_target(target, flags)
    print_changed(resolved)
    run = importlib.import_module("atom.server.run")
    raise typer.Exit(run.serve(resolved.config))


def print_changed(resolved: Resolved) -> None:
    """The settings that differ from their defaults, with their sources, on stderr."""
    from rich.text import Text

    out = console(stderr=True)
    out.print(f"atom {__version__}", style="bold")
    for key, value in changed(resolved.config).items():
        source = resolved.sources.get(key.partition(".")[2])
        out.print(Text(f"  {key} = {value}  "), Text(str(source or ""), style="dim"), sep="")
