"""How a running benchmark is shown: a live board at a terminal, a line now and then elsewhere.

All of it goes to the console it is given (stderr), which leaves stdout to the result. Figures here
are of the moment, for the eye; those that count come from `atom.bench.metrics`.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from atom.bench.points import Point
from atom.bench.types import Interval, Progress, RepeatResult, RequestRecord, RunResult
from atom.utils.terminal import Lines, Redrawn, Silent, bar, plain, seconds

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

KEPT = 4096  # latest requests behind the board's percentiles
BESIDE_BAR = 56  # columns
MOST_CAUSES = 3


class Board:
    """The figures of the pass that runs now."""

    def __init__(self) -> None:
        self.point = Point()
        self.repeats = 0
        self.name = ""
        self.client = ""  # of the pass before
        self.lengths_s: list[float] = []  # of the repeats before
        self.reset("")

    def reset(self, name: str) -> None:
        self.name = name
        self.now: Progress | None = None
        self.ttft_ms: deque[float] = deque(maxlen=KEPT)
        self.tpot_ms: deque[float] = deque(maxlen=KEPT)
        self.causes: Counter[str] = Counter()

    def take(self, progress: Progress) -> None:
        self.now = progress
        for record in progress.recent:
            self._take_record(record)

    def _take_record(self, record: RequestRecord) -> None:
        if record.error is not None:
            if record.error != "cancelled":
                status = "" if record.status is None else f" {record.status}"
                self.causes[f"{record.error}{status}: {record.message}".rstrip(": ")] += 1
            return
        times = record.token_times_s
        if not times:
            return
        origin = record.sent_s if self.point.closed else record.intended_s
        self.ttft_ms.append((times[0] - origin) * 1e3)
        tokens = record.output_tokens or sum(record.token_counts)
        if tokens > 1 and len(times) > 1:
            self.tpot_ms.append((times[-1] - times[0]) / (tokens - 1) * 1e3)

    def ended(self, result: RepeatResult) -> None:
        health = result.health
        self.lengths_s.append(result.duration_s)
        busiest = max(health.cpu_share, default=0.0)
        self.client = (
            f"client was the bottleneck: {health.reason}"
            if health.bound
            else f"client fine (loop lag p99 {health.lag_p99_ms:.2g} ms, {busiest:.0%} of a core)"
        )

    def title(self) -> str:
        of = f" of {self.repeats}" if self.name.startswith("repeat") else ""
        phase = "" if self.now is None or self.now.phase == "measuring" else f", {self.now.phase}"
        return f"{self.point.title()} · {self.name}{of}{phase}"

    def share(self) -> float | None:
        """How much of the pass is done."""
        if self.now is None:
            return 0.0
        parts = []
        if self.now.total:
            parts.append(self.now.done / self.now.total)
        if self.point.duration_s and self.name.startswith("repeat"):
            parts.append(self.now.elapsed_s / self.point.duration_s)
        return min(max(parts), 1.0) if parts else None

    def counts(self) -> str:
        now = self.now
        if now is None:
            return "starting"
        of = f"/{now.total}" if now.total else ""
        return (
            f"{now.done}{of} requests, {now.in_flight} in flight, {now.failed} failed, "
            f"{now.elapsed_s:.0f} s"
        )

    def left(self) -> str:
        """The time left for this point, once a repeat has shown how long one takes."""
        if not self.lengths_s or self.now is None:
            return ""
        mean = sum(self.lengths_s) / len(self.lengths_s)
        rest = (self.repeats - len(self.lengths_s)) * mean - self.now.elapsed_s
        return f"about {seconds(rest)} left" if rest >= 1 else ""

    def rates(self) -> str:
        now = self.now
        if now is None or not now.elapsed_s:
            return ""
        parts = [f"{now.token_rate:,.0f} tok/s now, {now.tokens / now.elapsed_s:,.0f} on average"]
        for name, values in (("TTFT", self.ttft_ms), ("TPOT", self.tpot_ms)):
            if values:
                middle, high = quantiles(values, (0.5, 0.99))
                parts.append(f"{name} p50 {_ms(middle)} p99 {_ms(high)} ms")
        return "   ".join(parts)

    def errors(self) -> list[str]:
        return [f"{n} × {cause}" for cause, n in self.causes.most_common(MOST_CAUSES)]


class PlainDisplay(Lines):
    """Lines, one every ten seconds at most while a pass runs; for pipes and logs."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(console, clock)
        self.board = Board()

    def begin_point(self, point: Point, repeats: int) -> None:
        self.board.point, self.board.repeats, self.board.lengths_s = point, repeats, []

    def begin_pass(self, name: str) -> None:
        self.board.reset(name)
        self.begin()

    def progress(self, progress: Progress, /) -> None:
        self.board.take(progress)
        if self.due():
            board = self.board
            parts = (board.title(), board.counts(), board.rates(), "; ".join(board.errors()))
            self.say(" | ".join(filter(None, parts)))

    def end_pass(self, result: RepeatResult) -> None:
        self.board.ended(result)

    def end_point(self, run: RunResult) -> None:
        self.say(point_line(self.board.point, run))


class LiveDisplay(Redrawn, PlainDisplay):
    """A board redrawn in place about four times a second; what is said stays above it."""

    def begin_pass(self, name: str) -> None:
        super().begin_pass(name)
        self.draw(self.render())

    def progress(self, progress: Progress, /) -> None:
        self.board.take(progress)
        self.draw(self.render())

    def end_point(self, run: RunResult) -> None:
        self.draw(plain(""))
        super().end_point(run)

    def render(self) -> RenderableType:
        from rich.console import Group

        board = self.board
        lines: list[RenderableType] = [
            plain(board.title(), "bold"),
            bar(self.console, board.share(), board.counts(), BESIDE_BAR),
        ]
        lines += [plain(line) for line in (board.rates(),) if line]
        lines += [plain(line, "red") for line in board.errors()]
        below = " · ".join(filter(None, (board.client, board.left())))
        lines += [plain(below, "dim")] if below else []
        return Group(*lines)


class QuietDisplay(Silent, PlainDisplay):
    """Says nothing but what went wrong."""

    def progress(self, progress: Progress, /) -> None:
        pass

    def end_point(self, run: RunResult) -> None:
        pass


def point_line(point: Point, run: RunResult) -> str:
    """A point in a line, as soon as it is measured."""
    steady = run.metrics.get("steady_output_throughput")
    throughput = steady or run.metrics.get("output_throughput")
    parts = [f"{point.title()}:"]
    if throughput is not None:
        parts.append(f"{throughput.value:,.4g} tok/s {_width(throughput)}".rstrip())
    for name in ("ttft", "tpot"):
        middle, high = (run.metrics.get(f"{s}_{name}_ms") for s in ("median", "p99"))
        if middle is not None:
            tail = f" (p99 {_ms(high.value)})" if high is not None else ""
            parts.append(f"{name.upper()} {_ms(middle.value)} ms{tail}")
    failed = run.metrics.get("failed")
    if failed is not None and failed.value:
        parts.append(f"{failed.value:.0f} failed")
    if run.status != "ok":
        parts.append(f"[{run.status.replace('_', ' ')}]")
    return "  ".join(parts)


def quantiles(values: Sequence[float] | deque[float], shares: Sequence[float]) -> list[float]:
    """Nearest-rank quantiles, for the eye."""
    ordered = sorted(values)
    return [ordered[min(int(share * len(ordered)), len(ordered) - 1)] for share in shares]


def _ms(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _width(interval: Interval) -> str:
    half = (interval.high - interval.low) / 2
    return f"±{half / interval.value:.1%}" if interval.value and half else ""
