"""`atom profile`: record chosen steps here, or a running server under load; say what is in them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atom.cli.common import console, print_json, resolve_target
from atom.cli.flags import CONTEXT, SettingsCommand, with_settings
from atom.config import resolve
from atom.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(context_settings=CONTEXT, add_completion=False)

SECTIONS = ("model", "engine", "scheduler", "compile", "parallel")
INTERRUPTED = 130
MOST_STEPS = 1000
MOST_SECONDS = 60.0
MOST_REQUESTS = 10_000
KINETO_ERRORS = "99"  # above its levels of notices
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


def _here(metavar: str, text: str, *names: str, **limits: int) -> Any:
    """An option of the engine in this process."""
    return _option(STEPS_PANEL, metavar, text, *names, **limits)


def _there(metavar: str, text: str, **limits: float) -> Any:
    """An option of a running server."""
    return _option(URL_PANEL, metavar, text, **limits)


def _option(panel: str, metavar: str, text: str, *names: str, **limits: float) -> Any:
    # `show_default`: without one the help says what happens instead.
    return typer.Option(
        *names,
        metavar=metavar or None,
        help=text,
        show_default=False,
        rich_help_panel=panel,
        **limits,  # type: ignore[arg-type]
    )


_TARGET = typer.Argument(
    metavar="RECIPE|MODEL",
    help="As for atom serve; nothing: the embedded model. Not with --url.",
    show_default=False,
)
_PREFILL = _here("NxTOKENS", "Steps of N prompts of so many tokens, e.g. 1x512,4x2048.")
_DECODE = _here(
    "N[@CONTEXT]", "Steps of N sequences, each a token further, e.g. 1,32,128 or 32@4096."
)
_CONTEXT = _here(
    "INT",
    "Tokens that a decode's sequences hold in the first recorded step. "
    "(default: 1024, or what fits)",
    min=1,
)
_STEPS = _here(
    "INT",
    "Recorded steps of each shape; a trace holds those of one shape. (default: 8)",
    min=1,
    max=MOST_STEPS,
)
_WARMUP = _here(
    "INT", "Steps of each shape before they are recorded. (default: 2)", min=0, max=MOST_STEPS
)
_MARK_TRACE = _here(
    "",
    "Name the model's modules, and record the capture of graphs. (default: on)",
    "--mark-trace/--no-mark-trace",
)
_MORE = _here(
    "",
    "Record shapes, Python stacks and memory, too: slower steps, traces several times as large.",
    "--more",
)
_URL = _there(
    "URL",
    "Record this server under load; load no model here. It must run with its profiler on: atom "
    "serve --torch-profiler-dir DIR.",
)
_CONCURRENCY = _there("INT", "Requests in flight. (default: 8)", min=1)
_INPUT_LEN = _there("INT", "Tokens of each prompt. (default: 512)", min=1)
_OUTPUT_LEN = _there("INT", "Tokens of each answer. (default: 64)", min=1)
_SECONDS = _there(
    "NUMBER",
    "Record so long, in the middle of a steady load. (default: 3)",
    min=0.1,
    max=MOST_SECONDS,
)
_REQUESTS = _there(
    "INT", "Record so many requests instead, from the first to the last.", min=1, max=MOST_REQUESTS
)
_TRACE_DIR = _there("DIR", "Where the server writes its traces, if it does not say (vLLM, SGLang).")
_API_KEY = _there("TEXT", "The server's key. (default: ATOM_API_KEY, else OPENAI_API_KEY)")
_OUTPUT_DIR = typer.Option(
    "--output-dir",
    "-o",
    metavar="DIR",
    help="Where rank_N/*.pt.trace.json.gz and profile.json go. (default: "
    "profile-MODEL-TIME here; with --url the traces stay where the server writes them)",
    show_default=False,
)


@app.command(cls=SettingsCommand)
@with_settings(*SECTIONS)
def profile(
    target: Annotated[str | None, _TARGET] = None,
    prefill: Annotated[list[str] | None, _PREFILL] = None,
    decode: Annotated[list[str] | None, _DECODE] = None,
    context: Annotated[int | None, _CONTEXT] = None,
    steps: Annotated[int | None, _STEPS] = None,
    warmup: Annotated[int | None, _WARMUP] = None,
    mark_trace: Annotated[bool | None, _MARK_TRACE] = None,
    more: Annotated[bool | None, _MORE] = None,
    url: Annotated[str | None, _URL] = None,
    concurrency: Annotated[int | None, _CONCURRENCY] = None,
    input_len: Annotated[int | None, _INPUT_LEN] = None,
    output_len: Annotated[int | None, _OUTPUT_LEN] = None,
    seconds: Annotated[float | None, _SECONDS] = None,
    requests: Annotated[int | None, _REQUESTS] = None,
    trace_dir: Annotated[Path | None, _TRACE_DIR] = None,
    api_key: Annotated[str | None, _API_KEY] = None,
    output_dir: Annotated[Path | None, _OUTPUT_DIR] = None,
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
    local = {
        "prefill": prefill,
        "decode": decode,
        "context": context,
        "steps": steps,
        "warmup": warmup,
        "mark_trace": mark_trace,
        "more": more,
    }
    remote = {
        "concurrency": concurrency,
        "input_len": input_len,
        "output_len": output_len,
        "seconds": seconds,
        "requests": requests,
        "trace_dir": trace_dir,
        "api_key": api_key,
    }
    local = {name: value for name, value in local.items() if value not in (None, [])}
    remote = {name: value for name, value in remote.items() if value is not None}
    # Kineto logs its own starts and stops; this process is the only one that it should tell.
    os.environ.setdefault("KINETO_LOG_LEVEL", KINETO_ERRORS)
    display = Lines(console(stderr=True), quiet)
    if url is not None:
        code = _of_server(url, target, local, remote, flags, output_dir, display, as_json)
    else:
        code = _of_engine(target, local, remote, flags, output_dir, display, as_json)
    raise typer.Exit(code)


def _of_engine(
    target: str | None,
    given: dict[str, Any],
    foreign: dict[str, Any],
    flags: dict[str, Any],
    output_dir: Path | None,
    display: Lines,
    as_json: bool,
) -> int:
    if foreign:
        raise ConfigError(f"{_flags(foreign)}: only for a running server, --url")
    from atom.cli.profile_tables import print_local
    from atom.profile import offline
    from atom.profile.shapes import Counts

    asked = {name: given.pop(name) for name in ("steps", "warmup") if name in given}
    resolved = resolve_target(target, flags)
    made = offline.run(
        offline.Ask(
            config=resolved.config,
            counts=Counts(**asked),
            output_dir=output_dir,
            recipe=Path(target) if target is not None and target.endswith(".toml") else None,
            **given,
        ),
        display,
    )
    if as_json:
        print_json(made.document)
    else:
        print_local(console(), made)
    return INTERRUPTED if made.interrupted else 0


def _of_server(
    url: str,
    target: str | None,
    foreign: dict[str, Any],
    given: dict[str, Any],
    flags: dict[str, Any],
    output_dir: Path | None,
    display: Lines,
    as_json: bool,
) -> int:
    model = flags.pop("model", None)
    if foreign or flags:
        raise ConfigError(f"{_flags({**foreign, **flags})}: not with --url; the server is as it is")
    if target is not None:
        raise ConfigError(f"{target} and --url: give one; --model names a model of the server")
    if "seconds" in given and "requests" in given:
        raise ConfigError("--seconds and --requests: give one")
    from atom.cli.profile_tables import print_server
    from atom.profile import online

    keys = resolve(None, os.environ).server.api_key
    given.setdefault("api_key", keys[0] if keys else os.environ.get("OPENAI_API_KEY") or None)
    ask = online.Ask(url=url, model=model, output_dir=output_dir, **given)
    made = online.run(ask, display)
    if as_json:
        print_json(made.document)
    else:
        print_server(console(), made)
    return INTERRUPTED if made.interrupted else 0


def _flags(names: dict[str, Any]) -> str:
    return ", ".join("--" + name.replace("_", "-") for name in names)
