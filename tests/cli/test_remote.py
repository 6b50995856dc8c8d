"""`atom run --url` against a scripted HTTP server on loopback."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from cli_helpers import atom, atom_process, clean_environment

from atom.cli.answers import Question
from atom.cli.remote import RemoteAnswerer, ServerError

CHAT = Question(messages=({"role": "user", "content": "hi"},), sampling={"temperature": 0.5})


def event(**fields: Any) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def chat_events(*pieces: str) -> list[bytes]:
    return [
        event(choices=[{"index": 0, "delta": {"role": "assistant", "content": ""}}]),
        b": a comment\n\n",
        *[event(choices=[{"index": 0, "delta": {"content": p}}]) for p in pieces],
        event(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}]),
        event(choices=[], usage={"prompt_tokens": 4, "completion_tokens": len(pieces)}),
        b"data: [DONE]\n\n",
    ]


@dataclass
class Fake:
    """What the server answers and what it was asked."""

    events: list[bytes] = field(default_factory=lambda: chat_events("Hel", "lo ✓"))
    status: int = 200
    models: Any = field(default_factory=lambda: {"data": [{"id": "m1"}, {"id": "m2"}]})
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    authorization: str | None = None
    url: str = ""


def refuse(fake: Fake, status: int, body: bytes) -> None:
    fake.status, fake.events = status, [body]


@pytest.fixture
def server() -> Iterator[Fake]:
    fake = Fake()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            fake.authorization = self.headers.get("Authorization")
            self.answer(200, [json.dumps(fake.models).encode()])

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            fake.asked.append((self.path, body))
            self.answer(fake.status, fake.events)

        def answer(self, status: int, parts: list[bytes]) -> None:
            self.send_response(status)
            self.end_headers()
            for part in parts:
                self.wfile.write(part)
                self.wfile.flush()

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    fake.url = f"http://127.0.0.1:{httpd.server_address[1]}"
    yield fake
    httpd.shutdown()
    httpd.server_close()
    thread.join()


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
def test_a_chat(server: Fake, suffix: str) -> None:
    answerer = RemoteAnswerer(server.url + suffix, api_key="k")
    assert answerer.name == "m1"
    assert list(answerer.stream(CHAT)) == ["Hel", "lo ✓"]
    assert server.authorization == "Bearer k"
    ((path, body),) = server.asked
    assert path == "/v1/chat/completions"
    assert body["messages"] == [{"role": "user", "content": "hi"}]
    assert (body["model"], body["temperature"], body["stream"]) == ("m1", 0.5, True)
    usage = answerer.usage
    assert (usage.finish_reason, usage.prompt_tokens, usage.completion_tokens) == ("stop", 4, 2)
    assert 0 < usage.ttft_s <= usage.latency_s


def test_a_text(server: Fake) -> None:
    server.events = [event(choices=[{"text": "abc", "finish_reason": "length"}]), b"data: [DONE]\n"]
    answerer = RemoteAnswerer(server.url, model="m2")
    assert "".join(answerer.stream(Question(text="say"))) == "abc"
    path, body = server.asked[0]
    assert (path, body["prompt"], body["model"]) == ("/v1/completions", "say", "m2")
    assert answerer.usage.finish_reason == "length"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda f: refuse(f, 429, b'{"error": {"message": "busy"}}'),
            "answered 429: busy",
        ),
        (
            lambda f: refuse(f, 500, b"<html>oops"),
            "answered 500: <html>oops",
        ),
        (
            lambda f: setattr(f, "events", [event(error={"message": "the engine died"})]),
            "the engine died",
        ),
        (lambda f: setattr(f, "events", chat_events("x")[:3]), "ended before its end"),
        (lambda f: setattr(f, "events", [b"data: {oops\n\n"]), "not an event"),
    ],
)
def test_failures_are_said(server: Fake, change: Callable[[Fake], object], says: str) -> None:
    answerer = RemoteAnswerer(server.url)
    change(server)
    with pytest.raises(ServerError, match=says):
        list(answerer.stream(CHAT))


def test_no_server_or_another_one(server: Fake) -> None:
    with pytest.raises(ServerError, match="has no model m3; it has m1, m2"):
        RemoteAnswerer(server.url, model="m3")
    server.models = {"data": []}
    with pytest.raises(ServerError, match="has no model"):
        RemoteAnswerer(server.url)
    server.models = "hello"
    with pytest.raises(ServerError, match="not an OpenAI-compatible server"):
        RemoteAnswerer(server.url)
    for url in ("localhost:8000", "ftp://x", "http://"):
        with pytest.raises(ServerError, match="must look like"):
            RemoteAnswerer(url)
    with pytest.raises(ServerError, match=r"cannot reach .*atom serve"):
        RemoteAnswerer("http://127.0.0.1:1")


def test_one_answer(
    server: Fake, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATOM_API_KEY", "secret")
    monkeypatch.setattr("sys.stdin", io.StringIO())
    argv = ["run", "--url", server.url, "m2", "hi", "--top_k", "3", "--stop", "a", "--stop", "b"]
    ran = atom(capsys, *argv, "--sample-seed", "7", "--system", "Be brief.")
    assert ran == (0, "Hello ✓\n", "")
    _, body = server.asked[0]
    assert {k: body[k] for k in ("top_k", "stop", "seed")} == {
        "top_k": 3,
        "stop": ["a", "b"],
        "seed": 7,
    }
    assert [m["role"] for m in body["messages"]] == ["system", "user"]
    assert server.authorization == "Bearer secret"

    ran = atom(capsys, *argv, "--json")
    answer = json.loads(ran.out)
    assert (answer["text"], answer["model"]) == ("Hello ✓", "m2")
    assert answer["usage"] == {"prompt_tokens": 4, "completion_tokens": 2}


@pytest.mark.parametrize(
    ("argv", "stdin", "expected"),
    [
        (["-p", "sum up"], "the text", "sum up\n\nthe text"),
        (["-p", "sum up"], "", "sum up"),
        ([], "the text", "the text"),
        (["two words"], "", "two words"),
    ],
)
def test_where_the_prompt_comes_from(
    server: Fake, argv: list[str], stdin: str, expected: str
) -> None:
    ran = atom_process("run", "--url", server.url, *argv, stdin=stdin)
    assert (ran.code, ran.err) == (0, "")
    assert server.asked[0][1]["messages"][-1]["content"] == expected


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "no prompt: give --prompt TEXT"),
        (["m1", "a b", "-p", "c"], "two prompts"),
        (["-p", "x", "--max-num-seqs", "3"], "--max-num-seqs: the server at --url has its own"),
        (["--json"], "no prompt"),
        (["-p", "x", "--url", "nonsense"], "must look like http"),
        (["-p", "x", "--port", "3"], "unknown option --port"),
    ],
)
def test_mistakes(
    argv: list[str],
    says: str,
    server: Fake,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    ran = atom(capsys, "run", "--url", server.url, *argv)
    assert ran.code in (1, 2)
    assert says in ran.err
    assert ran.err.count("\n") == 1
    assert server.asked == []


# Makes ^C typed at stdin a signal, and one that is not ignored (as in xdist's workers). Done by
# the new process itself: code between fork and exec may hang where the parent has threads.
AT_A_TERMINAL = """
import fcntl, runpy, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv[0] = "atom"
runpy.run_module("atom.cli", run_name="__main__")
"""


def test_a_chat_at_a_terminal(server: Fake) -> None:
    """The real thing: a pseudo-terminal, typed lines, /exit."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", AT_A_TERMINAL, "run", "--url", server.url],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=clean_environment(TERM="dumb"),
        start_new_session=True,
    )
    os.close(theirs)
    seen = read_until(ours, ">>> ")
    assert "m1: /help lists the commands" in seen
    os.write(ours, b"hi\n")
    assert "Hello ✓" in read_until(ours, ">>> ")
    read_until(ours, ">>> ", pressing=b"\x03")  # Ctrl-C at the prompt only drops the line
    os.write(ours, b"/exit\n")
    assert process.wait(timeout=30) == 0
    os.close(ours)
    assert server.asked[0][1]["messages"][-1]["content"] == "hi"


def read_until(terminal: int, end: str, pressing: bytes = b"") -> str:
    """What comes until `end`. `pressing` is typed, and again each second without news: readline
    does not notice a signal between its prompt and its first look at the terminal."""
    seen, silent_s = b"", 0
    os.write(terminal, pressing)
    while not seen.decode(errors="replace").endswith(end):
        ready, _, _ = select.select([terminal], [], [], 1)
        if ready:
            seen += os.read(terminal, 1024)
            continue
        silent_s += 1
        assert silent_s < 30, f"only this came: {seen!r}"
        os.write(terminal, pressing)
    return seen.decode()
