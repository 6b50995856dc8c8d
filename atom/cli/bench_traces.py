"""The end of a regression: what the traces of two benchmark runs say of it, in a few lines.

`atom.bench` keeps the traces and knows nothing of them; `atom.trace` reads them.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.text import Text

if TYPE_CHECKING:
    from rich.console import Console

    from atom.bench.compare.sweeps import SweepComparison
    from atom.bench.outcome import Traced

Artefacts = Sequence[Mapping[str, str]]


def compared(a: Artefacts, b: Artefacts, *, worse: bool) -> list[str]:
    """Where both runs have traces: their verdict. Where one is worse and has none: that it has
    not. Else nothing."""
    sides = [[x["path"] for x in side if x.get("kind") == "trace"] for side in (a, b)]
    if all(sides):
        from atom.trace.verdict import trace_verdict

        if sys.stderr.isatty():
            sys.stderr.write("reading the traces ...\n")
        return trace_verdict(*sides)
    if not worse:
        return []
    lacking = [letter for letter, side in zip("AB", sides, strict=True) if not side]
    who = "neither run has one" if len(lacking) == 2 else f"{lacking[0]} has none"
    return [f"no traces to compare: {who}; atom bench --profile keeps one with the run"]


def of_comparison(found: SweepComparison) -> list[tuple[str, list[str]]]:
    """(point, lines) of every point that has something to say."""
    told = []
    for point in found.points:
        worse = point.verdict == "worse"
        lines = compared(point.a.artefacts, point.b.artefacts, worse=worse)
        if lines:
            told.append((point.point, lines))
    if len({tuple(lines) for _, lines in told}) == 1 and len(told) > 1:
        return [("", told[0][1])]  # no traces anywhere: once is enough
    return told


def of_gate(traced: Sequence[Traced]) -> list[tuple[str, list[str]]]:
    """(run id, lines) of every regression that was profiled."""
    from atom.trace.verdict import trace_verdict

    return [
        (
            each.run_id,
            trace_verdict(each.before, each.now)
            if each.before
            else ["no traces to compare: no earlier run like this one has any on this machine"],
        )
        for each in traced
    ]


def print_told(out: Console, told: Sequence[tuple[str, list[str]]]) -> None:
    """`what` before its lines where there are several."""
    for what, lines in told:
        where = f" {what}" if what and len(told) > 1 else ""
        for line in lines:
            out.print(Text.assemble((f"traces{where}: ", "bold"), line))
