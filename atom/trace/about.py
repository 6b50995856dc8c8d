"""The last sheet: where the figures come from, and what each column means."""

from __future__ import annotations

import math
from collections.abc import Sequence

from atom import __version__
from atom.trace.breakdown import Breakdown
from atom.trace.overviews import group_notes
from atom.trace.tables import HOW, Column, Table, headline, us
from atom.trace.types import Analysis, Match, RankModel

_ATOM_FACTS = (
    "model", "dtype", "kv_cache_dtype", "level", "cudagraph_mode", "tp_size", "block_size"
)  # fmt: skip


def about_table(made: Breakdown, analysis: Analysis, others: Sequence[Table]) -> Table:
    """`others` are the sheets whose columns are explained."""
    table = Table(
        "about",
        (Column("what", "what", "text", "item"), Column("value", "value", "prose", "value")),
    )
    model = next(rank for rank in analysis.ranks if rank.trace.rank == made.rank)
    rows = [
        ("trace", str(made.path)),
        ("capture trace", str(analysis.capture) if analysis.capture else "none"),
        ("rank", f"{made.rank} of {', '.join(str(r.trace.rank) for r in analysis.ranks)}"),
        ("device", made.device or "not in the trace"),
    ]
    rows += [
        (fact, str(model.trace.atom[fact])) for fact in _ATOM_FACTS if fact in model.trace.atom
    ]
    rows += [("shown", line) for line in headline(made)]
    rows += [("note", note) for note in made.notes]
    rows += [("layers", note) for note in group_notes(made)]
    rows += [("layers by", model.layers_by or "not found")]
    rows += [("match rate", match_text(model))]
    rows += [("match", note) for note in made.match_notes]
    rows += [("outside", text) for text in [outside_text(model)] if text]
    rows += [("warning", warning) for warning in analysis.warnings]
    rows += [
        ("sum and union", "a sum adds durations; a union (busy) counts overlapping time once"),
        ("made by", f"atom {__version__}, atom trace parse"),
    ]
    seen: dict[tuple[str, str], list[str]] = {}
    for other in others:
        for column in other.columns:
            seen.setdefault((column.header, column.means), []).append(other.name)
    rows += [
        (f"column {header}", f"{means} ({', '.join(sheets)})")
        for (header, means), sheets in seen.items()
    ]
    table.rows = [list(row) for row in rows]
    return table


def match_text(model: RankModel) -> str:
    """E.g. "98.7% of 551 kernels and copies of all steps have a module: 544 by capture, 7 without".

    The share is rounded down: 100.0% means all.
    """
    report = model.report
    share = math.floor(1000 * report.rate) / 10
    parts = [
        f"{number:,} by {HOW[kind]}"
        for kind, number in sorted(report.rows.items())
        if number and kind != Match.NONE
    ]
    without = report.rows.get(Match.NONE, 0)
    parts += [f"{without:,} without"] if without else []
    what = f"{share:.1f}% of {report.total:,} kernels and copies of all steps have a module"
    return f"{what}: {', '.join(parts)}" if parts else what


def outside_text(model: RankModel) -> str:
    """What of the trace's GPU work no workbook shows; "" if all is in steps."""
    count, ns = outside_of_steps(model)
    what = "1 kernel or copy is" if count == 1 else f"{count:,} kernels and copies are"
    return f"{what} in no step: {us(ns):,.2f} us" if count else ""


def outside_of_steps(model: RankModel) -> tuple[int, int]:
    """Number and time, ns, of the GPU rows that are in no step."""
    rows = model.step < 0
    return int(rows.sum()), int(model.trace.gpu.dur[rows].sum())
