"""What can go wrong with the history, for people."""

from __future__ import annotations

from pathlib import Path

from atom.bench.errors import BenchError


class HistoryError(BenchError):
    """The history cannot be read or written. `saved` is where a run that was to be added lies."""

    def __init__(self, message: str, *, saved: Path | None = None) -> None:
        super().__init__(message)
        self.saved = saved
