"""Several ranks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from atom.trace.reader.read import read_trace
from atom.trace.types import RankTrace


def read_traces(paths: Sequence[Path]) -> list[RankTrace]:
    """All of them, by rank."""
    return sorted((read_trace(path) for path in paths), key=lambda trace: trace.rank)
