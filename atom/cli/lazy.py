"""Commands whose modules are imported when they are called, and not before."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, ClassVar

import typer
from typer.core import TyperGroup

Places = Mapping[str, tuple[str, str]]  # name -> (module with an `app`, one line for the help)


def load(module: str, name: str) -> Any:
    """The command `name` of the module's app, or the app itself where it is one command."""
    command: Any = typer.main.get_command(importlib.import_module(module).app)
    return getattr(command, "commands", {}).get(name, command)


class LazyGroup(TyperGroup):
    """Imports a subcommand's module only when that subcommand is resolved."""

    places: ClassVar[Places] = {}

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0] if args else ""
        if name in self.places:
            command = load(self.places[name][0], name)
            command.name = name
            self.commands[name] = command
        return super().resolve_command(ctx, args)


def list_in(app: typer.Typer, places: Places) -> None:
    """Let the app's help list what `LazyGroup` will find."""
    for name, (_, sentence) in places.items():
        app.command(name, help=sentence)(_stub)


def _stub() -> None:
    """Stands for a subcommand in the help; `LazyGroup` replaces it before a call."""
    raise AssertionError("a stub was called")
