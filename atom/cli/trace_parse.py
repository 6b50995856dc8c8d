"""`atom trace parse`: workbooks per layer and kernel, and the summary."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atom.cli.common import add_row, console, print_json, table
from atom.cli.flags import CONTEXT
from atom.cli.trace_common import AsJson, CaptureTrace, Device, Paths, load_analysis

if TYPE_CHECKING:
    from rich.console import Console

    from atom.trace.breakdown import Breakdown
    from atom.trace.report import Report

app = typer.Typer(context_settings=CONTEXT, add_completion=False)

_MODULES = 12  # shown on the terminal


@app.command()
def parse(
    paths: Paths,
    layer: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="The layer to show. (default: 3, or the last of a smaller model)",
            show_default=False,
        ),
    ] = None,
    step: Annotated[
        str,
        typer.Option(
            metavar="median|first|slowest|N",
            help="The step to show; median is that of the commonest shape, N its number.",
        ),
    ] = "median",
    rank: Annotated[
        int | None,
        typer.Option(metavar="N", help="The rank to show. (default: the lowest)"),
    ] = None,
    capture_trace: CaptureTrace = None,
    device: Device = "auto",
    output_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where to write. (default: here; with --json nowhere)"),
    ] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Write each sheet as a CSV file too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Take a step and one of its layers apart, kernel by kernel.

    Writes prefill_breakdown.xlsx, decode_breakdown.xlsx and performance_summary.md.
    """
    from atom.trace.report import as_json as document
    from atom.trace.report import make_report, write_report

    which = int(step) if step.isascii() and step.isdigit() else step
    analysis = load_analysis(paths, capture_trace, device)
    report = make_report(analysis, layer, which, rank)
    folder = output_dir or (None if as_json and not csv else Path())
    files = write_report(report, folder, with_csv=csv) if folder is not None else []
    if as_json:
        print_json(document(report, files))
        return
    out = console()
    for made in report.breakdowns:
        _show(out, made)
    _end(out, report, files)


def _show(out: Console, made: Breakdown) -> None:
    from atom.trace.tables import headline, module_text, share, us

    out.print(f"{made.kind}", style="bold", markup=False)
    for line in headline(made) + made.notes:
        out.print(f"  {line}", markup=False, soft_wrap=False)
    sums: dict[str, list[float]] = {}
    for run in made.runs:
        entry = sums.setdefault(module_text(run.module), [0, 0.0, 0.0])
        mean = run.mean_sum_ns
        entry[0] += len(run.kernels)
        entry[1] += run.sum_ns
        entry[2] += float("nan") if mean is None else mean
    rows = table("  module", "kernels", "us", "%", "avg us")
    for column in rows.columns[1:]:
        column.justify = "right"
    ordered = sorted(sums.items(), key=lambda item: -item[1][1])
    for name, (kernels, ns, mean) in ordered[:_MODULES]:
        average = "" if mean != mean else f"{us(mean):,.2f}"
        percent = f"{share(ns, made.layer_sum_ns):.1f}"
        add_row(rows, f"  {name}", f"{kernels:,}", f"{us(ns):,.2f}", percent, average)
    out.print(rows)
    if len(ordered) > _MODULES:
        out.print(f"  and {len(ordered) - _MODULES} more modules, in the workbook")
    out.print()


def _end(out: Console, report: Report, files: list[Path]) -> None:
    from atom.trace.report import match_text

    out.print(match_text(report.model), markup=False)
    for line in report.missing:
        out.print(line, markup=False)
    for path in files:
        out.print(f"wrote {path}", markup=False)
