"""`atom eval`: without a subcommand it evaluates; each part is imported when called."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from atom.cli.flags import CONTEXT
from atom.cli.lazy import load

# Name -> (module with an `app` that has this command, one line for the help).
SUBCOMMANDS: dict[str, tuple[str, str]] = {
    "tasks": ("atom.cli.eval_tasks", "List the tasks: bundled, and lm-eval's."),
    "list": ("atom.cli.eval_show", "List the evaluations of the history."),
    "show": ("atom.cli.eval_show", "Show one evaluation, sample by sample."),
    "compare": ("atom.cli.eval_show", "Compare two evaluations with a paired test."),
}
RUN = ("atom.cli.eval_run", "run")
# `atom eval --agree REF` measures something else with flags of its own.
AGREE = ("atom.cli.eval_agree", "agree")
AGREE_FLAG = "--agree"


class EvalGroup(TyperGroup):
    """`atom eval TASK... --flags` is `run`; `--agree` makes it `agree`; the rest has its name."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or args[0] not in SUBCOMMANDS:
            agrees = any(arg == AGREE_FLAG or arg.startswith(f"{AGREE_FLAG}=") for arg in args)
            args = [AGREE[1] if agrees else RUN[1], *args]
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0]
        places = {RUN[1]: RUN, AGREE[1]: AGREE, **SUBCOMMANDS}
        command = load(places[name][0], name)
        command.name = name if name in SUBCOMMANDS else ""
        return command.name, command, args[1:]


app = typer.Typer(cls=EvalGroup, context_settings=CONTEXT, add_completion=False)


@app.callback()
def _root() -> None:
    pass
