"""`atom profile`: record chosen steps here, or a running server under load; say what is in them."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atom.cli.common import console, print_json, resolve_target
from atom.cli.flags import CONTEXT, SettingsCommand, with_settings

if TYPE_CHECKING:
    from rich.console import Console

    from atom.profile.offline import Ask

app = typer.Typer(context_settings=CONTEXT, add_completion=False)

SECTIONS = ("model", "engine", "scheduler", "compile", "parallel")
INTERRUPTED = 130
MOST_STEPS = 1000
STEPS_PANEL = "what is recorded: the engine in this process"
URL_PANEL = "what is recorded: a running server"


class Lines:
    """Progress on stderr, a line each."""

    def __init__(self, out: Console, quiet: bool) -> None:
        self._out = out
        self._quiet = quiet

    def say(self, text: str, *, important: bool = False) -> None:
        if important or not self._quiet:
            self._out.print(text, style="" if important else "dim", markup=False)


@app.command(cls=SettingsCommand)
@with_settings(*SECTIONS)
def profile(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE|MODEL",
            help="As for atom serve; nothing: the embedded model. Not with --url.",
            show_default=False,
        ),
    ] = None,
    prefill: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NxTOKENS",
            help="Steps of N prompts of so many tokens, e.g. 1x512,4x2048.",
            show_default=False,
            rich_help_panel=STEPS_PANEL,
        ),
    ] = None,
    decode: Annotated[
        list[str] | None,
        typer.Option(
            metavar="N[@CONTEXT]",
            help="Steps of N sequences, each a token further, e.g. 1,32,128 or 32@4096.",
            show_default=False,
            rich_help_panel=STEPS_PANEL,
        ),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="INT",
            help="Tokens that a decode's sequences hold in the first recorded step. "
            "(default: 1024, or what fits)",
            show_default=False,
            rich_help_panel=STEPS_PANEL,
        ),
    ] = None,
    steps: Annotated[
        int,
        typer.Option(
            min=1,
            max=MOST_STEPS,
            metavar="INT",
            help="Recorded steps of each shape; a trace holds those of one shape.",
            rich_help_panel=STEPS_PANEL,
        ),
    ] = 8,
    warmup: Annotated[
        int,
        typer.Option(
            min=0,
            max=MOST_STEPS,
            metavar="INT",
            help="Steps of each shape before they are recorded.",
            rich_help_panel=STEPS_PANEL,
        ),
    ] = 2,
    mark_trace: Annotated[
        bool,
        typer.Option(
            help="Name the model's modules, and record the capture of graphs.",
            rich_help_panel=STEPS_PANEL,
        ),
    ] = True,
    more: Annotated[
        bool,
        typer.Option(
            "--more",
            help="Record shapes, Python stacks and memory, too: slower steps, traces several times "
            "as large.",
            rich_help_panel=STEPS_PANEL,
        ),
    ] = False,
    output_dir: Annotated[
        Path | None,
        typer.Option(
            "--output-dir",
            "-o",
            metavar="DIR",
            help="Where rank_N/*.pt.trace.json.gz and profile.json go. "
            "(default: profile-MODEL-TIME here)",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print profile.json on stdout.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress; the result and what went wrong.")
    ] = False,
    *,
    flags: dict[str, Any],
) -> None:
    """Record chosen steps of a model, or a running server under load, with torch's profiler.

    Without --url the model is loaded in this process, and each trace holds the steps of one shape
    and nothing else. What is in the traces is told at the end; atom trace tells more.
    """
    offline = importlib.import_module("atom.profile.offline")
    shapes = importlib.import_module("atom.profile.shapes")
    resolved = resolve_target(target, flags)
    ask: Ask = offline.Ask(
        config=resolved.config,
        prefill=prefill or (),
        decode=decode or (),
        context=context,
        counts=shapes.Counts(steps, warmup),
        output_dir=output_dir,
        mark_trace=mark_trace,
        more=more,
        recipe=Path(target) if target is not None and target.endswith(".toml") else None,
    )
    display = Lines(console(stderr=True), quiet)
    made = offline.run(ask, display)
    tables = importlib.import_module("atom.cli.profile_tables")
    if as_json:
        print_json(made.document)
    else:
        tables.print_profile(console(), made)
    raise typer.Exit(INTERRUPTED if made.interrupted else 0)
