"""`atom trace parse`: workbooks per layer and kernel, and the summary."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atom.cli.common import add_row, console, print_json, table
from atom.cli.flags import CONTEXT
from atom.cli.trace_common import AsJson, CaptureTrace, Device, Paths, Rank, load_analysis

if TYPE_CHECKING:
    from rich.console import Console

    from atom.trace.breakdown import Breakdown, Run
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
    rank: Rank = None,
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
    from rich.padding import Padding
    from rich.text import Text

    from atom.trace.tables import headline

    out.print(made.kind, style="bold", markup=False)
    for line in headline(made) + made.notes:
        out.print(Padding(Text(line), (0, 0, 0, 2), expand=False))
    rows = table("  module", "kernels", "us", "%", "adds us", "avg us")
    for column in rows.columns[1:]:
        column.justify = "right"
    ordered = _by_module(made)
    for cells in ordered[:_MODULES]:
        add_row(rows, *cells)
    out.print(rows)
    if len(ordered) > _MODULES:
        out.print(f"  and {len(ordered) - _MODULES} more modules, in the workbook")
    out.print()


def _by_module(made: Breakdown) -> list[list[str]]:
    """Rows of the terminal's table, by time."""
    from atom.trace.tables import module_text, share, us

    runs: dict[str, list[Run]] = {}
    for run in made.runs:
        runs.setdefault(run.module, []).append(run)
    ordered = sorted(runs.items(), key=lambda item: -sum(run.sum_ns for run in item[1]))
    cells = []
    for module, mine in ordered:
        kernels = [kernel for run in mine for kernel in run.kernels]
        total = sum(run.sum_ns for run in mine)
        means = [run.mean_sum_ns for run in mine]
        known = [mean for mean in means if mean is not None]
        cells.append(
            [
                f"  {module_text(module)}",
                f"{len(kernels):,}",
                f"{us(total):,.2f}",
                f"{share(total, made.layer_sum_ns):.1f}",
                f"{us(sum(kernel.adds_ns for kernel in kernels)):,.2f}",
                f"{us(sum(known)):,.2f}" if len(known) == len(means) else "",
            ]
        )
    return cells


def _end(out: Console, report: Report, files: list[Path]) -> None:
    from atom.trace.about import match_text, outside_text

    out.print(match_text(report.model), markup=False)
    outside = outside_text(report.model)
    if outside:
        out.print(outside, markup=False)
    for line in report.missing:
        out.print(line, markup=False)
    for path in files:
        out.print(f"wrote {path}", markup=False)
