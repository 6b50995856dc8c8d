"""A server that scores and generates by a rule that tests know, and misbehaves as told.

    with ScoringServer(Manners(kind="vllm")) as server: ...

    python tests/eval/scoring_server.py --die-after 7   (kills itself with the eighth request)

One thread per connection; what was asked is in `server.asked`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "mock-model"
BOS, EOS = 256, 257
SPECIAL = {"<s>": BOS, "</s>": EOS}
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}|{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def logprob(context: list[int], token: int) -> float:
    """The rule: of any context and token, a multiple of 1/64 in [-4, 0), exactly added up."""
    digest = hashlib.blake2b(bytes(str((context, token)), "ascii"), digest_size=1).digest()
    return -(digest[0] + 1) / 64


def likeliest(context: list[int], token: int) -> float:
    """The largest log-probability at a place: the token's own for two in three."""
    own = logprob(context, token)
    return own if (len(context) + token) % 3 else own / 2


def truth(context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """What scoring must give."""
    total, greedy, before = 0.0, True, list(context)
    for token in continuation:
        own = logprob(before, token)
        total += own
        greedy = greedy and own == likeliest(before, token)
        before.append(token)
    return total, greedy


def encode(text: str, add_special: bool) -> list[int]:
    """Bytes, with BOS where asked for; the spelled special tokens are tokens."""
    if text in SPECIAL:
        return [SPECIAL[text]]
    return [BOS] * add_special + list(text.encode())


def decode(ids: list[int]) -> str:
    names = {number: text for text, number in SPECIAL.items()}
    return "".join(names.get(i) or chr(i) for i in ids)


def render(messages: list[dict[str, Any]], opens: bool) -> str:
    text = "<s>" + "".join(f"[{m['role']}]{m['content']}|" for m in messages)
    return text + "[assistant]" if opens else text[:-1]


@dataclass
class Manners:
    """How a server differs from ours."""

    kind: str = "atom"
    max_model_len: int | None = 512
    zero_tokens: bool = True  # max_tokens: 0 is taken
    starts: bool = True  # logprobs_start is known
    scores: str = "all"  # all, generated (only), bos (one entry more), none, untold (no top)
    id_prompts: bool = True
    max_stops: int = 100
    text_lists: bool = True  # /tokenize takes lists
    tokenizer_info: bool = True
    health: int = 200
    reply: str = "answer"  # what is generated
    finish_reason: str = "stop"
    reasoning: str | None = None
    key: str | None = None
    # (number of the POST to /v1, from 0) -> status and Retry-After, "hang up" or None to go on
    fault: Callable[[int], Any] = lambda number: None
    hold: threading.Event | None = None  # answers to POSTs to /v1 wait for it
    die_after: int | None = None
    headers: dict[str, str] = field(default_factory=dict)


class ScoringServer:
    """In a thread; `url` is known at once."""

    def __init__(self, manners: Manners | None = None) -> None:
        self.manners = manners or Manners()
        self.asked: list[tuple[str, dict[str, Any]]] = []  # of /v1, in order of arrival
        self.seen: list[tuple[str, Any]] = []  # everything else that was posted
        self.agents: set[str] = set()
        self.arrived = threading.Condition()
        self._sockets: set[socket.socket] = set()
        handler = type("Handler", (_Handler,), {"owner": self})
        self._http = _Quiet(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> ScoringServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.die()

    def die(self) -> None:
        """As a killed process: nobody listens, open connections end."""
        self._http.shutdown()
        self._http.server_close()
        for sock in list(self._sockets):
            hang_up(sock)
        if self.manners.hold is not None:
            self.manners.hold.set()

    def wait_asked(self, count: int) -> None:
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.asked) >= count, 30)

    @property
    def prompts(self) -> list[list[int]]:
        """All that were to be scored, in order."""
        return [p for path, body in self.asked if body.get("echo") for p in body["prompt"]]


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: Any) -> None:
        """Connections that end are part of the tests."""


