"""Sides of `--agree` whose whole distributions are known: a rule, and tiny transformers models."""

from __future__ import annotations

import functools
import json
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from atom.eval.agree.types import Continuation, Position, Prompt, Side

VOCAB = 40
FIRST = ord("0")  # token n is written chr(FIRST + n)

Change = Callable[[Sequence[int], np.ndarray, bool], np.ndarray]  # context, logits, decoding


def rule(context: Sequence[int]) -> np.ndarray:
    """Logits [VOCAB] after a context: of its last two tokens, peaked as a model's are."""
    return _of_last(*[0, 0, *context[-2:]][-2:])


@functools.cache
def _of_last(*tokens: int) -> np.ndarray:
    logits = np.random.default_rng([token + 1 for token in tokens]).normal(size=VOCAB) * 2.5
    logits.setflags(write=False)
    return logits


def unchanged(context: Sequence[int], logits: np.ndarray, decoding: bool) -> np.ndarray:
    return logits


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max()
    return shifted - math.log(np.exp(shifted).sum())


def encode(text: str) -> list[int]:
    return [(ord(letter) - FIRST) % VOCAB for letter in text]


def written(token: int) -> str:
    return chr(FIRST + token)


def position(logprobs: np.ndarray, own: int, top_k: int) -> Position:
    order = np.argsort(-logprobs, kind="stable")[:top_k].tolist()
    tokens = [own, *(token for token in order if token != own)]
    return Position(list(tokens), [float(logprobs[token]) for token in tokens])


def full_kl(p: np.ndarray, q: np.ndarray) -> float:
    """Of whole distributions, given as log-probabilities."""
    return float((np.exp(p) * (p - q)).sum())


@dataclass
class Rule:
    """A model that follows `rule`, changed by `change`."""

    change: Change = unchanged
    top_k: int = 10
    name: str = "rule"
    precision: str = ""
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.side = Side(
            name=self.name, model="rule", kind="atom", precision=self.precision, top_k=self.top_k
        )
        self.texts = {token: written(token) for token in range(VOCAB)}

    def logprobs(self, context: Sequence[int], decoding: bool = False) -> np.ndarray:
        return log_softmax(self.change(context, rule(context), decoding))

    def tokenize(self, texts: Sequence[str]) -> list[list[int]] | None:
        return [encode(text) for text in texts]

    def continue_(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[Continuation]:
        return [self._continue(list(prompt), max_tokens) for prompt in prompts]

    def _continue(self, ids: list[int], max_tokens: int) -> Continuation:
        made = []
        for _ in range(max_tokens):
            logprobs = self.logprobs(ids, decoding=True)
            ids.append(int(logprobs.argmax()))
            made.append(position(logprobs, ids[-1], self.top_k))
        text = "".join(written(int(p.tokens[0])) for p in made)
        return Continuation(text, made, "length")

    def output_ids(
        self, prompts: Sequence[Prompt], continued: Sequence[Continuation]
    ) -> tuple[list[list[int]], int]:
        return [[int(p.tokens[0]) for p in answer.positions] for answer in continued], 0

    def score(self, texts: Sequence[Sequence[int]]) -> list[list[Position]]:
        return [
            [position(self.logprobs(ids[:i]), ids[i], self.top_k) for i in range(1, len(ids))]
            for ids in texts
        ]


@dataclass
class Manners:
    """How the server that serves a `Rule` behaves."""

    form: str = "ids"  # ids (prompt_logprobs), echo, generated (only), none
    most: int = 20  # logprobs allowed
    tokenizes: bool = True
    shift: int = 0  # tokenizes otherwise by so much
    key: str | None = None
    owner: str = "vllm"
    max_model_len: int = 400
    fail: Callable[[int], int | None] = lambda number: None  # number of the POST -> status


@contextmanager
def rule_server(model: Rule, manners: Manners | None = None) -> Iterator[tuple[str, list[Any]]]:
    """Its URL, and the bodies of what was asked of /v1/completions."""
    asked: list[Any] = []
    told = {"model": model, "manners": manners or Manners(), "asked": asked}
    server = _Quiet(("127.0.0.1", 0), type("Handler", (_Handler,), told))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()


class _Quiet(ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        """Connections that a client gives up are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    model: Rule
    manners: Manners
    asked: list[Any]
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True

    def log_message(self, *_: Any) -> None:
        pass

    def _send(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()

    def _refuse(self, status: int, message: str) -> None:
        self._send(status, {"error": {"message": message}})

    def _allowed(self) -> bool:
        key = self.manners.key
        if key is None or self.headers.get("Authorization") == f"Bearer {key}":
            return True
        self._refuse(401, "no such key")
        return False

    def do_GET(self) -> None:
        if not self._allowed():
            return
        card = {
            "id": "rule",
            "owned_by": self.manners.owner,
            "max_model_len": self.manners.max_model_len,
        }
        answers = {"/v1/models": {"data": [card]}, "/version": {"version": "1.0"}}
        if self.path in answers:
            self._send(200, answers[self.path])
        else:
            self._refuse(404, "Not Found")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._allowed():
            return
        if self.path == "/tokenize" and self.manners.tokenizes:
            ids = [(token + self.manners.shift) % VOCAB for token in encode(body["prompt"])]
            self._send(200, {"tokens": ids, "count": len(ids)})
        elif self.path == "/v1/completions":
            self.asked.append(body)
            failed = self.manners.fail(len(self.asked) - 1)
            if failed is not None:
                self._refuse(failed, "told to fail")
            else:
                self._complete(body)
        else:
            self._refuse(404, "Not Found")

    def _complete(self, body: dict[str, Any]) -> None:
        wanted = body.get("logprobs") or 0
        more = body.get("prompt_logprobs") or 0
        if max(wanted, more) > self.manners.most:
            self._refuse(400, f"logprobs must be at most {self.manners.most}")
            return
        if "prompt_logprobs" in body and self.manners.form != "ids":
            self._refuse(400, "unknown field prompt_logprobs")
            return
        ids = body["prompt"]
        made = self.model.continue_([ids], body["max_tokens"])[0]
        choice: dict[str, Any] = {"text": made.text, "finish_reason": "length"}
        scored = self.model.score([ids])[0]
        if "prompt_logprobs" in body:
            choice["prompt_logprobs"] = [None, *(_row(p) for p in scored)]
        if wanted and self.manners.form != "none":
            told = list(made.positions)
            if body.get("echo") and self.manners.form == "echo":
                told = [Position([ids[0]], [0.0]), *scored, *told]
            choice["logprobs"] = _openai(told, echoed=len(told) > len(made.positions))
        self._send(200, {"choices": [choice], "usage": {}})


def _row(p: Position) -> dict[str, Any]:
    return {
        str(token): {"logprob": value, "rank": 1, "decoded_token": written(int(token))}
        for token, value in zip(p.tokens, p.logprobs, strict=True)
    }


def _openai(told: list[Position], echoed: bool) -> dict[str, Any]:
    tops = [
        {written(int(t)): value for t, value in zip(p.tokens, p.logprobs, strict=True)}
        for p in told
    ]
    own = [p.logprobs[0] for p in told]
    return {
        "tokens": [written(int(p.tokens[0])) for p in told],
        "token_logprobs": [None, *own[1:]] if echoed else own,
        "top_logprobs": [None, *tops[1:]] if echoed else tops,
    }
