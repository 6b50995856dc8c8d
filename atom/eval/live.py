"""How a running evaluation is shown: one bar at a terminal, a line now and then elsewhere.

All of it goes to the console it is given (stderr), which leaves stdout to the result.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from atom.eval.types import Progress

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

LINE_EVERY_S = 10.0
BAR_WIDTH = 30
_TEXT_COLUMNS = 62  # beside the bar


class Pace:
    """How fast answers come: counted to the latest one, since they come in batches."""

    def __init__(self) -> None:
        self._phase = ("", "")
        self._done = 0
        self._at_s = 0.0

    def take(self, progress: Progress) -> float:
        """When, in this phase, the latest answer came (s)."""
        phase = (progress.phase, progress.detail)
        if phase != self._phase or progress.done != self._done:
            self._phase, self._done, self._at_s = phase, progress.done, progress.elapsed_s
        return self._at_s


def counts(progress: Progress, at_s: float | None = None) -> str:
    """`120/2376 (5%), 40 kept, 32/s, about 1 min left`: what is known of it.

    `at_s`: when the latest answer came; None: now.
    """
    at_s = progress.elapsed_s if at_s is None else at_s
    total = progress.total
    said = f"{progress.done:,}"
    if total:
        said += f"/{total:,} ({progress.done / total:.0%})"
    parts = [said]
    if progress.kept:
        parts.append(f"{progress.kept:,} kept")
    rate = speed(progress, at_s)
    if rate:
        parts.append(f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s")
    if progress.tokens and at_s > 0:
        parts.append(f"{progress.tokens / at_s:,.0f} tok/s")
    if progress.retries:
        parts.append(f"{progress.retries} retries")
    left = time_left(progress, at_s)
    return ", ".join([*parts, *([left] if left else [])])


def speed(progress: Progress, at_s: float) -> float:
    """Answers per second that were asked for in this phase; 0 while it is not known."""
    fresh = progress.done - progress.kept
    return fresh / at_s if fresh > 0 and at_s > 0 else 0.0


def time_left(progress: Progress, at_s: float) -> str:
    rate = speed(progress, at_s)
    if not rate or not progress.total or progress.done >= progress.total:
        return ""
    waited_s = progress.elapsed_s - at_s
    return f"about {seconds((progress.total - progress.done) / rate - waited_s)} left"


def seconds(value: float) -> str:
    if value < 90:
        return f"{max(value, 1):.0f} s"
    return f"{value / 60:.0f} min" if value < 5400 else f"{value / 3600:.1f} h"


def title(progress: Progress) -> str:
    return f"{progress.phase} {progress.detail}".rstrip()


class PlainDisplay:
    """Lines, one every ten seconds at most while a phase runs; for pipes and logs."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self.console = console
        self._clock = clock
        self._told_s = clock()
        self._pace = Pace()
        self._lock = threading.Lock()  # whoever tells of progress may be in another thread

    def __enter__(self) -> PlainDisplay:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def say(self, text: str, *, important: bool = False) -> None:
        self.console.print(_plain(text, "yellow" if important else ""))

    def waiting(self, what: str, waited_s: float) -> None:
        if self._due():
            self.say(f"{what}: {waited_s:.0f} s")

    def progress(self, progress: Progress, /) -> None:
        at_s = self._pace.take(progress)
        if self._due():
            self.say(f"{title(progress)}: {counts(progress, at_s)}")

    def _due(self) -> bool:
        with self._lock:
            now = self._clock()
            if now - self._told_s < LINE_EVERY_S:
                return False
            self._told_s = now
            return True


class LiveDisplay(PlainDisplay):
    """A bar redrawn in place as news come; what is said stays above it."""

    def __enter__(self) -> LiveDisplay:
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
        self._live.update(_plain(f"{what} ({waited_s:.0f} s)", "dim"), refresh=True)

    def progress(self, progress: Progress, /) -> None:
        self._live.update(self.render(progress), refresh=True)

    def render(self, progress: Progress) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        share = progress.done / progress.total if progress.total else None
        bar = ProgressBar(
            total=None if share is None else 1.0,
            completed=share or 0.0,
            width=min(BAR_WIDTH, max(8, self.console.width - _TEXT_COLUMNS)),
        )
        row = Table.grid(padding=(0, 1))
        row.add_row(bar, _plain(counts(progress, self._pace.take(progress))))
        return Group(_plain(title(progress), "bold"), row)


class QuietDisplay(PlainDisplay):
    """Says nothing but what went wrong."""

    def say(self, text: str, *, important: bool = False) -> None:
        if important:
            super().say(text, important=True)

    def waiting(self, what: str, waited_s: float) -> None:
        pass

    def progress(self, progress: Progress, /) -> None:
        pass


def _plain(text: str, style: str = "") -> Text:
    """Brackets in a message are no markup."""
    from rich.text import Text

    return Text(text, style=style)
