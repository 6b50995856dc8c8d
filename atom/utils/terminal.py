"""What a long command shows on stderr while it runs, and how it is stopped.

Lines now and then in a pipe or log, one place that is redrawn at a terminal, or nothing but what
went wrong. What is told there is each tool's own.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text
    from typing_extensions import Self

T = TypeVar("T")

LINE_EVERY_S = 10.0


def plain(text: str, style: str = "") -> Text:
    """Brackets in a message are no markup."""
    from rich.text import Text

    return Text(text, style=style)


def seconds(value: float) -> str:
    """A time left, as coarse as it is known."""
    if value < 90:
        return f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 5400 else f"{value / 3600:.1f} h"


class Lines:
    """Lines, one every ten seconds at most of what is `due`. A context manager."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self.console = console
        self._clock = clock
        self._told_s = clock()
        self._lock = threading.Lock()  # whoever tells of progress may be in another thread

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def say(self, text: str, *, important: bool = False) -> None:
        self.console.print(plain(text, "yellow" if important else ""))

    def waiting(self, what: str, waited_s: float) -> None:
        if self.due():
            self.say(f"{what}: {waited_s:.0f} s")

    def begin(self) -> None:
        """The next line is due ten seconds from now."""
        with self._lock:
            self._told_s = self._clock()

    def due(self) -> bool:
        """Whether it is time for a line; then the next one is due ten seconds later."""
        with self._lock:
            now = self._clock()
            if now - self._told_s < LINE_EVERY_S:
                return False
            self._told_s = now
            return True


class Redrawn(Lines):
    """One place that is drawn anew when there is news, by the thread that brings it; what is said
    stays above it."""

    def __enter__(self) -> Self:
        from rich.live import Live

        self._live = Live(console=self.console, auto_refresh=False, transient=True)
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def waiting(self, what: str, waited_s: float) -> None:
        self.draw(plain(f"{what} ({waited_s:.0f} s)", "dim"))

    def draw(self, shown: RenderableType) -> None:
        self._live.update(shown, refresh=True)


class Silent(Lines):
    """Says nothing but what went wrong."""

    def say(self, text: str, *, important: bool = False) -> None:
        if important:
            super().say(text, important=True)

    def waiting(self, what: str, waited_s: float) -> None:
        pass


def bar(console: Console, share: float | None, text: str, room: int) -> RenderableType:
    """A bar of at most 30 columns and `text` beside it, for which `room` columns are left. `share`
    None: how far it is is not known."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    row = Table.grid(padding=(0, 1))
    row.add_row(
        ProgressBar(
            total=None if share is None else 1.0,
            completed=share or 0.0,
            width=min(30, max(8, console.width - room)),
        ),
        plain(text),
    )
    return row


def interruptible(
    run: Callable[[], T], stop: threading.Event, told: Callable[[str], None], kept: str
) -> T:
    """Run with the signals' meaning: the first Ctrl-C or SIGTERM stops gently, the next at once.

    `kept`: what a gentle end keeps, for the line that says so.
    """

    def on_signal(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        told(f"stopping: {kept} is kept; once more ends at once")

    before = {n: signal.signal(n, on_signal) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        return run()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
