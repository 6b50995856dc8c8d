"""Probe, negotiation, server metrics, profiler; addresses and headers."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from mock_behaviour import Behaviour
from mock_server import MockServer

from atom.bench.client import delta, negotiate, probe, profile, server_metrics
from atom.bench.client.address import headers_of, parse_url, resolve, server_of
from atom.bench.client.scrape import parse
from atom.bench.errors import BenchError, ServerUnreachable
from atom.bench.types import Target


@contextmanager
def raw_server(answer: bytes) -> Iterator[str]:
    """Says `answer` to whoever connects, whatever is asked, and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                with client:
                    client.recv(65536)
                    client.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
            thread.join(5)


@pytest.mark.parametrize("kind", ["atom", "vllm", "llama.cpp", "sglang", "unknown"])
def test_probe_says_who_is_there(kind: str) -> None:
    with MockServer(Behaviour(kind=kind, model="org/m", max_model_len=4096)) as server:
        info = probe(server.url + "/v1/")
    assert info.base_url == server.url
    assert (info.kind, info.model, info.models) == (kind, "org/m", ("org/m",))
    if kind != "unknown":
        assert info.version
        assert info.max_model_len == 4096
        assert info.has_tokenize


def test_probe_sees_that_there_is_no_tokenizer() -> None:
    with MockServer(Behaviour(tokenize=False)) as server:
        assert not probe(server.url).has_tokenize


def test_probe_refusals_are_one_line() -> None:
    with MockServer(Behaviour(key="secret", model="tiny-llama")) as server:
        with pytest.raises(ServerUnreachable, match=r"wants an API key .*401"):
            probe(server.url)
        with pytest.raises(ServerUnreachable, match=r"refuses the API key .*401") as caught:
            probe(server.url, "wrong-key")
        assert "wrong-key" not in str(caught.value)
        with pytest.raises(ServerUnreachable, match=r"no model tiny-lama \(did you mean tiny-lla"):
            probe(server.url, "secret", model="tiny-lama")
        with pytest.raises(ServerUnreachable, match=r"no model zzz; it serves tiny-llama"):
            probe(server.url, "secret", model="zzz")
        assert probe(server.url, "secret", model="tiny-llama").model == "tiny-llama"


HTTP = b"HTTP/1.1 %b\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"SSH-2.0-OpenSSH\r\n", "no server answers at"),
        (b"", "no server answers at"),
        (HTTP % (b"404 No", 2, b"no"), "no OpenAI-compatible server.*HTTP 404"),
        (HTTP % (b"200 OK", 4, b"<ht>"), "no OpenAI-compatible server.*without a list"),
        (HTTP % (b"200 OK", 11, b'{"data":[]}'), "lists no model"),
        (HTTP % (b"503 No", 20, b'{"detail":"loading"}'), "not ready: loading"),
    ],
)
def test_probe_of_something_else(answer: bytes, message: str) -> None:
    with raw_server(answer) as url, pytest.raises(ServerUnreachable, match=message) as caught:
        probe(url)
    assert "\n" not in str(caught.value)


def test_probe_of_nobody() -> None:
    with pytest.raises(ServerUnreachable, match=r"127\.0\.0\.1:1: Connection refused"):
        probe("http://127.0.0.1:1")


def test_negotiation_leaves_out_what_is_refused() -> None:
    with MockServer(Behaviour(usage="refuse")) as server:
        target, notes = negotiate(Target(base_url=server.url, model="mock"))
        assert not target.continuous_usage
        assert target.ignore_eos
        assert len(notes) == 1
    with MockServer(Behaviour()) as server:
        asked = Target(base_url=server.url, model="mock", endpoint="chat")
        assert negotiate(asked) == (asked, [])
        with pytest.raises(ServerUnreachable, match="does not serve the model nope"):
            negotiate(Target(base_url=server.url, model="nope"))


def test_negotiation_with_a_server_that_knows_no_ignore_eos() -> None:
    refusal = b'{"error":{"message":"Unrecognized request argument: ignore_eos"}}'
    with raw_server(HTTP % (b"400 No", len(refusal), refusal)) as url:
        with pytest.raises(BenchError, match=r"refuses a completions request \(HTTP 400\)"):
            negotiate(Target(base_url=url, model="m"))
        # It was asked twice, the second time without the field.
        with pytest.raises(BenchError, match="HTTP 400"):
            negotiate(Target(base_url=url, model="m", ignore_eos=False))


def test_the_profiler() -> None:
    with MockServer(Behaviour()) as server:
        target = Target(base_url=server.url, model="mock")
        profile(target, "start")
        with pytest.raises(BenchError, match="did not start its profiler"):
            profile(target, "start")
        assert profile(target, "stop")["traces"]
    with MockServer(Behaviour(profiler=False)) as server:
        target = Target(base_url=server.url, model="mock")
        with pytest.raises(BenchError, match="--torch-profiler-dir"):
            profile(target, "start")


