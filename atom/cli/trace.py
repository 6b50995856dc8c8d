"""`atom trace`: answers from profiler traces; each subcommand is imported when called."""

from __future__ import annotations

import importlib
from typing import Any

import typer
from typer.core import TyperGroup

from atom.cli.flags import CONTEXT

# Name -> (module with an `app` that has this command, one line for the help).
SUBCOMMANDS: dict[str, tuple[str, str]] = {
    "summary": ("atom.cli.trace_summary", "Steps, idle time, overlap and the top kernels."),
    "top": ("atom.cli.trace_summary", "The kernels, modules or layers that take most time."),
    "parse": ("atom.cli.trace_parse", "Write workbooks per layer and kernel, and a summary."),
    "diff": ("atom.cli.trace_diff", "What got slower from one trace to another."),
    "roofline": ("atom.cli.trace_roofline", "Bytes/s and FLOP/s against the device's ceilings."),
}


class TraceGroup(TyperGroup):
    """Imports a subcommand's module only when that subcommand is resolved."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0] if args else ""
        if name in SUBCOMMANDS:
            command: Any = typer.main.get_command(importlib.import_module(SUBCOMMANDS[name][0]).app)
            command = getattr(command, "commands", {}).get(name, command)
            command.name = name
            self.commands[name] = command
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=TraceGroup,
    help="Turn profiler traces into tables, workbooks and verdicts. A trace is Chrome JSON, plain, "
    "gzip or zstd, of our engine or of others.",
    no_args_is_help=True,
    context_settings=CONTEXT,
    add_completion=False,
)


@app.callback()
def _root() -> None:
    pass


def _stub() -> None:
    """Stands for a subcommand in `atom trace --help`; `TraceGroup` replaces it before a call."""
    raise AssertionError("a stub was called")


for _name, (_, _help) in SUBCOMMANDS.items():
    app.command(_name, help=_help)(_stub)
