"""`atom trace`: answers from profiler traces; each subcommand is imported when called."""

from __future__ import annotations

import typer

from atom.cli.flags import CONTEXT
from atom.cli.lazy import LazyGroup, list_in

# Name -> (module with an `app` that has this command, one line for the help).
SUBCOMMANDS: dict[str, tuple[str, str]] = {
    "summary": ("atom.cli.trace_summary", "Steps, idle time, overlap and the top kernels."),
    "top": ("atom.cli.trace_summary", "The kernels, modules or layers that take most time."),
    "parse": ("atom.cli.trace_parse", "Write workbooks per layer and kernel, and a summary."),
    "diff": ("atom.cli.trace_diff", "What got slower from one trace to another."),
    "roofline": ("atom.cli.trace_roofline", "Bytes/s and FLOP/s against the device's ceilings."),
}


class TraceGroup(LazyGroup):
    places = SUBCOMMANDS


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


list_in(app, SUBCOMMANDS)
