"""Client and metrics against the mock: what is said of a run equals what the server really did.

Nothing here is timed: moments are compared by cause and effect on the machine's one clock (a chunk
is never seen before it was sent), and everything else is counts. How close moments are to the truth
is `benchmarks/bench_accuracy.py`.
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from typing import Any

import pytest
from bench_helpers import make_jobs, measured, paired, run_jobs
from mock_behaviour import Behaviour, Fault
from mock_server import MockServer, Truth

from atom.bench.errors import ServerUnreachable
from atom.bench.metrics import MetricOptions, summarize
from atom.bench.types import Job, Load, LoadOutcome, RequestRecord, Turn

QUICK = Behaviour(ttft_ms=10, itl_ms=2)


def check_causality(outcome: LoadOutcome, record: RequestRecord, truth: Truth) -> None:
    """Sent before it was received; each chunk seen after it was sent."""
    zero = outcome.started_s
    assert record.intended_s <= record.dispatched_s <= record.sent_s <= record.ended_s
    assert zero + record.dispatched_s <= truth.arrived_s
    assert record.token_times_s == sorted(record.token_times_s)
    for seen, sent in zip(record.token_times_s, truth.chunk_s, strict=True):
        assert zero + seen >= sent


FORMS: list[dict[str, Any]] = [
    {},
    {"tokens_per_chunk": 3},
    {"tokens_per_chunk": 2, "hold_tokens": 5},
    {"empty_first": True, "finish_apart": True},
    {"crlf": True, "comments": True, "multiline": True},
    {"split_bytes": 11},
    {"split_bytes": 7, "crlf": True},
    {"batched": True, "cached_tokens": 2},
    {"opening_ms": 5, "reasoning_tokens": 4},
    {"done": False},
]


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_every_form_of_stream_counts_the_same(endpoint: Any) -> None:
    """Tokens are usage's, chunks weigh what they carry, an opening chunk is no token."""
    bodies = [{"mock": form} for form in FORMS]
    jobs = make_jobs(2 * len(FORMS), 9, endpoint, bodies)
    outcome, pairs = measured(QUICK, jobs, Load(concurrency=4, workers=1), endpoint=endpoint)
    assert len(pairs) == 2 * len(FORMS)
    for record, truth in pairs:
        assert (record.error, record.message, truth.outcome) == (None, "", "ok")
        assert (record.output_tokens, record.input_tokens) == (9, truth.prompt_tokens)
        assert record.counted_by == "continuous_usage"
        assert record.token_counts == truth.chunk_tokens
        assert record.finish_reason == "length"
        check_causality(outcome, record, truth)
        form = FORMS[record.index % len(FORMS)]
        assert record.cached_tokens == form.get("cached_tokens")
    result = summarize(outcome, MetricOptions(closed=True))
    assert result.metrics["completed"] == result.metrics["total_output_tokens"] / 9 == len(pairs)
    chunks = sum(len(truth.chunk_s) for _, truth in pairs)
    assert result.metrics["tokens_per_chunk"] == pytest.approx(9 * len(pairs) / chunks)


@pytest.mark.parametrize(
    ("usage", "counted", "output"), [("final", "usage", 8), ("none", "chunks", None)]
)
def test_what_a_server_does_not_tell_is_not_invented(usage: str, counted: str, output: Any) -> None:
    behaviour = Behaviour(ttft_ms=5, itl_ms=1, usage=usage, tokens_per_chunk=2)
    outcome, pairs = measured(behaviour, make_jobs(6), Load(concurrency=3, workers=1))
    for record, truth in pairs:
        assert (record.counted_by, record.output_tokens) == (counted, output)
        assert len(record.token_times_s) == len(truth.chunk_s) == 4
        check_causality(outcome, record, truth)
    metrics = summarize(outcome, MetricOptions(closed=True)).metrics
    assert metrics["total_output_tokens"] == (None if output is None else 48)
    assert metrics["output_throughput"] is None or usage == "final"


FAULTS = {
    "http:503": ("http", 503, 0),
    "http:429": ("http", 429, 0),
    "event:3": ("stream", None, 3),
    "close:3": ("early_close", None, 3),
    "cut:3": ("early_close", None, 3),
    "reset:0": ("connect", None, 0),
    "garbage:3": ("malformed", None, 3),
    "empty": ("no_tokens", None, 0),
    "html": ("malformed", None, 0),
    "hang:3": ("timeout", None, 3),
    "hang:0": ("timeout", None, 0),
}