def hang_up(sock: socket.socket) -> None:
    with suppress(OSError):  # it may have ended
        sock.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    owner: ScoringServer
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.owner._sockets.add(self.connection)

    def log_message(self, *_: Any) -> None:
        pass

    def _send(self, status: int, body: Any, **headers: str) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()

    def _refuse(self, status: int, message: str, **headers: str) -> None:
        self._send(status, {"error": {"message": message}}, **headers)

    def do_GET(self) -> None:
        m = self.owner.manners
        self.owner.agents.add(self.headers.get("User-Agent", ""))
        if self.path == "/health":
            self._send(m.health, {})
        elif self.path == "/v1/models":
            if m.key and self.headers.get("Authorization") != f"Bearer {m.key}":
                self._refuse(401, "no such key")
                return
            owner = {"llama.cpp": "llamacpp"}.get(m.kind, m.kind)
            card = {"id": MODEL, "owned_by": owner, "max_model_len": m.max_model_len}
            self._send(200, {"data": [card]})
        elif self.path == "/version":
            self._send(200, {"version": "1"})
        elif self.path == "/tokenizer_info" and m.tokenizer_info:
            said = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": TEMPLATE}
            self._send(200, said)
        else:
            self._refuse(404, "Not Found")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.path.startswith("/v1/"):
            self.owner.seen.append((self.path, body))
            self._text(body)
            return
        m = self.owner.manners
        with self.owner.arrived:
            number = len(self.owner.asked)
            self.owner.asked.append((self.path, body))
            self.owner.arrived.notify_all()
        if m.die_after is not None and number >= m.die_after:
            os.kill(os.getpid(), signal.SIGKILL)
        fault = m.fault(number)
        if fault == "hang up":
            hang_up(self.connection)
            self.close_connection = True
            return
        if fault is not None:
            status, retry_after = fault
            more = {} if retry_after is None else {"Retry_After": str(retry_after)}
            self._refuse(status, "told to fail", **more)
            return
        if m.hold is not None:
            m.hold.wait(30)
        (self._score if body.get("echo") else self._generate)(body)

    def _text(self, body: dict[str, Any]) -> None:
        m, llama = self.owner.manners, self.owner.manners.kind == "llama.cpp"
        if self.path == "/detokenize":
            self._send(200, {"content" if llama else "prompt": decode(body["tokens"])})
            return
        special = body.get("add_special" if llama else "add_special_tokens", True)
        text = body.get("content" if llama else "prompt")
        if text is None:
            text = render(body["messages"], body["add_generation_prompt"])
            ids = [BOS, *text.removeprefix("<s>").encode()]
            self._send(200, {"tokens": ids})
        elif isinstance(text, list) and not m.text_lists:
            self._refuse(400, "prompt: Input should be a valid string")
        elif isinstance(text, list):
            self._send(200, {"tokens": [encode(t, special) for t in text]})
        else:
            self._send(200, {"tokens": encode(text, special)})

    def _score(self, body: dict[str, Any]) -> None:
        m = self.owner.manners
        prompts, most = body["prompt"], body["max_tokens"]
        if most == 0 and not m.zero_tokens:
            self._refuse(400, "max_tokens must be at least 1, got 0.")
        elif "logprobs_start" in body and not m.starts:
            self._refuse(400, "unknown field logprobs_start")
        elif not m.id_prompts:
            self._refuse(400, "prompt must be a text")
        elif m.max_model_len and any(len(p) + most > m.max_model_len for p in prompts):
            self._refuse(400, f"maximum context length is {m.max_model_len} tokens")
        else:
            starts = body.get("logprobs_start") or [1] * len(prompts)
            choices = [
                {"index": i, "text": "", "logprobs": self._entries(p, starts[i], most)}
                for i, p in enumerate(prompts)
            ]
            # In any order, as servers answer.
            self._send(200, {"choices": choices[::-1], "usage": {}})

    def _entries(self, prompt: list[int], start: int, most: int) -> dict[str, Any] | None:
        how = self.owner.manners.scores
        own = [logprob(prompt[:i], t) if i >= start else None for i, t in enumerate(prompt)]
        best = [likeliest(prompt[:i], t) if i >= start else None for i, t in enumerate(prompt)]
        own += [-0.25] * most
        best += [-0.25] * most
        if how == "none":
            return None
        if how == "bos":
            own, best = [None, *own], [None, *best]
        if how == "generated":
            own, best = own[len(prompt) :], best[len(prompt) :]
        top = [None if b is None else {"a": b, "b": o} for o, b in zip(own, best, strict=True)]
        return {"token_logprobs": own, "top_logprobs": None if how == "untold" else top}

    def _generate(self, body: dict[str, Any]) -> None:
        m = self.owner.manners
        if len(body.get("stop", [])) > m.max_stops:
            self._refuse(400, f"stop may hold {m.max_stops} strings")
            return
        choice: dict[str, Any] = {"index": 0, "finish_reason": m.finish_reason}
        if "messages" in body:
            choice["message"] = {"content": m.reply, "reasoning_content": m.reasoning}
        else:
            choice["text"] = m.reply
        usage = {"prompt_tokens": 5, "completion_tokens": 7}
        self._send(200, {"choices": [choice], "usage": usage})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--die-after", type=int)
    given = parser.parse_args()
    with ScoringServer(Manners(die_after=given.die_after)) as server:
        print(server.url, flush=True)
        threading.Event().wait(60)


if __name__ == "__main__":
    main()
