"""Every metric against its definition, written out the slow way, on random records."""

from __future__ import annotations

import math

import numpy as np
import pytest
from fake_load import outcome, request
from hypothesis import given, settings
from hypothesis import strategies as st

from atom.bench.errors import BenchError
from atom.bench.metrics import MetricOptions, parse_goodput, summarize
from atom.bench.metrics.summary import causes
from atom.bench.types import RequestRecord

GAPS = st.floats(0.0001, 2.0)


@st.composite
def records(draw: st.DrawFn) -> RequestRecord:
    index = draw(st.integers(0, 30))
    intended = draw(st.floats(0, 5))
    dispatched = intended + draw(st.floats(0, 0.5))
    sent = dispatched + draw(st.floats(0, 0.01))
    times, now = [], sent
    for gap in draw(st.lists(GAPS, min_size=1, max_size=6)):
        now += gap
        times.append(now)
    counts = [draw(st.integers(1, 4)) for _ in times]
    told = draw(st.sampled_from(["continuous_usage", "continuous_usage", "usage"]))
    record = RequestRecord(
        index=index,
        intended_s=intended,
        dispatched_s=dispatched,
        sent_s=sent,
        ended_s=now + draw(st.floats(0, 0.1)),
        first_text_s=draw(st.sampled_from([None, times[0], times[-1]])),
        token_times_s=times,
        token_counts=counts if told == "continuous_usage" else [1] * len(times),
        counted_by=told,
        input_tokens=draw(st.integers(1, 500)),
        output_tokens=sum(counts),
        cached_tokens=draw(st.sampled_from([None, 0, 7])),
        server=draw(st.sampled_from([{}, {"queue_s": 0.25}])),
    )
    kind = draw(st.sampled_from([None, None, None, "http", "early_close", "cancelled"]))
    if kind is not None:
        record.error, record.output_tokens = kind, None
        record.status = 503 if kind == "http" else None
    return record


def expanded(done: list[RequestRecord], closed: bool) -> dict[str, list[float]]:
    """The samples of each latency, in milliseconds, one entry per token where tokens count."""
    found: dict[str, list[float]] = {}

    def add(what: str, seconds: float, times: int = 1) -> None:
        found.setdefault(what, []).extend([seconds * 1000] * times)

    for r in done:
        start = r.sent_s if closed else r.intended_s
        first, last = r.token_times_s[0], r.token_times_s[-1]
        add("ttft", first - start)
        add("e2el", last - start)
        add("client_queue", r.sent_s - r.intended_s)
        if r.output_tokens > 1:
            add("tpot", (last - first) / (r.output_tokens - 1))
        if r.first_text_s is not None:
            add("first_text", r.first_text_s - start)
        if "queue_s" in r.server:
            add("server_queue", r.server["queue_s"])
        for before, after, count in zip(
            r.token_times_s, r.token_times_s[1:], r.token_counts[1:], strict=False
        ):
            add("chunk_gap", after - before)
            add("itl", (after - before) / count, count)
    return found


def agree(ours: float | None, theirs: float) -> None:
    assert ours is not None
    assert math.isclose(ours, theirs, rel_tol=1e-7, abs_tol=1e-7), (ours, theirs)


@given(st.lists(records(), min_size=1, max_size=12), st.booleans())
@settings(max_examples=150, deadline=None)
def test_latencies_by_definition(made: list[RequestRecord], closed: bool) -> None:
    for r in made:  # with usage alone the tokens of a chunk are not known; the test below has them
        r.counted_by, r.output_tokens = "continuous_usage", sum(r.token_counts)
    result = summarize(
        outcome(made), MetricOptions(closed=closed, percentiles=(25.0, 99.9), stationary=False)
    )
    samples = expanded([r for r in made if r.error is None], closed)
    for what in ("ttft", "tpot", "itl", "e2el", "client_queue", "server_queue", "first_text",
                 "chunk_gap"):  # fmt: skip
        values = samples.get(what)
        if values is None:
            assert f"mean_{what}_ms" not in result.metrics
            continue
        agree(result.metrics[f"mean_{what}_ms"], float(np.mean(values)))
        agree(result.metrics[f"median_{what}_ms"], float(np.median(values)))
        agree(result.metrics[f"std_{what}_ms"], float(np.std(values)))
        agree(result.metrics[f"p25_{what}_ms"], float(np.percentile(values, 25)))
        agree(result.metrics[f"p99.9_{what}_ms"], float(np.percentile(values, 99.9)))


