"""`atom trace summary` and `atom trace top`: answers in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atom.cli.common import console, print_json
from atom.cli.flags import CONTEXT
from atom.cli.trace_common import AsJson, CaptureTrace, Device, Paths, load_analysis
from atom.trace.errors import TraceError

if TYPE_CHECKING:
    from atom.trace.types import Analysis, RankModel

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
    step: Annotated[
        str,
        typer.Option(
            metavar="KIND",
            help="Only steps of this kind: prefill, decode, mixed, draft. (default: all work)",
            show_default=False,
        ),
    ] = "",
    rank: Annotated[
        int | None,
        typer.Option(metavar="INT", help="Of this rank. (default: the first)", show_default=False),
    ] = None,
    rows: Rows = 20,
    capture_trace: CaptureTrace = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """The kernels, modules, layers, classes or operators that take most time."""
    from atom.trace.ranking import BY
    from atom.trace.ranking import top as rank_by

    if by not in BY:
        raise TraceError(f"--by {by}: one of {', '.join(BY)}")
    analysis = load_analysis(paths, capture_trace, device)
    model = _rank(analysis, rank)
    _check_kind(model, step)
    found = rank_by(model, by, step)
    if as_json:
        import msgspec

        built = msgspec.to_builtins(found)
        built["rows"] = built["rows"][:rows]
        print_json({"schema": 1, "rank": model.trace.rank, **built})
        return
    from atom.trace.pictures import print_top

    steps = f"{found.steps} {step or 'counted'} step{'s' * (found.steps != 1)}"
    of = f"rank {model.trace.rank} of {len(analysis.ranks)}, " if len(analysis.ranks) > 1 else ""
    print_top(console(), found, rows, title=f"Time by {by}: {of}{steps}")


def _rank(analysis: Analysis, rank: int | None) -> RankModel:
    if rank is None:
        return analysis.first
    for model in analysis.ranks:
        if model.trace.rank == rank:
            return model
    known = ", ".join(str(model.trace.rank) for model in analysis.ranks)
    raise TraceError(f"--rank {rank}: the traces are of rank {known}")


def _check_kind(model: RankModel, kind: str) -> None:
    counts: dict[str, int] = {}
    for each in model.steps:
        if each.counts:
            counts[each.kind] = counts.get(each.kind, 0) + 1
    if kind and kind not in counts:
        known = ", ".join(f"{n} {k}" for k, n in counts.items()) or "none"
        raise TraceError(f"--step {kind}: the trace has no such steps; it has {known}")
