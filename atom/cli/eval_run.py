"""`atom eval TASK...`: read what was asked, run it, print what came of it."""

from __future__ import annotations

import importlib
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atom.cli.common import console, print_json
from atom.cli.flags import SettingsCommand, context_for, with_tool
from atom.config import familiar_eval, resolve_tool
from atom.config.fields import tool_settings
from atom.errors import ConfigError
from atom.utils.terminal import interruptible

if TYPE_CHECKING:
    from atom.eval.live import PlainDisplay
    from atom.eval.session import Report, Request

TOOL = "eval"
CONTEXT = context_for(tool_settings(TOOL).values())

app = typer.Typer(context_settings=CONTEXT, add_completion=False)


class EvalCommand(SettingsCommand):
    """Knows lm-eval's flags: they mean one of ours, or are refused by name."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, familiar_eval.translate(args))

    def format_usage(self, ctx: Any, formatter: Any) -> None:
        """The command has no name of its own within `atom eval`."""
        formatter.write_usage(ctx.command_path.strip(), " ".join(self.collect_usage_pieces(ctx)))

    @staticmethod
    def refusal(name: str) -> str | None:
        return familiar_eval.refusal(name)


@app.command(cls=EvalCommand)
@with_tool(TOOL)
def run(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TASK...",
            help="Tasks by lm-eval's names, e.g. gsm8k arc_easy. Without one, those of the "
            "recipe's tables, eval.gsm8k and its like.",
            show_default=False,
        ),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            "--recipe",
            help="A recipe (.toml): its server is started, evaluated and stopped. With --base-url "
            "a running server is held against its thresholds.",
        ),
    ] = None,
    history: Annotated[
        Path | None,
        typer.Option(
            "--history", help="The run history (default: ATOM_HISTORY, else one per user)."
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on with the last evaluation that was broken off; asks the rest."
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON on stdout, the rest on stderr.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress; the result and what went wrong.")
    ] = False,
    *,
    flags: dict[str, Any],
) -> None:
    """Measure a model's accuracy; keep, show and compare the results.

    atom eval gsm8k asks the server on http://127.0.0.1:8000, with the model it has. Bundled tasks
    need no network: gsm8k, arc_easy, lambada, copa, blimp_subset. A score below its threshold is
    exit code 3.

    --chat asks the chat API. --agree REF compares two models token by token instead (see atom eval
    --agree REF --help). Subcommands: atom eval tasks, list, show, compare.
    """
    request = _request(list(names or ()), recipe, flags, history, resume)
    report = _evaluate(request, quiet)
    if not (as_json and quiet):
        importlib.import_module("atom.eval.report").print_report(console(stderr=as_json), report)
    if as_json:
        print_json(report.as_json())
    raise typer.Exit(report.exit_code())


def _request(
    tasks: list[str], recipe: Path | None, flags: dict[str, Any], history: Path | None, resume: bool
) -> Request:
    session = importlib.import_module("atom.eval.session")
    settings = importlib.import_module("atom.eval.settings")
    resuming = importlib.import_module("atom.eval.resume")
    journal = importlib.import_module("atom.eval.journal")
    tasks, recipe = _recipe_of(tasks, recipe)
    if resume and not tasks and recipe is None:
        last = resuming.last_command(journal.journal_folder(history))
        tasks = last.tasks
        recipe = None if last.recipe is None else Path(last.recipe)
        flags = {**last.flags, **flags}
    resolved = resolve_tool(TOOL, recipe, os.environ, flags)
    request: Request = session.Request(
        settings=settings.read(resolved, tasks),
        recipe=recipe,
        history=history,
        resume=resume,
        command=resuming.command_of(tasks, recipe, flags),
    )
    return request


def _recipe_of(tasks: list[str], recipe: Path | None) -> tuple[list[str], Path | None]:
    """`atom eval R.toml` is meant as --recipe, as with the other commands."""
    files = [task for task in tasks if task.endswith(".toml")]
    if not files:
        return tasks, recipe
    if recipe is not None or len(files) > 1:
        raise ConfigError(f"several recipes: {', '.join([*files, *filter(None, [str(recipe)])])}")
    return [task for task in tasks if task not in files], Path(files[0])


def _evaluate(request: Request, quiet: bool) -> Report:
    live = importlib.import_module("atom.eval.live")
    session = importlib.import_module("atom.eval.session")
    out = console(stderr=True)
    kind = live.PlainDisplay
    if quiet:
        kind = live.QuietDisplay
    elif out.is_terminal and not out.is_dumb_terminal:
        kind = live.LiveDisplay
    stop = threading.Event()
    display: PlainDisplay
    with kind(out) as display:
        one = session.Evaluation(request, display, stop)
        report: Report = interruptible(
            one.run, stop, lambda text: display.say(text, important=True), "what was answered"
        )
    return report
