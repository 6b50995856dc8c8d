"""How a running evaluation is shown: one bar at a terminal, a line now and then elsewhere.

All of it goes to the console it is given (stderr), which leaves stdout to the result.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from atom.eval.types import Progress
from atom.utils.terminal import Lines, Redrawn, Silent, bar, plain, seconds

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

BESIDE_BAR = 62  # columns


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
    left_s = (progress.total - progress.done) / rate - waited_s
    return f"about {seconds(max(left_s, 1))} left"


def title(progress: Progress) -> str:
    return f"{progress.phase} {progress.detail}".rstrip()


class PlainDisplay(Lines):
    """Lines, one every ten seconds at most while a phase runs; for pipes and logs."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(console, clock)
        self._pace = Pace()

    def progress(self, progress: Progress, /) -> None:
        at_s = self._pace.take(progress)
        if self.due():
            self.say(f"{title(progress)}: {counts(progress, at_s)}")


class LiveDisplay(Redrawn, PlainDisplay):
    """A bar redrawn in place as news come; what is said stays above it."""

    def progress(self, progress: Progress, /) -> None:
        self.draw(self.render(progress))

    def render(self, progress: Progress) -> RenderableType:
        from rich.console import Group

        share = progress.done / progress.total if progress.total else None
        said = counts(progress, self._pace.take(progress))
        return Group(plain(title(progress), "bold"), bar(self.console, share, said, BESIDE_BAR))


class QuietDisplay(Silent, PlainDisplay):
    """Says nothing but what went wrong."""

    def progress(self, progress: Progress, /) -> None:
        pass
