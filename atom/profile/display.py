"""Who shows how a profile goes."""

from __future__ import annotations

from typing import Protocol


class Display(Protocol):
    """Called from any thread."""

    def say(self, text: str, *, important: bool = False) -> None: ...