def test_every_fault_is_recorded_as_what_it_is() -> None:
    """Each second request fails in its own way; the others are untouched by it."""
    bodies: list[dict[str, Any]] = []
    for fault in FAULTS:
        bodies += [{"mock": {"fault": fault}}, {}]
    load = Load(concurrency=len(bodies), workers=1)
    outcome, pairs = measured(QUICK, make_jobs(len(bodies), bodies=bodies), load, timeout_s=2.0)
    assert sorted(record.index for record, _ in pairs) == list(range(len(bodies)))
    for record, truth in pairs:
        if record.index % 2:
            assert (record.error, record.output_tokens) == (None, 8)
            continue
        kind, status, tokens = FAULTS[[*FAULTS][record.index // 2]]
        said = (record.error, record.status, sum(record.token_counts))
        assert said == (kind, status, tokens), truth.outcome
        assert record.message
        assert "\n" not in record.message
    result = summarize(outcome, MetricOptions(closed=True))
    assert result.metrics["failed"] == result.metrics["completed"] == len(FAULTS)
    assert sum(result.errors.values()) == len(FAULTS)
    assert result.metrics["error_rate"] == 0.5


@pytest.mark.parametrize("rude", [{"close_after": 1}, {"idle_close_ms": 1.0}])
def test_a_connection_that_went_stale_is_no_error(rude: dict[str, Any]) -> None:
    behaviour = Behaviour(ttft_ms=3, itl_ms=1, **rude)
    turns = [Turn(prompt="<0> tok", max_tokens=2), Turn(prompt=" tok", max_tokens=2, delay_s=0.01)]
    with MockServer(behaviour) as server:
        jobs = iter([Job(0, turns * 3), *list(make_jobs(8, 2))[1:]])
        outcome = run_jobs(server, jobs, Load(concurrency=2, workers=1))
    assert [r.error for r in outcome.records] == [None] * 13


def test_turns_carry_what_was_said_before() -> None:
    turns = [
        Turn(messages=[{"role": "user", "content": "<0>"}], max_tokens=2),
        Turn(messages=[{"role": "user", "content": "and"}], max_tokens=3),
    ]
    with MockServer(QUICK) as server:
        outcome = run_jobs(server, iter([Job(0, turns)]), Load(concurrency=1), "chat")
    assert [(r.turn, r.output_tokens) for r in outcome.records] == [(0, 2), (1, 3)]
    assert [m["content"] for m in server.seen[1]["messages"]] == ["<0>", " tok tok", "and"]
    assert outcome.records[1].input_tokens == server.truth[1].prompt_tokens
    assert outcome.records[1].intended_s >= outcome.records[0].ended_s


def test_arrivals_are_kept_and_a_cap_is_not_hidden() -> None:
    """The moments that were asked for stay in the records; latency counts from them."""
    arrivals = [0.0, 0.001, 0.002, 0.05, 0.051]
    load = Load(arrivals_s=arrivals, max_in_flight=1, workers=1)
    outcome, pairs = measured(QUICK, make_jobs(5), load)
    ordered = sorted(pairs, key=lambda pair: pair[0].index)
    assert [record.intended_s for record, _ in ordered] == arrivals
    for (before, _), (record, truth) in itertools.pairwise(ordered):
        assert record.sent_s >= before.ended_s
        check_causality(outcome, record, truth)
    metrics = summarize(outcome, MetricOptions(closed=False)).metrics
    assert metrics["peak_concurrency"] is not None
    second = ordered[1][0]
    waited = (second.token_times_s[-1] - second.intended_s) * 1e3
    assert metrics["p99_e2el_ms"] is not None
    assert metrics["p99_e2el_ms"] >= waited - 1e-6 or waited < metrics["median_e2el_ms"]


def test_the_server_s_queue_is_its_own_word() -> None:
    behaviour = Behaviour(ttft_ms=5, itl_ms=1, slots=1)
    outcome, pairs = measured(behaviour, make_jobs(5, 3), Load(concurrency=5, workers=1))
    for record, truth in pairs:
        assert record.server["queue_s"] == pytest.approx(
            truth.started_s - truth.arrived_s, abs=1e-6
        )
    metrics = summarize(outcome, MetricOptions(closed=True)).metrics
    waits = [truth.started_s - truth.arrived_s for _, truth in pairs]
    assert metrics["mean_server_queue_ms"] == pytest.approx(sum(waits) / 5 * 1e3, abs=1e-3)


def test_several_workers_lose_and_double_nothing() -> None:
    jobs = make_jobs(60, 4, bodies=[{}, {}, {"mock": {"fault": "event:1"}}])
    outcome, pairs = measured(QUICK, jobs, Load(concurrency=12, workers=2))
    assert sorted(record.index for record, _ in pairs) == list(range(60))
    assert {record.worker for record, _ in pairs} == {0, 1}
    for record, truth in pairs:
        check_causality(outcome, record, truth)
    assert Counter(record.error for record, _ in pairs) == {None: 40, "stream": 20}


def test_stopping_keeps_what_was_measured() -> None:
    """After `stop` nothing new begins; what hangs is cancelled, what has ended stays."""
    stop = threading.Event()
    behaviour = Behaviour(ttft_ms=3, itl_ms=1, faults=(Fault.parse("hang:1@5"),))

    def jobs() -> Any:
        for job in make_jobs(10_000, 2):
            if job.index == 40:
                stop.set()
            yield job

    from atom.bench.client import run_load
    from atom.bench.types import Target

    with MockServer(behaviour) as server:
        target = Target(base_url=server.url, model="mock")
        outcome = run_load(target, jobs(), Load(concurrency=2, workers=1), stop=stop)
        pairs = paired(outcome, server.truth)
    assert outcome.interrupted
    assert len(outcome.records) < 1000
    errors = Counter(record.error for record, _ in pairs)
    assert errors["cancelled"] >= 1
    assert set(errors) == {None, "cancelled"}
    assert errors[None] + errors["cancelled"] == len(server.truth)


def test_nobody_there_is_one_line() -> None:
    with MockServer(QUICK) as server:
        pass
    with pytest.raises(ServerUnreachable) as error:
        run_jobs(server, make_jobs(3), Load(concurrency=1, workers=1))
    assert "\n" not in str(error.value)
    assert str(server.port) in str(error.value)
