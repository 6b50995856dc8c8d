"""`atom bench [RECIPE]`: read what was asked, run it, print what came of it."""

from __future__ import annotations

import importlib
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atom.cli.common import console, print_json
from atom.cli.flags import SettingsCommand, context_for, with_tool
from atom.config import familiar, resolve_tool
from atom.config.fields import tool_settings
from atom.errors import ConfigError
from atom.utils.terminal import interruptible

if TYPE_CHECKING:
    from rich.console import Console

    from atom.bench.live import PlainDisplay
    from atom.bench.outcome import Report
    from atom.bench.target import Request

TOOL = "bench"
CONTEXT = context_for(tool_settings(TOOL).values())

app = typer.Typer(context_settings=CONTEXT, add_completion=False)


class BenchCommand(SettingsCommand):
    """Knows the flags of other benchmarks: they mean one of ours, or are refused by name."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, familiar.translate(args))

    def format_usage(self, ctx: Any, formatter: Any) -> None:
        """The command has no name of its own within `atom bench`."""
        formatter.write_usage(ctx.command_path.strip(), " ".join(self.collect_usage_pieces(ctx)))

    @staticmethod
    def refusal(name: str) -> str | None:
        return familiar.refusal(name)


@app.command(cls=BenchCommand)
@with_tool(TOOL)
def run(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE",
            help="A recipe (.toml): its server is started, measured and stopped. Without one, or "
            "with --base-url, a running server is measured.",
            show_default=False,
        ),
    ] = None,
    history: Annotated[
        Path | None,
        typer.Option(
            "--history", help="The run history (default: ATOM_HISTORY, else one per user)."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON on stdout, the rest on stderr.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress; the result and what went wrong.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print the plan, the first prompts and lengths; send none."),
    ] = False,
    *,
    flags: dict[str, Any],
) -> None:
    """Benchmark a server; keep, show and compare the results.

    With nothing given: the server on http://127.0.0.1:8000 with the model it has, 16 requests in
    flight, prompts of 1024 random tokens, 128 tokens of output, five repeats.

    The results are kept. Subcommands read them: atom bench list, show, compare, export, import,
    each with its own --help; atom dashboard draws them.
    """
    request = _request(recipe, flags, history)
    if dry_run:
        for line in importlib.import_module("atom.bench.plan").lines(request):
            typer.echo(line)
        return
    report = _measure(request, quiet)
    _print(report, request, as_json, quiet)
    raise typer.Exit(report.exit_code())


def _request(recipe: str | None, flags: dict[str, Any], history: Path | None) -> Request:
    target = importlib.import_module("atom.bench.target")
    settings = importlib.import_module("atom.bench.settings")
    path = _recipe_path(recipe)
    resolved = resolve_tool(TOOL, path, os.environ, flags)
    request: Request = target.Request(
        settings=settings.read(resolved), recipe=path, history=history
    )
    return request


def _recipe_path(recipe: str | None) -> Path | None:
    if recipe is None:
        return None
    if not recipe.endswith(".toml"):
        subcommands = importlib.import_module("atom.cli.bench").SUBCOMMANDS
        way = (
            f"atom bench {recipe} comes before all flags"
            if recipe in subcommands
            else f"to name the model of a running server: --model {recipe}"
        )
        raise ConfigError(f"{recipe} is no recipe (.toml); {way}")
    return Path(recipe)


def _measure(request: Request, quiet: bool) -> Report:
    live = importlib.import_module("atom.bench.live")
    campaign = importlib.import_module("atom.bench.campaign")
    out = console(stderr=True)
    kind = live.PlainDisplay
    if quiet:
        kind = live.QuietDisplay
    elif out.is_terminal and not out.is_dumb_terminal:
        kind = live.LiveDisplay
    stop = threading.Event()
    display: PlainDisplay
    with kind(out) as display:
        one = campaign.Campaign(request, display, stop)
        report: Report = interruptible(
            one.run, stop, lambda text: display.say(text, important=True), "what was measured"
        )
    return report


def _print(report: Report, request: Request, as_json: bool, quiet: bool) -> None:
    """The result on stdout; under --json the tables go to stderr, if anywhere."""
    told = importlib.import_module("atom.cli.bench_traces").of_gate(report.traced)
    if not (as_json and quiet):
        _tables(console(stderr=as_json), report)
        importlib.import_module("atom.cli.bench_traces").print_told(console(stderr=as_json), told)
    if as_json:
        print_json(report.as_json(dict(told)))
    err = console(stderr=True)
    for path in report.files:
        if not quiet:
            err.print(f"result file {path}", style="dim", markup=False)


def _tables(out: Console, report: Report) -> None:
    printer = importlib.import_module("atom.bench.report")
    if not report.runs:
        pass
    elif report.search is not None:
        integer = report.runs[0].load.get("concurrency") is not None
        printer.print_search(out, report.search, integer=integer)
    elif len(report.runs) > 1:
        printer.print_sweep(out, report.runs)
    else:
        printer.print_run(out, report.runs[0])
    for line in report.last_words():
        out.print(line, markup=False)
