"""Bytes -> events -> tokens: cuts anywhere, every form of a stream, every way to count."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atom.bench.client.sse import MAX_EVENT_BYTES, Event, EventParser, NotEvents
from atom.bench.client.tally import Failed, Tally, error_text
from atom.bench.types import RequestRecord

ENDS = ("\n", "\r\n", "\r")


def parse(pieces: list[bytes]) -> list[tuple[bytes, bytes]]:
    parser = EventParser()
    found = [event for piece in pieces for event in parser.feed(piece)]
    return [(e.data, e.name) if type(e) is Event else (e, b"") for e in found]


def cut(data: bytes, places: list[int]) -> list[bytes]:
    marks = [0, *sorted(p % (len(data) + 1) for p in places), len(data)]
    return [data[a:b] for a, b in pairwise(marks)]


line = st.text(alphabet='ab:{} é"', max_size=12)
event = st.tuples(
    st.lists(line, min_size=1, max_size=3),  # data lines
    st.sampled_from(["", "error", "message"]),
    st.booleans(),  # a comment before it
    st.booleans(),  # a space after the colon
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(event, max_size=6),
    st.sampled_from(ENDS),
    st.lists(st.integers(0, 10**6), max_size=12),
    st.booleans(),
)
def test_events_survive_any_cut(
    events: list[tuple[list[str], str, bool, bool]], end: str, places: list[int], bom: bool
) -> None:
    text, expected = "\ufeff" if bom else "", []
    for lines, name, comment, space in events:
        gap = " " if space or any(one.startswith(" ") for one in lines) else ""
        text += f": hello{end}" * comment
        text += f"event:{gap}{name}{end}" * bool(name)
        text += "".join(f"data:{gap}{one}{end}" for one in lines) + end
        expected.append(("\n".join(lines).encode(), name.encode()))
    # A comment alone and an unfinished event at the end are no events.
    data = text.encode() + f":{end}{end}data: unfinished".encode()
    assert parse(cut(data, places)) == expected


@pytest.mark.parametrize("end", ENDS)
def test_every_single_cut(end: str) -> None:
    data = f"data: {{}}{end}{end}: c{end}data: a{end}data: b{end}{end}".encode()
    for place in range(len(data) + 1):
        assert parse([data[:place], data[place:]]) == [(b"{}", b""), (b"a\nb", b"")]
    assert parse([bytes([byte]) for byte in data]) == [(b"{}", b""), (b"a\nb", b"")]


def test_the_fast_path_does_not_swallow_odd_events() -> None:
    assert parse([b"data: a\nid: 3\n\n"]) == [(b"a", b"")]
    assert parse([b"data: a\r\n\r\ndata: b\n\n"]) == [(b"a", b""), (b"b", b"")]
    assert parse([b"data: a\n\ndata:b\n\n", b"data: c\n\ndata: d\n\n"]) == [
        (letter, b"") for letter in (b"a", b"b", b"c", b"d")
    ]


def test_what_is_no_event_stream() -> None:
    with pytest.raises(NotEvents, match="<html>"):
        parse([b"<html>\n"])
    with pytest.raises(NotEvents, match="16 MiB"):
        parse([b"data: " + b"x" * MAX_EVENT_BYTES, b"y"])


# Tokens


def chunk(text: str | None = None, used: int | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "text": text, "finish_reason": more.pop("finish", None)}
    body: dict[str, Any] = {"choices": [choice], "usage": None, **more}
    if used is not None:
        body["usage"] = {"prompt_tokens": 7, "completion_tokens": used}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def delta(used: int | None = None, **more: Any) -> bytes:
    finish = more.pop("finish", None)
    body: dict[str, Any] = {"choices": [{"index": 0, "delta": more, "finish_reason": finish}]}
    if used is not None:
        body["usage"] = {"prompt_tokens": 7, "completion_tokens": used}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def closing(used: int, **more: Any) -> bytes:
    usage = {"prompt_tokens": 7, "completion_tokens": used, **more}
    return b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def tally(*events: bytes, keep_text: bool = True) -> RequestRecord:
    """Event i arrives at second 100 + i; the clock's zero is 100."""
    one = Tally(RequestRecord(index=0), 100.0, keep_text)
    for number, data in enumerate(events):
        one.feed(100.0 + number, data)
    one.finish(100.0 + len(events))
    return one.record


def test_continuous_usage_weighs_chunks() -> None:
    record = tally(chunk("", 0), chunk("abc", 3), chunk("", 4), chunk("", 4), chunk("z", 9), DONE)
    assert record.token_times_s == [1, 2, 4]
    assert record.token_counts == [3, 1, 5]
    assert (record.counted_by, record.output_tokens, record.input_tokens) == (
        "continuous_usage",
        9,
        7,
    )
    assert (record.first_text_s, record.ended_s, record.text) == (1, 5, "abcz")


