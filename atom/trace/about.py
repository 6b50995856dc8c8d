"""The last sheet: where the figures come from, and what each column means."""

from __future__ import annotations

from collections.abc import Sequence

from atom import __version__
from atom.trace.breakdown import Breakdown
from atom.trace.overviews import group_notes
from atom.trace.tables import Column, Table, headline
from atom.trace.types import Analysis

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
    rows += [("match rate", f"{100 * made.match_rate:.2f}% of the kernels of all steps")]
    rows += [("match", note) for note in made.match_notes]
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
