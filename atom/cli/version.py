"""`atom version`: what is installed, read from package metadata, nothing imported."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Annotated

import typer

from atom._version import __version__
from atom.cli.common import print_json
from atom.cli.flags import CONTEXT

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "gguf", "numpy", "fastapi")

app = typer.Typer(context_settings=CONTEXT, add_completion=False)


def versions() -> dict[str, str]:
    """Name -> version; a package that is missing is said to be."""
    found = {"atom": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


@app.command()
def version(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the versions of atom and of what it stands on."""
    found = versions()
    if as_json:
        print_json(found)
        return
    for name, number in found.items():
        typer.echo(f"{name:<13} {number}")
