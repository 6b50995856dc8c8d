"""`build`: from a history to the folder of the site."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from atom.bench.dashboard.marks import find_marks
from atom.bench.dashboard.site import write_site
from atom.bench.history import History


class Built(NamedTuple):
    """What was written."""

    page: Path  # open it in a browser
    runs: int
    regressions: int  # runs with which one began, in the whole history


def build(history: History, out: Path) -> Built:
    """Write the site of `history` into the folder `out`; it opens without a server.

    Files of the site are replaced, others in the folder are left alone. Traces are linked where
    they lie. Raises `HistoryError` (not to be read) and `BenchError` (not to be written).
    """
    runs = history.find()
    marks = find_marks(runs)
    index = write_site(runs, out, marks, source=history.path.name)
    regressed = {mark.run_id for mark in marks if mark.kind == "regression"}
    return Built(index, len(runs), len(regressed))
