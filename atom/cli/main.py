"""The `atom` command: finds the subcommand, imports only it, turns errors into one line.

Nothing here imports torch; a subcommand's module is imported when it is called.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from atom._version import __version__
from atom.cli.flags import CONTEXT
from atom.cli.lazy import LazyGroup, list_in
from atom.config.fields import nearest
from atom.config.support import REFUSED_FLAGS
from atom.errors import AtomError

INTERNAL_ERROR = 70
INTERRUPTED = 130

# Name -> (module with an `app`, one line for `atom --help`).
COMMANDS: dict[str, tuple[str, str]] = {
    "serve": ("atom.cli.serve", "Serve a model with an OpenAI-compatible API."),
    "run": ("atom.cli.run", "Chat in the terminal, or get one answer."),
    "bench": ("atom.cli.bench", "Benchmark a server; keep, show and compare the results."),
    "eval": ("atom.cli.eval", "Measure a model's accuracy; keep, show and compare the results."),
    "dashboard": ("atom.cli.dashboard", "Build or serve the dashboard of the run history."),
    "profile": (
        "atom.cli.profile",
        "Record chosen steps of a model, or a running server under load.",
    ),
    "trace": ("atom.cli.trace", "Turn profiler traces into tables, workbooks and verdicts."),
    "doctor": ("atom.cli.doctor", "Show the machine, the kernels chosen on it and a memory plan."),
    "recipe": ("atom.cli.recipe", "Check and show recipes; list every setting."),
    "version": ("atom.cli.version", "Show the versions of atom and of what it stands on."),
}


class Commands(LazyGroup):
    places = COMMANDS


app = typer.Typer(
    cls=Commands,
    name="atom",
    help="Serve, measure and profile large language models from one recipe file.",
    no_args_is_help=True,
    context_settings=CONTEXT,
    pretty_exceptions_enable=False,
)


list_in(app, COMMANDS)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"atom {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


def main(argv: Sequence[str] | None = None) -> int:
    """Run `atom` with `argv` (default: the process's); returns the exit code."""
    try:
        code = typer.main.get_command(app).main(
            args=None if argv is None else list(argv), prog_name="atom", standalone_mode=False
        )
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except BrokenPipeError:
        # Whoever read our output has seen enough; the interpreter must not complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except Exception as error:
        if os.environ.get("ATOM_DEBUG", "0") not in ("", "0"):
            raise
        message, code = describe_error(error)
        if message:
            sys.stderr.write(f"atom: error: {message}\n")
        return code


def describe_error(error: Exception) -> tuple[str, int]:
    """One line for a person and the exit code."""
    if isinstance(error, AtomError):
        return " ".join(str(error).split()), error.exit_code
    # Typer's usage errors; their class moved between its versions, their shape did not.
    if hasattr(error, "format_message"):
        if type(error).__name__ == "NoArgsIsHelpError":  # the help has been printed already
            return "", 2
        return _usage_message(error), getattr(error, "exit_code", 2)
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return (
        f"internal error: {text} (ATOM_DEBUG=1 shows where; please report it)",
        INTERNAL_ERROR,
    )


def _usage_message(error: Any) -> str:
    option = getattr(error, "option_name", None)
    context: Any = getattr(error, "ctx", None)
    where = context.command_path.strip() if context is not None else "atom"
    if option is None or context is None or not hasattr(error, "possibilities"):
        message = " ".join(str(error.format_message()).split()).rstrip(".")
        # Some pairs of Typer and Click both suggest the command.
        head, suggests, tail = message.partition("Did you mean")
        message = head + suggests + tail.partition("?")[0] + "?" if suggests else message
        return f"{message[:1].lower()}{message[1:]} (see {where} --help)"
    name = option.lstrip("-").replace("_", "-")
    refused = getattr(context.command, "refusal", REFUSED_FLAGS.get)(name)
    if refused is not None:
        return f"{option} is refused: {refused}"
    known = [o for p in context.command.params for o in (*p.opts, *p.secondary_opts)]
    return f"unknown option {option}{nearest('--' + name, known)}; see {where} --help"