def test_tokens_after_the_last_text_count_when_the_usage_says_so() -> None:
    record = tally(chunk("a", 1), chunk("b", 2, finish="stop"), closing(3), DONE)
    assert record.token_times_s == [0, 1, 2]
    assert sum(record.token_counts) == record.output_tokens == 3


def test_a_server_that_takes_tokens_back() -> None:
    record = tally(chunk("a", 1), chunk("b", 4), chunk("", 3, finish="stop"), DONE)
    assert (record.token_counts, record.output_tokens) == ([1, 2], 3)
    record = tally(chunk("a", 1), chunk("b", 4), closing(1), DONE)
    assert (record.token_times_s, record.token_counts) == ([0], [1])


def test_usage_at_the_end_counts_text_chunks_as_moments_only() -> None:
    record = tally(
        delta(role="assistant", content=""),
        delta(reasoning_content="hm"),
        delta(content=""),
        delta(content="a"),
        delta(tool_calls=[{"index": 0}]),
        delta(reasoning="x"),
        delta(finish="stop"),
        closing(11),
        DONE,
    )
    assert record.token_times_s == [1, 3, 4, 5]
    assert record.token_counts == [1, 1, 1, 1]
    assert (record.counted_by, record.output_tokens, record.first_text_s) == ("usage", 11, 3)


def test_usage_with_the_last_text_is_not_continuous() -> None:
    record = tally(chunk("a"), chunk("b"), chunk("c", 5, finish="length"), DONE)
    assert record.counted_by == "usage"
    assert record.token_times_s == [0, 1, 2]
    assert record.output_tokens == 5


def test_without_usage_chunks_are_all_there_is() -> None:
    record = tally(chunk("a"), chunk(""), chunk("b", finish="stop"), DONE)
    assert (record.counted_by, record.output_tokens, record.token_counts) == (
        "chunks",
        None,
        [1, 1],
    )


def test_tokens_without_text_are_seen_when_usage_tells() -> None:
    record = tally(chunk("", finish="length"), closing(1), DONE)
    assert (record.token_times_s, record.token_counts, record.counted_by) == ([1], [1], "usage")


def test_what_the_server_tells() -> None:
    details = {"cached_tokens": 5}
    record = tally(
        chunk("a", 1),
        closing(1, prompt_tokens_details=details, queue_s=0.25, ttft_s=None, latency_s=1.5),
        DONE,
        keep_text=False,
    )
    assert (record.cached_tokens, record.server) == (5, {"queue_s": 0.25, "latency_s": 1.5})
    assert record.text is None


@pytest.mark.parametrize(
    ("events", "kind", "message"),
    [
        ([chunk("a", 1)], "early_close", "without finish_reason"),
        ([chunk("", 0, finish="stop"), DONE], "no_tokens", "without a token"),
        ([DONE], "no_tokens", "without a token"),
        ([], "early_close", "without"),
        ([b"data: {oops\n\n"], "malformed", "oops"),
        ([b'data: {"choices": 3}\n\n'], "malformed", "choices"),
        ([b"data: \xff\n\n"], "malformed", "byte 0"),
        ([b"oops\n\n"], "malformed", "no field of an event"),
        ([b'data: {"error": {"message": "full"}}\n\n'], "stream", "^full$"),
        ([b'data: {"error": "full"}\n\n'], "stream", "^full$"),
        ([b'data: {"object": "error", "message": "full"}\n\n'], "stream", "^full$"),
        ([b"event: error\ndata: full\n\n"], "stream", "^full$"),
    ],
)
def test_bad_streams(events: list[bytes], kind: str, message: str) -> None:
    with pytest.raises(Failed, match=message) as caught:
        tally(*events)
    assert caught.value.kind == kind


def test_a_finish_reason_is_an_end_without_done() -> None:
    assert tally(chunk("a", 1, finish="stop")).ended_s == 1


def test_error_texts_are_one_line() -> None:
    assert error_text(b'{"detail": "a\\n b"}') == "a b"
    assert error_text(b'{"error": {"code": 3}}') == '{"error": {"code": 3}}'
    assert error_text(b"<html>\n no") == "<html> no"
    assert len(error_text(b"x" * 5000)) < 400


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=20), st.lists(st.integers(0, 10**6)))
def test_counts_against_a_plain_sum(new: list[int], places: list[int]) -> None:
    """Continuous usage, cut anywhere: counts are the increments, whatever the text is."""
    total = 0
    data = b""
    for number in new:
        total += number
        data += chunk("t" * (number > 1), total)
    data += closing(total) + DONE
    one = Tally(RequestRecord(index=0), 0.0, False)
    for piece in cut(data, places):
        one.feed(1.0, piece)
    if total == 0:
        with pytest.raises(Failed):
            one.finish(1.0)
        return
    one.finish(1.0)
    assert one.record.token_counts == [number for number in new if number]
    assert one.record.output_tokens == one.tokens == total
