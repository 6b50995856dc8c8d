"""`run_load` against the mock server: every record is right, every failure has its kind."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any, cast

import pytest
from mock_behaviour import Behaviour, Fault
from mock_server import MockServer, Truth

from atom.bench.client import crew, load, pool, run_load
from atom.bench.client.exchange import Exchange
from atom.bench.client.http1 import Connection
from atom.bench.errors import BenchError, ServerUnreachable
from atom.bench.types import Job, Load, LoadOutcome, Progress, RequestRecord, Target, Turn


def jobs(tokens: int = 5, turns: int = 1, chat: bool = False, delay_s: float = 0) -> Iterator[Job]:
    for index in itertools.count():
        said = [f"job {index} turn {number}" for number in range(turns)]
        yield Job(
            index,
            [
                Turn(
                    prompt=None if chat else text,
                    messages=[{"role": "user", "content": text}] if chat else None,
                    max_tokens=tokens,
                    input_len=3,
                    delay_s=delay_s if number else 0.0,
                )
                for number, text in enumerate(said)
            ],
        )


def measure(
    load: Load,
    source: Iterator[Job] | None = None,
    *,
    faults: tuple[str, ...] = (),
    target: dict[str, Any] | None = None,
    stop: threading.Event | None = None,
    on_progress: Any = None,
    **behaviour: Any,
) -> tuple[LoadOutcome, list[Truth]]:
    shape = {"ttft_ms": 10.0, "itl_ms": 2.0, **behaviour}
    made = Behaviour(**shape, faults=tuple(map(Fault.parse, faults)))
    with MockServer(made) as server:
        outcome = run_load(
            Target(base_url=server.url, model="mock", **(target or {})),
            source or jobs(),
            load,
            stop=stop,
            on_progress=on_progress,
        )
        return outcome, list(server.truth)


def peak(outcome: LoadOutcome) -> int:
    moments = [(r.dispatched_s, 1) for r in outcome.records]
    moments += [(r.ended_s, -1) for r in outcome.records]
    return max(itertools.accumulate(step for _, step in sorted(moments)))


def test_records_agree_with_the_server() -> None:
    outcome, truth = measure(Load(concurrency=3, num_requests=12), tokens_per_chunk=2)
    assert sorted(r.index for r in outcome.records) == list(range(12))
    assert not outcome.interrupted
    assert peak(outcome) == 3
    by_prompt = {t.prompt: t for t in truth}
    for record in outcome.records:
        told = by_prompt[f"job {record.index} turn 0"]
        assert record.error is None, record
        assert record.token_counts == told.chunk_tokens == [2, 2, 1]
        assert record.counted_by == "continuous_usage"
        assert (record.input_tokens, record.output_tokens) == (told.prompt_tokens, 5)
        assert (record.asked_input, record.asked_output) == (3, 5)
        assert record.finish_reason == "length"
        assert record.text is None
        moments = [record.intended_s, record.dispatched_s, record.sent_s, *record.token_times_s]
        assert moments == sorted(moments)
        assert record.token_times_s[-1] <= record.ended_s
        # One clock: nothing is read before it was written.
        sent = [moment - outcome.started_s for moment in told.chunk_s]
        assert all(ours > theirs for ours, theirs in zip(record.token_times_s, sent, strict=True))
        assert record.sent_s <= told.received_s - outcome.started_s
    assert outcome.duration_s == max(r.ended_s for r in outcome.records)
    health = outcome.health
    assert health.workers == len(health.cpu_share) == 1
    assert health.chunks_per_s > 0
    assert health.reason


def test_a_place_is_free_when_its_job_ended() -> None:
    outcome, _ = measure(Load(concurrency=1, num_requests=4))
    first, *rest = outcome.records
    assert first.intended_s == 0
    for before, after in zip(outcome.records, rest, strict=False):
        assert before.ended_s <= after.intended_s <= after.dispatched_s


ENDS = [
    ("http:503", "http", 503, "the mock refuses this one", 0),
    ("event:3", "stream", None, "the mock fails here", 3),
    ("close:3", "early_close", None, "without [DONE]", 3),
    ("cut:3", "early_close", None, "closed the connection", 3),
    ("reset:2", "early_close", None, "reset", 2),
    ("garbage:3", "malformed", None, "JSON", 3),
    ("hang:2", "timeout", None, "within 0.3 s", 2),
    ("hang:0", "timeout", None, "within 0.3 s", 0),
    ("empty", "no_tokens", None, "without a token", 0),
    ("html", "malformed", None, "text/html", 0),
]


@pytest.mark.parametrize(("fault", "kind", "status", "message", "tokens"), ENDS)
def test_each_failure_has_its_kind(
    fault: str, kind: str, status: int | None, message: str, tokens: int
) -> None:
    source = jobs()
    outcome, _ = measure(
        Load(concurrency=2, num_requests=4),
        source,
        faults=(f"{fault}@every=2",),
        target={"timeout_s": 0.3},
    )
    failed = [r for r in outcome.records if r.error is not None]
    assert len(failed) == 2
    for record in failed:
        assert (record.error, record.status) == (kind, status)
        assert message in record.message
        assert "\n" not in record.message
        assert len(record.token_times_s) == tokens
        assert record.ended_s >= record.sent_s > 0
    assert len([r for r in outcome.records if r.error is None]) == 2


def test_a_reset_before_the_answer_is_no_connection() -> None:
    outcome, _ = measure(Load(concurrency=4, num_requests=4), faults=("reset:0@2",))
    assert Counter(r.error for r in outcome.records) == {None: 3, "connect": 1}


@pytest.mark.parametrize("after", [1, 2])
def test_a_stale_connection_is_no_error(after: int) -> None:
    outcome, truth = measure(Load(concurrency=2, num_requests=12), close_after=after)
    assert all(r.error is None for r in outcome.records)
    assert len([t for t in truth if t.outcome == "ok"]) == 12


def test_connections_that_end_while_idle_are_replaced() -> None:
    arrivals = [0.0, 0.15, 0.3]
    outcome, truth = measure(Load(arrivals_s=arrivals), idle_close_ms=20.0)
    assert [r.error for r in outcome.records] == [None] * 3
    assert len(truth) == 3


@pytest.mark.parametrize(
    ("after_s", "used", "error"), [(0.1, 2, None), (2, 2, "connect"), (0.1, 1, "connect")]
)
def test_only_a_prompt_loss_of_a_used_connection_is_stale(
    after_s: float, used: int, error: str | None
) -> None:
    """A server that thinks for two seconds and then dies has seen the request."""

    class Lost:
        def __init__(self) -> None:
            self.used = used

        def send(self, request: bytes, sink: Exchange) -> None:
            sink.on_written(100.0)

    async def run() -> Exchange:
        one = Exchange(RequestRecord(index=0), 90.0, False, lambda count: None)
        one.send(b"", cast(Connection, Lost()), 600.0)
        one.on_lost(100.0 + after_s, "reset", False)
        assert await one.done == ("stale" if error is None else "ended")
        return one

    assert asyncio.run(run()).record.error == error


def test_the_form_of_the_stream_does_not_matter() -> None:
    outcome, _ = measure(
        Load(concurrency=2, num_requests=4),
        crlf=True,
        comments=True,
        multiline=True,
        split_bytes=5,
        finish_apart=True,
    )
    assert [(r.error, r.output_tokens) for r in outcome.records] == [(None, 5)] * 4


@pytest.mark.parametrize(
    ("usage", "counted", "tokens"), [("final", "usage", 5), ("none", "chunks", None)]
)
def test_servers_without_continuous_usage(usage: str, counted: str, tokens: int | None) -> None:
    source = jobs(chat=True)
    outcome, truth = measure(
        Load(concurrency=1, num_requests=2),
        source,
        target={"endpoint": "chat"},
        usage=usage,
        opening_ms=1.0,
        ttft_ms=20.0,
    )
    for record, told in zip(outcome.records, truth, strict=True):
        assert (record.counted_by, record.output_tokens) == (counted, tokens)
        assert told.opening_s is not None
        # The role-only chunk came long before and is no token.
        assert record.token_times_s[0] + outcome.started_s >= told.chunk_s[0]
        assert len(record.token_times_s) == 5


def test_the_open_loop_keeps_the_arrivals() -> None:
    arrivals = [0.0, 0.03, 0.03, 0.11]
    outcome, _ = measure(Load(arrivals_s=arrivals), ttft_ms=60)
    assert [r.intended_s for r in outcome.records] == arrivals
    assert [r.index for r in outcome.records] == [0, 1, 2, 3]
    assert all(r.dispatched_s >= r.intended_s for r in outcome.records)


def test_waits_at_the_cap_are_recorded_and_not_the_clients() -> None:
    outcome, _ = measure(Load(arrivals_s=[0.0] * 4, max_in_flight=1), ttft_ms=100)
    assert peak(outcome) == 1
    waits = [r.dispatched_s - r.intended_s for r in outcome.records]
    assert waits == sorted(waits)
    assert waits[-1] > 3 * 0.1
    assert outcome.health.send_delay_p99_ms < waits[-1] * 1000 / 2


@pytest.mark.parametrize("chat", [False, True])
def test_a_turn_holds_what_was_said_before(chat: bool) -> None:
    source = jobs(turns=3, chat=chat, delay_s=0.02, tokens=2)
    target = {"endpoint": "chat" if chat else "completions"}
    outcome, truth = measure(Load(concurrency=1, num_requests=2), source, target=target)
    assert [(r.index, r.turn) for r in outcome.records] == [
        (i, t) for i in (0, 1) for t in range(3)
    ]
    for before, after in itertools.pairwise(outcome.records):
        if after.turn:
            assert after.intended_s == pytest.approx(before.ended_s + 0.02)
            assert after.dispatched_s >= after.intended_s
    second = truth[1].prompt
    if chat:
        assert second.startswith("<|u|>job 0 turn 0\n\n<|a|> tok tok\n\n<|u|>job 0 turn 1")
    else:
        assert second == "job 0 turn 0 tok tokjob 0 turn 1"


def test_a_failed_turn_is_the_last_of_its_job() -> None:
    source = jobs(turns=3)
    outcome, _ = measure(Load(concurrency=1, num_requests=2), source, faults=("http:500@1",))
    told = [(r.index, r.turn, r.error) for r in outcome.records]
    assert told == [(0, 0, None), (0, 1, "http"), (1, 0, None), (1, 1, None), (1, 2, None)]


def test_a_timed_run_gives_up_what_is_in_flight() -> None:
    source = jobs(tokens=1000)
    outcome, _ = measure(Load(concurrency=3, duration_s=0.3), source)
    assert outcome.duration_s == 0.3
    assert not outcome.interrupted
    assert [r.error for r in outcome.records] == ["cancelled"] * 3
    assert all(r.token_times_s and r.output_tokens for r in outcome.records)


def test_stop_keeps_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "STOP_GRACE_S", 0.1)
    stop = threading.Event()

    def on_progress(progress: Progress) -> None:
        if progress.done >= 2:
            stop.set()

    def source() -> Iterator[Job]:
        yield from itertools.islice(jobs(), 2)
        yield from itertools.islice(jobs(tokens=10_000), 2, None)

    outcome, _ = measure(
        Load(concurrency=2), source(), stop=stop, on_progress=on_progress, itl_ms=5.0
    )
    assert outcome.interrupted
    assert [r.error for r in outcome.records] == [None, None, "cancelled", "cancelled"]
    assert all(r.token_times_s for r in outcome.records)


def test_progress_and_callbacks() -> None:
    seen: list[Progress] = []
    order: list[str] = []
    with MockServer(Behaviour(ttft_ms=10, itl_ms=40)) as server:
        outcome = run_load(
            Target(base_url=server.url, model="mock"),
            jobs(tokens=10),
            Load(concurrency=2, num_requests=4),
            on_progress=seen.append,
            on_start=lambda: order.append(f"start {len(server.truth)}"),
            on_end=lambda: order.append(f"end {len(server.truth)}"),
        )
    assert order == ["start 0", "end 4"]
    assert seen[-1].done == 4
    assert seen[-1].tokens == 40
    assert sum(len(p.recent) for p in seen) == len(outcome.records) == 4
    assert {p.phase for p in seen[:-1]} == {"measuring", "draining"}
    assert all(p.total == 4 and p.failed == 0 for p in seen)


def test_progress_counts_requests_not_jobs() -> None:
    seen: list[Progress] = []
    measure(Load(concurrency=1, num_requests=3), jobs(turns=4), on_progress=seen.append)
    assert {p.total for p in seen} == {12}
    assert seen[-1].done == 12
    measure(Load(concurrency=1, duration_s=0.05), on_progress=seen.append)
    assert seen[-1].total is None


def test_several_workers_share_the_places() -> None:
    outcome, _ = measure(Load(concurrency=7, num_requests=40, workers=3))
    assert sorted(r.index for r in outcome.records) == list(range(40))
    assert {r.worker for r in outcome.records} == {0, 1, 2}
    assert outcome.health.workers == 3
    assert peak(outcome) <= 7


def test_a_second_worker_comes_when_one_saturates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "GROW_AT", 0.0)
    monkeypatch.setattr(crew, "GROW_WINDOW_S", 0.2)
    monkeypatch.setattr(load, "usable_cpus", lambda: 2.0)
    monkeypatch.setattr(load, "_needed", {})
    stop = threading.Event()
    of_second: list[int] = []

    def on_progress(progress: Progress) -> None:
        of_second.extend(r.index for r in progress.recent if r.worker == 1)
        if len(of_second) > 100:
            stop.set()

    load_ = Load(concurrency=6, duration_s=20.0)
    outcome, _ = measure(load_, stop=stop, on_progress=on_progress)
    assert outcome.health.workers == 2
    assert {r.worker for r in outcome.records} == {0, 1}
    assert peak(outcome) <= 6
    # Its places became free when it got them, not when the run began.
    assert min(r.intended_s for r in outcome.records if r.worker == 1) > 0.1
    # Once balanced, each has three of the six places.
    last = sorted(outcome.records, key=lambda r: r.dispatched_s)[-60:]
    assert 20 < sum(r.worker for r in last) < 40
    # The next run begins with what this one needed.
    again, _ = measure(Load(concurrency=6, num_requests=2), target={})
    assert again.health.workers == 1  # another server
    assert list(load._needed.values()) == [(6.0, 2)]


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> list[pool.WorkerProcess]:
    """Every client process that a run took."""
    taken: list[pool.WorkerProcess] = []
    take = pool.take

    def watched() -> pool.WorkerProcess:
        taken.append(take())
        return taken[-1]

    monkeypatch.setattr(pool, "take", watched)
    return taken


def test_a_client_process_that_dies_is_one_line(processes: list[pool.WorkerProcess]) -> None:
    def on_progress(progress: Progress) -> None:
        os.kill(processes[0].pid, signal.SIGKILL)

    with pytest.raises(BenchError, match=r"a client process ended \(exit code -9\)"):
        measure(Load(concurrency=1), jobs(tokens=10_000), on_progress=on_progress)
    assert not processes[0].alive


def test_processes_are_kept_for_the_next_run(processes: list[pool.WorkerProcess]) -> None:
    measure(Load(concurrency=1, num_requests=1))
    measure(Load(concurrency=1, num_requests=1))
    assert processes[0] is processes[1]
    os.kill(processes[0].pid, signal.SIGKILL)
    processes[0]._process.wait()
    outcome, _ = measure(Load(concurrency=1, num_requests=1))
    assert outcome.records[0].error is None
    assert processes[2] is not processes[0]


def test_what_goes_wrong_in_a_callback_or_a_workload_ends_the_run(
    processes: list[pool.WorkerProcess],
) -> None:
    def broken() -> Iterator[Job]:
        yield from itertools.islice(jobs(), 3)
        raise BenchError("prompts.jsonl, line 4: no JSON")

    with pytest.raises(BenchError, match="line 4"):
        measure(Load(concurrency=1), broken())
    with pytest.raises(KeyboardInterrupt):
        measure(Load(concurrency=1), on_progress=lambda progress: _interrupt())
    assert not any(process.alive for process in processes)


def _interrupt() -> None:
    raise KeyboardInterrupt


def test_texts_are_kept_on_request() -> None:
    outcome, _ = measure(Load(concurrency=1, num_requests=1, keep_text=True))
    assert outcome.records[0].text == " tok" * 5


def test_headers_key_and_body_arrive() -> None:
    target = {
        "api_key": "secret",
        "extra_body": {"mock": {"ttft_ms": 1}, "top_k": 3},
        "headers": {"X-One": "1"},
    }
    outcome, _ = measure(Load(concurrency=1, num_requests=1), target=target, key="secret")
    assert outcome.records[0].error is None
    outcome, _ = measure(Load(concurrency=1, num_requests=1), key="secret")
    assert (outcome.records[0].error, outcome.records[0].status) == ("http", 401)


@pytest.mark.parametrize("limit", [{"num_requests": 6}, {"duration_s": 30.0}])
def test_nobody_there(limit: dict[str, Any]) -> None:
    target = Target(base_url="http://127.0.0.1:1", model="m")
    with pytest.raises(ServerUnreachable, match=r"127\.0\.0\.1:1: Connection refused"):
        run_load(target, jobs(), Load(concurrency=4, **limit))


def test_a_server_that_dies_is_an_error_of_requests() -> None:
    server = MockServer(Behaviour(ttft_ms=5, itl_ms=20))
    thread = threading.Thread(target=server.run)
    thread.start()
    stopped: list[bool] = []

    def on_progress(progress: Progress) -> None:
        if progress.tokens and not stopped:
            stopped.append(True)
            server.stop()
            thread.join()

    outcome = run_load(
        Target(base_url=server.url, model="mock"),
        jobs(tokens=100),
        Load(concurrency=2, num_requests=4),
        on_progress=on_progress,
    )
    assert Counter(r.error for r in outcome.records) == {"early_close": 2, "connect": 2}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (Load(), "either"),
        (Load(concurrency=1, arrivals_s=[0.0]), "either"),
        (Load(concurrency=0), "concurrency must be at least 1, got 0"),
        (Load(concurrency=1, duration_s=0.0), "duration"),
        (Load(arrivals_s=[1.0, 0.5]), "arrival times"),
        (Load(arrivals_s=[-1.0]), "arrival times"),
    ],
)
def test_loads_that_cannot_be(bad: Load, message: str) -> None:
    with pytest.raises(BenchError, match=message):
        run_load(Target(base_url="http://127.0.0.1:1", model="m"), jobs(), bad)


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (Job(3, []), "job 3 has no turns"),
        (Job(3, [Turn(messages=[])]), "job 3, turn 0 has messages, but .* takes a prompt"),
        (Job(3, [Turn(prompt=[1]), Turn(prompt=[2])]), "several turns of token ids"),
    ],
)
def test_jobs_that_cannot_be_sent(job: Job, message: str) -> None:
    target = Target(base_url="http://127.0.0.1:1", model="m")
    with pytest.raises(BenchError, match=message):
        run_load(target, iter([job]), Load(concurrency=1))
