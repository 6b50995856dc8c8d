"""How a comparison goes, on stderr: one moving line on a terminal, a line a phase elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status


class Display:
    """A context manager. `quiet` shows nothing."""

    def __init__(self, out: Console, *, quiet: bool = False) -> None:
        self._out = out
        self._quiet = quiet
        self._status: Status | None = None
        self._said = ""  # the phase that has been told, where lines do not move

    def __enter__(self) -> Display:
        if not self._quiet and self._out.is_terminal and not self._out.is_dumb_terminal:
            self._status = self._out.status("")
            self._status.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._status is not None:
            self._status.stop()

    def say(self, text: str) -> None:
        if not self._quiet:
            self._out.print(text, markup=False, style="dim")

    def count(self, what: str, done: int, total: int) -> None:
        """`total` 0: seconds waited, not a count."""
        if self._quiet:
            return
        from rich.text import Text

        if self._status is not None:
            told = f"{what}, {done} of {total} prompts" if total else f"{what}, {done} s"
            self._status.update(Text(told))
        elif what != self._said and done == total:
            self._said = what
            self.say(f"{what} {total} prompts")
