"""`atom trace roofline`: bytes/s and FLOP/s reached, against the device's ceilings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from atom.cli.common import add_row, console, print_json, table
from atom.cli.flags import CONTEXT
from atom.cli.trace_common import (
    AsJson,
    CaptureTrace,
    Kind,
    Paths,
    Rank,
    check_kind,
    load_analysis,
)

if TYPE_CHECKING:
    from atom.trace.roofline import Roofline, RooflineRow

app = typer.Typer(context_settings=CONTEXT, add_completion=False)

SHOWN = 20  # rows, without -n
WHY_SHOWN = 3  # reasons for what is left out
SCHEMA = 1  # of --json


@app.command()
def roofline(
    paths: Paths,
    capture: CaptureTrace = None,
    kind: Kind = None,
    rank: Rank = None,
    bandwidth: Annotated[
        float | None,
        typer.Option(metavar="TB/S", help="The memory's ceiling, in place of the published one."),
    ] = None,
    flops: Annotated[
        float | None,
        typer.Option(metavar="TFLOP/S", help="The arithmetic's, in place of the published ones."),
    ] = None,
    count: Annotated[
        int, typer.Option("--rows", "-n", metavar="N", help="Rows shown; 0: all.", min=0)
    ] = SHOWN,
    as_json: AsJson = False,
) -> None:
    """Bytes/s and FLOP/s of each product, attention and expert layer, against the ceilings."""
    from atom.trace.choice import pick_rank
    from atom.trace.roofline import ceilings_of
    from atom.trace.roofline import roofline as measure
    from atom.trace.roofline.report import as_json as document

    analysis = load_analysis(paths, capture, "gpu")
    model = pick_rank(analysis, rank)
    ceilings = ceilings_of(model.trace.device_name, bandwidth, flops)
    found = measure(model, ceilings, check_kind(model, kind))
    if as_json:
        print_json({"schema": SCHEMA, "rank": model.trace.rank, **document(found)})
    else:
        _print(found, count)


def _print(found: Roofline, count: int) -> None:
    out, ceilings = console(), found.ceilings
    peaks = ", ".join(
        f"{value / 1e12:,.0f} TFLOP/s at {bits} bits" for bits, value in ceilings.flops.items()
    )
    out.print(
        f"{ceilings.device or 'device'}: {ceilings.bandwidth / 1e12:.2f} TB/s, {peaks} "
        f"({ceilings.source})",
        markup=False,
    )
    share = found.covered_ns / found.total_ns if found.total_ns else 0.0
    out.print(
        f"{found.num_steps} steps; {share:.1%} of their GPU work has known operations and bytes",
        markup=False,
    )
    reasons = sorted(found.left_out.items(), key=lambda item: -item[1])
    for why, spent in reasons[:WHY_SHOWN]:
        out.print(f"  {spent / max(found.total_ns, 1):.1%} left out: {why}", markup=False)
    shown = found.rows[: count or None]
    last = ""
    for row in sorted(shown, key=lambda row: (_order(shown, row.step), -row.total_ns)):
        if row.step != last:
            out.print(f"\n{row.step}", style="bold", markup=False)
            grid = table("module", "shape", "calls", "us", "TB/s", "TFLOP/s", "bound", "of roof")
            for other in (r for r in shown if r.step == row.step):
                _add(grid, other)
            out.print(grid)
            last = row.step
    if len(found.rows) > len(shown):
        out.print(f"\n{len(found.rows) - len(shown)} more rows; -n 0 shows all", markup=False)
    for note in dict.fromkeys(row.note for row in shown if row.note):
        out.print(f"note: {note}", style="dim", markup=False)


def _order(rows: list[RooflineRow], step: str) -> int:
    """Steps by their most expensive row."""
    return next(i for i, row in enumerate(rows) if row.step == step)


def _add(grid: Any, row: RooflineRow) -> None:
    shape = row.shape
    if row.keys:
        shape += f", {row.keys / row.calls:,.0f} keys"
    add_row(
        grid,
        row.module,
        shape,
        str(row.calls),
        f"{row.mean_ns / 1000:.1f}",
        f"{row.bytes_per_s / 1e12:.2f}",
        f"{row.flops_per_s / 1e12:.1f}",
        row.bound,
        f"{row.share:.0%}",
    )