@given(st.lists(records(), min_size=1, max_size=12))
@settings(max_examples=150, deadline=None)
def test_totals_by_definition(made: list[RequestRecord]) -> None:
    duration = max(r.ended_s for r in made)
    m = summarize(outcome(made), MetricOptions(closed=True, num_gpus=4)).metrics
    done = [r for r in made if r.error is None]
    failed = [r for r in made if r.error not in (None, "cancelled")]
    assert m["completed"] == len(done)
    assert m["failed"] == len(failed)
    if done or failed:
        agree(m["error_rate"], len(failed) / (len(done) + len(failed)))
    agree(m["request_throughput"], len(done) / duration)
    agree(m["output_throughput"], sum(r.output_tokens for r in done) / duration)
    both = sum(r.output_tokens + r.input_tokens for r in done)
    agree(m["total_token_throughput"], both / duration)
    if done:
        agree(m["mean_output_tokens"], sum(r.output_tokens for r in done) / len(done))
        chunks = sum(len(r.token_times_s) for r in done)
        agree(m["tokens_per_chunk"], sum(r.output_tokens for r in done) / chunks)
    cached = [r for r in done if r.cached_tokens is not None]
    if cached:
        share = sum(r.cached_tokens for r in cached) / sum(r.input_tokens for r in cached)
        agree(m["cached_token_share"], share)
    stay = sum(r.ended_s - r.sent_s for r in made)
    agree(m["mean_concurrency"], stay / duration)
    moments = [r.sent_s for r in made]
    agree(m["peak_concurrency"], max(sum(r.sent_s <= t < r.ended_s for r in made) for t in moments))
    for name in ("output_throughput", "total_token_throughput"):
        steady = m[f"steady_{name}"]
        agree(m[f"{name}_per_gpu"], (m[name] if steady is None else steady) / 4)


@given(st.lists(records(), min_size=1, max_size=12), st.floats(50, 3000), st.floats(50, 1000))
@settings(max_examples=100, deadline=None)
def test_goodput_by_definition(made: list[RequestRecord], ttft: float, tpot: float) -> None:
    options = MetricOptions(closed=False, goodput={"ttft": ttft, "tpot": tpot})
    m = summarize(outcome(made), options).metrics
    done = [r for r in made if r.error is None]
    everyone = len([r for r in made if r.error != "cancelled"])
    good = 0
    for r in done:
        late = (r.token_times_s[0] - r.intended_s) * 1000 > ttft
        decode = r.token_times_s[-1] - r.token_times_s[0]
        slow = r.output_tokens > 1 and decode / (r.output_tokens - 1) * 1000 > tpot
        good += not late and not slow
    if everyone:
        agree(m["request_goodput"], good / max(r.ended_s for r in made))
        agree(m["goodput_share"], good / everyone)


def test_usage_alone_is_spread_over_the_chunks() -> None:
    # 12 tokens in 4 chunks a second apart: a third of a second per token.
    r = request(tokens=4, itl=1.0, counted_by="usage", output_tokens=12)
    m = summarize(outcome([r]), MetricOptions(closed=True)).metrics
    assert m["mean_itl_ms"] == pytest.approx(1000 / 3)
    assert m["mean_chunk_gap_ms"] == pytest.approx(1000)
    assert m["tokens_per_chunk"] == 3
    assert m["mean_tpot_ms"] == pytest.approx(3000 / 11)


def test_tokens_are_never_guessed_from_chunks() -> None:
    told = request(0)
    untold = request(1, counted_by="chunks", output_tokens=None, input_tokens=None)
    result = summarize(outcome([told, untold]), MetricOptions(closed=True, goodput={"tpot": 99.0}))
    m = result.metrics
    for name in ("output_throughput", "total_token_throughput", "total_output_tokens",
                 "mean_output_tokens", "tokens_per_chunk", "goodput_share",
                 "output_throughput_per_gpu"):  # fmt: skip
        assert m[name] is None, name
    assert m["mean_ttft_ms"] == pytest.approx(100)  # what chunks do tell is told
    assert m["mean_chunk_gap_ms"] == pytest.approx(10)
    assert "no usage for 1 of 2" in " ".join(result.notes)


def test_a_single_token_is_never_too_slow() -> None:
    one = request(tokens=1)
    limits = {"tpot": 0.001, "itl": 0.001}
    m = summarize(outcome([one]), MetricOptions(closed=True, goodput=limits)).metrics
    assert m["goodput_share"] == 1.0
    assert "mean_tpot_ms" not in m


