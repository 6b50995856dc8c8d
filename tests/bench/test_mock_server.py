"""The mock is the measure of the others, so it is measured itself: bytes, order and bookkeeping."""

from __future__ import annotations

import http.client
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from mock_behaviour import FAULTS, Behaviour, Fault
from mock_cli import parse
from mock_server import MockServer, read_truth
from mock_stream import VOCAB_SIZE, decode, encode


def ask(server: MockServer, path: str = "/v1/completions", **body: Any) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    try:
        data = json.dumps({"prompt": "hi", "stream": True, **body})
        connection.request("POST", path, data, {"authorization": "Bearer k"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def events(data: bytes) -> list[Any]:
    """By the rules of server-sent events: lines of data joined, comments left out."""
    found = []
    for block in data.decode().replace("\r\n", "\n").split("\n\n"):
        lines = [line[6:] for line in block.split("\n") if line.startswith("data: ")]
        if lines and lines != ["[DONE]"]:
            found.append(json.loads("\n".join(lines)))
    return found


WANTED = {"include_usage": True, "continuous_usage_stats": True}
FAST = Behaviour(ttft_ms=2, itl_ms=1)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize(
    "form",
    [
        {},
        {"tokens_per_chunk": 3},
        {"tokens_per_chunk": 3, "hold_tokens": 4},
        {"crlf": True, "comments": True, "multiline": True},
        {"split_bytes": 7},
        {"finish_apart": True, "empty_first": True},
        {"stalls": {"2": 5}, "reasoning_tokens": 3},
        {"batched": True, "cached_tokens": 1},
    ],
    ids=str,
)
def test_every_form_says_the_same(path: str, form: dict[str, Any]) -> None:
    with MockServer(FAST) as server:
        messages = [{"role": "user", "content": "hi"}]
        status, data = ask(
            server, path, max_tokens=10, stream_options=WANTED, mock=form, messages=messages
        )
    assert status == 200
    assert data.rstrip().endswith(b"[DONE]")
    *chunks, last = events(data)
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == counts[-1] == 10
    assert last["usage"]["total_tokens"] == 10 + last["usage"]["prompt_tokens"]
    choices = [chunk["choices"][0] for chunk in chunks]
    said = [c["text"] if "text" in c else "".join(c["delta"].values()) for c in choices]
    assert "".join(said).replace("assistant", "") == " tok" * 10
    assert [c["finish_reason"] for c in choices if c["finish_reason"]] == ["length"]
    (truth,) = server.truth
    assert (truth.outcome, sum(truth.chunk_tokens)) == ("ok", 10)
    per_chunk = [b - a for a, b in zip([0, *counts], counts, strict=False) if b > a]
    assert per_chunk == truth.chunk_tokens


def test_moments_are_in_order_and_never_early() -> None:
    """Chunk n is not sent before ttft + n itl, its stall included; lateness is not judged here."""
    shape = Behaviour(ttft_ms=20, itl_ms=4, stalls={2: 30.0}, empty_first=True, opening_ms=5)
    with MockServer(shape) as server:
        ask(server, max_tokens=6)
    (truth,) = server.truth
    assert truth.opening_s is not None
    assert truth.opening_s - truth.arrived_s >= 0.005
    for number, moment in enumerate(truth.chunk_s):
        due = 0.020 + 0.004 * number + (0.030 if number >= 2 else 0.0)
        assert moment - truth.arrived_s >= due - 1e-9
    assert truth.arrived_s < truth.received_s < truth.opening_s < truth.chunk_s[0]
    assert truth.chunk_s == sorted(truth.chunk_s)
    assert truth.ended_s >= truth.chunk_s[-1]


@pytest.mark.parametrize("usage", ["auto", "final", "none", "refuse"])
def test_usage_as_told(usage: str) -> None:
    with MockServer(Behaviour(ttft_ms=1, itl_ms=1, usage=usage)) as server:
        status, data = ask(server, max_tokens=3, stream_options=WANTED)
        assert (status == 400) == (usage == "refuse")
        told = [chunk.get("usage") for chunk in events(data)] if status == 200 else []
        assert told[:3] == {"final": [None] * 3, "none": [None] * 3}.get(usage, told[:3])
        assert len(told) == {"auto": 4, "final": 4, "none": 3, "refuse": 0}[usage]
        assert ask(server, max_tokens=3)[0] == 200  # nothing asked, nothing refused


@pytest.mark.parametrize("kind", FAULTS)
def test_faults_hit_whom_they_should(kind: str) -> None:
    fault = Fault.parse(f"{kind}:{503 if kind == 'http' else 2}@every=2")
    with MockServer(Behaviour(ttft_ms=1, itl_ms=1, faults=(fault,))) as server:
        good = ask(server, max_tokens=4)
        assert good[0] == 200
        assert len(events(good[1])) == 4
        if kind == "hang":
            return  # there is no end to wait for
        if kind in ("cut", "reset"):
            with pytest.raises((http.client.HTTPException, OSError)):
                ask(server, max_tokens=4)
        else:
            status, data = ask(server, max_tokens=4)
            assert status == (503 if kind == "http" else 200)
            whole = data.endswith(b"[DONE]\n\n")
            assert whole == (kind in ("event", "garbage", "empty"))
    assert [t.outcome for t in server.truth] == ["ok", "http 503" if kind == "http" else kind]
    got = {"event": 2, "close": 2, "cut": 2, "reset": 2, "garbage": 2}.get(kind, 0)
    assert sum(server.truth[1].chunk_tokens) == got


def test_a_fault_beyond_the_end_is_none() -> None:
    with MockServer(Behaviour(ttft_ms=1, itl_ms=1, faults=(Fault.parse("close:4"),))) as server:
        for tokens in (4, 5):
            ask(server, max_tokens=tokens)
    assert [t.outcome for t in server.truth] == ["ok", "close"]
    assert [sum(t.chunk_tokens) for t in server.truth] == [4, 4]


def test_places_are_given_in_order_of_arrival() -> None:
    with MockServer(Behaviour(ttft_ms=10, itl_ms=1, slots=1)) as server:
        connections = []
        for number in range(3):
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
            body = json.dumps({"prompt": f"job {number}", "max_tokens": 2, "stream": True})
            connection.request("POST", "/v1/completions", body)
            connections.append(connection)
        for connection in connections:
            connection.getresponse().read()
            connection.close()
    truths = sorted(server.truth, key=lambda t: t.started_s)
    assert [t.index for t in truths] == [0, 1, 2]
    for first, then in itertools.pairwise(truths):
        assert then.started_s >= first.ended_s
    assert server.active == 0


def test_a_client_that_leaves_frees_its_place() -> None:
    with MockServer(
        Behaviour(ttft_ms=1, itl_ms=1, slots=1, faults=(Fault("hang", only=frozenset({0})),))
    ) as server:
        leaving = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        leaving.request("POST", "/v1/completions", json.dumps({"prompt": "a", "stream": True}))
        while not server.truth or server.truth[0].outcome != "hang":
            pass
        leaving.close()
        assert ask(server, max_tokens=2)[0] == 200
    assert [t.outcome for t in server.truth] == ["hang", "ok"]


def test_keys_models_and_context() -> None:
    with MockServer(Behaviour(key="k", max_model_len=20, ttft_ms=1, itl_ms=1)) as server:
        assert ask(server, max_tokens=2)[0] == 200
        assert ask(server, max_tokens=19)[0] == 400
        assert ask(server, model="other")[0] == 404
        assert ask(server, mock={"nonsense": 1})[0] == 400
        server.behaviour = Behaviour(key="another")
        assert ask(server)[0] == 401
    assert len(server.truth) == 1  # what is refused at once is no request


def test_the_tokenizer_survives_a_round_trip() -> None:
    for ids in ([], [256], [300, 97, 98, 32], list(range(256, VOCAB_SIZE, 97))):
        text = decode(ids)
        assert decode(encode(text)) == text
    assert encode(decode(list(range(256, VOCAB_SIZE)))) == list(range(256, VOCAB_SIZE))
    assert encode(" tok tok!") == [encode(" tok")[0]] * 2 + [33]


def test_the_truth_survives_its_file(tmp_path: Path) -> None:
    with MockServer(FAST) as server:
        ask(server, max_tokens=3)
    server.write_truth(tmp_path / "t.jsonl")
    assert read_truth(tmp_path / "t.jsonl") == server.truth


def test_the_command_line_reaches_every_field() -> None:
    line = ["--ttft-ms", "7", "--fault", "close:3@every=5", "--stall", "4:200", "--no-done"]
    given, behaviour = parse([*line, "--slots", "3", "--kind", "vllm", "--port", "1"])
    assert given.port == 1
    assert behaviour == Behaviour(
        ttft_ms=7.0,
        faults=(Fault("close", 3, 5),),
        stalls={4: 200.0},
        done=False,
        slots=3,
        kind="vllm",
    )
    with pytest.raises(ValueError, match="fault 'nonsense'"):
        Fault.parse("nonsense")