PAGE = """
# HELP vllm:x y
vllm:prefix_cache_queries_total{engine="0",model_name="a b, \\"c\\" }"} 100.0
vllm:prefix_cache_queries_total{engine="1"} 50 1700000000000
vllm:prefix_cache_hits_total{engine="0"} 30
vllm:num_preemptions_total 2
vllm:request_queue_time_seconds_bucket{le="+Inf"} 4
vllm:request_queue_time_seconds_sum 0.5
vllm:request_queue_time_seconds_count 4
vllm:spec_decode_num_draft_tokens_total 40
vllm:spec_decode_num_accepted_tokens_total 30
vllm:spec_decode_num_drafts_total 20
sglang:spec_accept_length{rank="0"} 2.0
sglang:spec_accept_length{rank="1"} 3.0
not a metric line
broken{x="1"} abc
nan_value NaN
"""


def test_prometheus_text() -> None:
    values = parse(PAGE)
    assert values["vllm:prefix_cache_queries"] == 150
    assert values["vllm:request_queue_time_seconds_sum"] == 0.5
    assert values["sglang:spec_accept_length"] == 2.5
    assert not {"broken", "nan_value"} & set(values)


def test_metrics_of_a_run() -> None:
    pages = [
        PAGE,
        PAGE.replace("} 100.0", "} 300.0").replace('{engine="0"} 30', '{engine="0"} 130'),
    ]
    pages[1] = pages[1].replace("_sum 0.5", "_sum 0.9").replace("_count 4", "_count 8")
    pages[1] = pages[1].replace("draft_tokens_total 40", "draft_tokens_total 80")
    pages[1] = pages[1].replace("accepted_tokens_total 30", "accepted_tokens_total 60")
    pages[1] = pages[1].replace("drafts_total 20", "drafts_total 40")
    scraped = []
    for page in pages:
        body = page.encode()
        with raw_server(HTTP % (b"200 OK", len(body), body)) as url:
            scraped.append(server_metrics(url))
    assert delta(*scraped) == pytest.approx(
        {
            "prefix_hit_share": 0.5,
            "preemptions": 0.0,
            "mean_server_queue_ms": 100.0,
            "acceptance_rate": 0.75,
            "accept_length": 2.5,
        }
    )
    assert delta({}, scraped[1]) == {"accept_length": 2.5}  # the gauge is all that is known
    # A restart: every counter fell.
    assert delta(scraped[1], dict.fromkeys(scraped[1], 0.0)) == {"accept_length": 0.0}


def test_metrics_of_a_server_that_tells_nothing() -> None:
    assert server_metrics("http://127.0.0.1:1") == {}
    with MockServer(Behaviour(kind="unknown")) as server:
        before = server_metrics(server.url)
        assert delta(before, server_metrics(server.url)) == {}


def test_upstreams_page_of_speculative_decoding() -> None:
    body = b'{"enabled":true,"average_tokens_per_forward":2.25,"acceptance_rate":0.6}'
    with raw_server(HTTP % (b"200 OK", len(body), body)) as url:
        after = server_metrics(url)
    assert delta({}, after) == {"accept_length": 2.25, "acceptance_rate": 0.6}


@pytest.mark.parametrize(
    ("text", "url", "tls"),
    [
        ("http://h:8000", "http://h:8000", False),
        ("h:8000", "http://h:8000", False),
        ("https://h/v1", "https://h", True),
        ("http://h:80/api/v1/", "http://h/api", False),
        ("http://[::1]:9", "http://[::1]:9", False),
    ],
)
def test_urls(text: str, url: str, tls: bool) -> None:
    address = parse_url(text)
    assert (address.url, address.tls) == (url, tls)


@pytest.mark.parametrize(
    "text", ["ftp://h", "http://", "http://h:99999", "http://u:pw@h", "http://h?x=1", "http://a b"]
)
def test_urls_that_cannot_be(text: str) -> None:
    with pytest.raises(BenchError, match="base-url") as caught:
        parse_url(text)
    assert "pw" not in str(caught.value)


def test_a_host_that_is_not_there() -> None:
    with pytest.raises(ServerUnreachable, match=r"cannot find the host no-host\.invalid"):
        resolve(parse_url("http://no-host.invalid"))


@pytest.mark.parametrize(
    "headers", [{"X": "a\r\nY: b"}, {"a b": "c"}, {"": "c"}, {"X": "\u20ac-secret"}]
)
def test_headers_that_cannot_be_sent(headers: dict[str, str]) -> None:
    with pytest.raises(BenchError, match=r"cannot be sent|HTTP has not") as caught:
        headers_of(None, headers)
    assert "secret" not in str(caught.value)


def test_the_head_of_a_request() -> None:
    target = Target(
        base_url="http://127.0.0.1:8000/api",
        model="m",
        endpoint="chat",
        api_key="k",
        headers={"Accept": "x/y", "X-Two": "2"},
    )
    head = server_of(target).head.decode()
    first, *lines = head.split("\r\n")
    assert first == "POST /api/v1/chat/completions HTTP/1.1"
    assert lines[-1] == "content-length: "
    fields = dict(line.split(": ", 1) for line in lines[:-1])
    assert fields["host"] == "127.0.0.1:8000"
    assert fields["authorization"] == "Bearer k"
    assert fields["accept"] == "x/y"
    assert fields["x-two"] == "2"