def test_open_loop_counts_from_the_intended_moment() -> None:
    """A request that waited two seconds in the client was two seconds late for its user."""
    late = request(at=1.0, ttft=0.1, intended_s=0.0, dispatched_s=0.9, sent_s=1.0)
    opened = summarize(outcome([late]), MetricOptions(closed=False)).metrics
    closed = summarize(outcome([late]), MetricOptions(closed=True)).metrics
    assert opened["mean_ttft_ms"] == pytest.approx(1100)
    assert closed["mean_ttft_ms"] == pytest.approx(100)
    assert opened["mean_client_queue_ms"] == closed["mean_client_queue_ms"] == pytest.approx(1000)


def test_given_up_requests_are_no_errors_and_are_told() -> None:
    gone = request(1, error="cancelled", output_tokens=None, at=9.0)
    result = summarize(outcome([request(0), gone]), MetricOptions(closed=True))
    assert result.metrics["failed"] == 0
    assert result.errors == {}
    assert result.metrics["completed"] == 1
    assert "1 requests were given up" in result.notes[0]


def failure(index: int, error: str, message: str = "", status: int | None = None) -> RequestRecord:
    return RequestRecord(index=index, error=error, status=status, message=message, ended_s=1.0)


def test_errors_by_cause_lose_none() -> None:
    failed = [failure(i, "http", f"request req-{i:08x}0000 is late", 503) for i in range(20)]
    failed += [failure(i, "connect") for i in range(5)]
    assert causes(failed) == {"http 503: request req-# is late": 20, "connect": 5}
    names = "abcdefghijklmnopqrstuvwxyz"
    many = [failure(i, "stream", f"fault {c}") for i, c in enumerate(names)]
    told = causes(many)
    assert len(told) == 13
    assert told["stream: other messages"] == 14
    assert sum(told.values()) == len(names)


@given(st.lists(records(), max_size=20))
@settings(max_examples=50, deadline=None)
def test_failures_sum_up(made: list[RequestRecord]) -> None:
    result = summarize(outcome(made), MetricOptions(closed=True))
    assert sum(result.errors.values()) == result.metrics["failed"]


def test_no_records_and_all_failed_have_no_latencies() -> None:
    for made in ([], [failure(0, "timeout")]):
        result = summarize(outcome(made), MetricOptions(closed=True))
        assert not [name for name in result.metrics if name.endswith("_ms")]
        assert result.metrics["completed"] == 0
        assert result.window_s is None


def test_objectives_bring_their_percentiles_and_goodput() -> None:
    options = MetricOptions(
        closed=True,
        percentiles=(50.0,),
        objectives={"p97.5_ttft_ms": 150.0, "p99_ttft_ms": 120.0, "output_throughput": 1.0},
    )
    assert options.all_percentiles() == (50.0, 97.5, 99.0)
    assert options.goodput_limits() == {"ttft": 120.0}
    m = summarize(outcome([request(0), request(1, ttft=0.13)]), options).metrics
    assert m["p97.5_ttft_ms"] == pytest.approx(100 + 30 * 0.975)
    assert m["goodput_share"] == 0.5


def test_server_page() -> None:
    server = {"acceptance_rate": 0.7, "accept_length": 2.4, "mean_server_queue_ms": 5.0}
    m = summarize(outcome([request()]), MetricOptions(closed=True, server=server)).metrics
    assert (m["acceptance_rate"], m["accept_length"], m["mean_server_queue_ms"]) == (0.7, 2.4, 5.0)
    told = request(server={"queue_s": 0.002})  # the answers themselves know it better
    m = summarize(outcome([told]), MetricOptions(closed=True, server=server)).metrics
    assert m["mean_server_queue_ms"] == pytest.approx(2.0)


def test_per_user_and_without_gpus() -> None:
    m = summarize(outcome([request(itl=0.02)]), MetricOptions(closed=True)).metrics
    assert m["output_throughput_per_user"] == pytest.approx(50)
    assert m["output_throughput_per_gpu"] is None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (["ttft:500", "tpot:50"], {"ttft": 500.0, "tpot": 50.0}),
        (["ttft:500 tpot:50.5"], {"ttft": 500.0, "tpot": 50.5}),
        (["e2el:1000,itl:20"], {"e2el": 1000.0, "itl": 20.0}),
    ],
)
def test_goodput_flag(text: list[str], found: dict[str, float]) -> None:
    assert parse_goodput(text) == found


@pytest.mark.parametrize("text", ["ttft", "ttft:", "ttft:0", "ttft:-1", "tttf:5", "ttft:5s"])
def test_goodput_flag_refuses(text: str) -> None:
    with pytest.raises(BenchError, match="--goodput"):
        parse_goodput([text])


@pytest.mark.parametrize("percent", [-1.0, 100.0, 101.0])
def test_percentiles_refuse(percent: float) -> None:
    with pytest.raises(BenchError, match="percentile"):
        MetricOptions(closed=True, percentiles=(percent,))
