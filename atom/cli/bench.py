"""`atom bench`: without a subcommand it runs the benchmark; each part is imported when called."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from atom.cli.flags import CONTEXT
from atom.cli.lazy import load

# Name -> (module with an `app` that has this command, one line for the help).
SUBCOMMANDS: dict[str, tuple[str, str]] = {
    "list": ("atom.cli.bench_history", "List the runs of the history."),
    "show": ("atom.cli.bench_history", "Show one run whole."),
    "export": ("atom.cli.bench_history", "Write runs as JSON, CSV or XLSX."),
    "import": ("atom.cli.bench_history", "Take in result files: ours, ATOM's, vLLM's, lm-eval's."),
    "compare": ("atom.cli.bench_compare", "Compare two runs, recipes, commits or files."),
}
RUN = ("atom.cli.bench_run", "run")


class BenchGroup(TyperGroup):
    """`atom bench [RECIPE] --flags` is `run`; `atom bench list` and its like are subcommands."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or args[0] not in SUBCOMMANDS:
            args = [RUN[1], *args]
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0]
        command = load(SUBCOMMANDS[name][0] if name in SUBCOMMANDS else RUN[0], name)
        command.name = name if name in SUBCOMMANDS else ""
        return command.name, command, args[1:]


app = typer.Typer(cls=BenchGroup, context_settings=CONTEXT, add_completion=False)


@app.callback()
def _root() -> None:
    pass
