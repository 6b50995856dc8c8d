"""`atom trace summary` and `atom trace top`: answers in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from atom.cli.common import console, print_json
from atom.cli.flags import CONTEXT
from atom.cli.trace_common import (
    AsJson,
    CaptureTrace,
    Device,
    Kind,
    Paths,
    Rank,
    check_kind,
    load_analysis,
)
from atom.trace.errors import TraceError

app = typer.Typer(context_settings=CONTEXT, add_completion=False)

Rows = Annotated[
    int, typer.Option("-n", "--rows", metavar="INT", min=1, help="Rows of each ranking.")
]


@app.command()
def summary(
    paths: Paths,
    output_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Also write performance_summary.md and its plots here.",
            show_default=False,
        ),
    ] = None,
    rows: Rows = 8,
    capture_trace: CaptureTrace = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Steps, idle time, overlap, communication and the top kernels of a profile."""
    from atom.trace.summary import as_json as plain
    from atom.trace.summary import summarize

    analysis = load_analysis(paths, capture_trace, device)
    found = summarize(analysis, top_rows=max(rows, 15))
    written: list[Path] = []
    if output_dir is not None:
        from atom.trace.markdown import write_summary

        written = write_summary(analysis, output_dir, found)
    if as_json:
        print_json({**plain(found), "written": [str(path) for path in written]})
        return
    from atom.trace.pictures import print_summary

    out = console()
    print_summary(out, found, rows)
    for path in written[:1]:
        out.print(f"wrote {path}", markup=False)


@app.command()
def top(
    paths: Paths,
    by: Annotated[
        str, typer.Option(metavar="kernel|module|layer|class|op", help="What is ranked.")
    ] = "kernel",
    kind: Kind = None,
    rank: Rank = None,
    rows: Rows = 20,
    capture_trace: CaptureTrace = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """The kernels, modules, layers, classes or operators that take most time."""
    from atom.trace.choice import pick_rank
    from atom.trace.ranking import BY
    from atom.trace.ranking import top as rank_by

    if by not in BY:
        raise TraceError(f"--by {by}: one of {', '.join(BY)}")
    analysis = load_analysis(paths, capture_trace, device)
    model = pick_rank(analysis, rank)
    found = rank_by(model, by, check_kind(model, kind) or "")
    if as_json:
        import msgspec

        built = msgspec.to_builtins(found)
        built["rows"] = built["rows"][:rows]
        print_json({"schema": 1, "rank": model.trace.rank, **built})
        return
    from atom.trace.pictures import print_top

    steps = f"{found.steps} {kind or 'counted'} step{'s' * (found.steps != 1)}"
    of = f"rank {model.trace.rank} of {len(analysis.ranks)}, " if len(analysis.ranks) > 1 else ""
    print_top(console(), found, rows, title=f"Time by {by}: {of}{steps}")
