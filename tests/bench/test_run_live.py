"""What is shown while it runs: at a terminal, piped, quiet."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from atom.bench import live
from atom.bench.points import Point, closed_point, open_point
from atom.bench.types import (
    ClientHealth,
    Interval,
    Progress,
    RepeatResult,
    RequestRecord,
    RunResult,
)


def console(width: int = 80) -> Console:
    return Console(file=io.StringIO(), width=width, color_system=None)


def text(of: Console) -> str:
    assert isinstance(of.file, io.StringIO)
    return of.file.getvalue()


def record(ttft_s: float = 0.1, gap_s: float = 0.01, tokens: int = 5, **more: Any) -> RequestRecord:
    times = [1.0 + ttft_s + i * gap_s for i in range(tokens)]
    fields: dict[str, Any] = {
        "intended_s": 0.5,
        "sent_s": 1.0,
        "token_times_s": times,
        "token_counts": [1] * tokens,
        "output_tokens": tokens,
        **more,
    }
    return RequestRecord(0, **fields)


def progress(*recent: RequestRecord, **more: Any) -> Progress:
    fields = {
        "elapsed_s": 4.0,
        "phase": "measuring",
        "total": 40,
        "done": 10,
        "failed": 0,
        "in_flight": 8,
        "tokens": 400,
        "token_rate": 123.0,
        "recent": list(recent),
    }
    return Progress(**{**fields, **more})


def health(**more: Any) -> ClientHealth:
    fields: dict[str, Any] = {
        "workers": 1,
        "cpu_share": [0.12],
        "lag_p50_ms": 0.1,
        "lag_p99_ms": 0.4,
        "lag_max_ms": 1.0,
        "send_delay_p99_ms": 0.1,
        "chunks_per_s": 10.0,
        "machine_cpu_share": 0.3,
    }
    return ClientHealth(**{**fields, **more})


def repeat(**more: Any) -> RepeatResult:
    return RepeatResult(0, "2026-01-01T00:00:00Z", 10.0, {}, {}, health(**more), None)


def board(point: Point | None = None) -> live.Board:
    made = live.Board()
    made.point, made.repeats = point or closed_point(8), 5
    made.reset("repeat 2")
    return made


def test_the_board_s_figures() -> None:
    made = board()
    made.take(progress(record(0.1, 0.01), record(0.3, 0.02)))
    assert made.title() == "concurrency 8 · repeat 2 of 5"
    assert made.counts() == "10/40 requests, 8 in flight, 0 failed, 4 s"
    assert made.share() == 0.25
    assert made.rates() == (
        "123 tok/s now, 100 on average   TTFT p50 300 p99 300 ms   TPOT p50 20 p99 20 ms"
    )


def test_an_open_loop_counts_from_the_intended_moment() -> None:
    made = board(open_point("4", 1.0, None))
    made.take(progress(record(0.1)))
    assert list(made.ttft_ms) == pytest.approx([600.0])


def test_failures_are_counted_by_cause_and_not_timed() -> None:
    made = board()
    bad = record(error="http", status=503, message="queue is full")
    made.take(progress(bad, bad, record(error="cancelled"), record(error="timeout")))
    assert made.errors() == ["2 × http 503: queue is full", "1 × timeout"]
    assert not made.ttft_ms


def test_a_timed_run_goes_by_its_time() -> None:
    made = board(Point(concurrency=2, duration_s=8.0))
    made.take(progress(total=None))
    assert made.share() == 0.5
    assert made.counts().startswith("10 requests")


def test_the_time_left_comes_from_the_repeats_before() -> None:
    made = board()
    made.take(progress())
    assert made.left() == ""
    made.ended(repeat())
    assert made.left() == "about 36 s left"


def test_the_client_s_own_state_is_shown() -> None:
    made = board()
    made.ended(repeat())
    assert made.client == "client fine (loop lag p99 0.4 ms, 12% of a core)"
    made.ended(repeat(bound=True, reason="it was slow"))
    assert made.client == "client was the bottleneck: it was slow"


@pytest.mark.parametrize("width", [80, 100, 140])
def test_the_live_board_fits(width: int) -> None:
    out = console(width)
    display = live.LiveDisplay(out)
    display.board = made = board(closed_point(128))
    made.take(progress(record(), total=640, done=599, in_flight=128, elapsed_s=1234.0))
    made.ended(repeat())
    out.print(display.render())
    lines = text(out).splitlines()
    assert max(map(len, lines)) <= width
    assert lines[1].endswith("599/640 requests, 128 in flight, 0 failed, 1234 s")
    assert len(lines) == 4


def test_lines_come_every_ten_seconds_at_most() -> None:
    now = [100.0]
    out = console(300)
    display = live.PlainDisplay(out, lambda: now[0])
    display.begin_point(closed_point(8), 5)
    display.begin_pass("repeat 1")
    for second in range(1, 26):
        now[0] = 100.0 + second
        display.progress(progress(record()))
    lines = text(out).splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("concurrency 8 · repeat 1 of 5 | 10/40 requests, 8 in flight")


def run_result(**more: Any) -> RunResult:
    metrics = {
        "output_throughput": Interval(100.0, 98.0, 102.0),
        "median_ttft_ms": Interval(12.3, 12.0, 13.0),
        "p99_ttft_ms": Interval(120.0, 100.0, 130.0),
        "failed": Interval(2.0, 2.0, 2.0),
    }
    fields: dict[str, Any] = {"status": "ok", **more}
    return RunResult("id", "bench", "n", "m", {}, {}, {}, "f", [], metrics, {}, **fields)


def test_a_point_in_a_line() -> None:
    line = live.point_line(closed_point(8), run_result(status="client_bound"))
    assert line == (
        "concurrency 8:  100 tok/s ±2.0%  TTFT 12.3 ms (p99 120)  2 failed  [client bound]"
    )


def test_brackets_of_a_message_are_no_markup() -> None:
    out = console()
    live.PlainDisplay(out).say("[red]x[/red]")
    assert text(out) == "[red]x[/red]\n"


def test_quiet_says_only_what_matters() -> None:
    out = console()
    display = live.QuietDisplay(out)
    display.say("hello")
    display.begin_point(closed_point(8), 5)
    display.begin_pass("repeat 1")
    display.progress(progress(record()))
    display.end_pass(repeat())
    display.end_point(run_result())
    display.waiting("server", 99.0)
    assert text(out) == ""
    display.say("disk full", important=True)
    assert text(out) == "disk full\n"
