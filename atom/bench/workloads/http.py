"""One small synchronous JSON client, for questions asked before a run: tokens of a text, usage.

The load itself is the client's (`atom.bench.client`). As there, proxies of the environment are left
alone.
"""

from __future__ import annotations

import http.client
import ssl
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec

from atom.bench.errors import BenchError, ServerUnreachable
from atom.bench.types import Target

_TIMEOUT_S = 120.0  # a busy server may take long over its first request


class Answer(NamedTuple):
    status: int
    body: dict[str, Any]  # {} where it was no JSON object

    @property
    def error(self) -> str:
        """What the server says is wrong, on one line."""
        error = self.body.get("error", self.body.get("detail", self.body.get("message", "")))
        text = error.get("message", "") if isinstance(error, dict) else error
        return " ".join(f"HTTP {self.status} {text}".split())[:300]


class JsonServer:
    """POSTs JSON to a target. Safe to share between threads; each has its own connection."""

    def __init__(self, target: Target) -> None:
        wrong = f"{target.base_url!r} is no server's URL; write http://host:port"
        try:
            parts = urlsplit(target.base_url)
            port = parts.port
        except ValueError as error:  # a port that is none, half an IPv6 address
            raise BenchError(wrong) from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise BenchError(wrong)
        self.target = target
        self._root = parts.path.rstrip("/")
        self._tls = parts.scheme == "https"
        self._host, self._port = parts.hostname, port
        self._local = threading.local()
        self._headers = {"Content-Type": "application/json", **target.headers}
        if target.api_key is not None:
            self._headers["Authorization"] = f"Bearer {target.api_key}"

    def post(self, path: str, body: Mapping[str, Any]) -> Answer:
        """Raises `ServerUnreachable` when no answer comes."""
        data = msgspec.json.encode(body)
        for attempt in (0, 1):  # a kept connection may have been closed in the meantime
            fresh = getattr(self._local, "connection", None) is None
            try:
                return self._exchange(path, data)
            except (OSError, http.client.HTTPException) as error:
                self._local.connection = None
                if fresh or attempt:
                    reason = str(error) or type(error).__name__
                    raise ServerUnreachable(
                        f"no answer from {self.target.base_url}{path}: {reason}"
                    ) from error
        raise AssertionError("the second attempt has a fresh connection")

    def _exchange(self, path: str, data: bytes) -> Answer:
        connection = getattr(self._local, "connection", None) or self._connect()
        self._local.connection = connection
        try:
            connection.request("POST", self._root + path, data, self._headers)
        except ValueError:
            # Its message shows the header, which may be a key.
            raise BenchError("a header or the key has characters that HTTP forbids") from None
        response = connection.getresponse()
        raw = response.read()
        try:
            body = msgspec.json.decode(raw)
        except msgspec.DecodeError:
            body = {"message": raw[:200].decode(errors="replace")}
        return Answer(response.status, body if isinstance(body, dict) else {})

    def _connect(self) -> http.client.HTTPConnection:
        if not self._tls:
            return http.client.HTTPConnection(self._host, self._port, timeout=_TIMEOUT_S)
        context = ssl.create_default_context()
        if not self.target.verify_tls:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return http.client.HTTPSConnection(
            self._host, self._port, timeout=_TIMEOUT_S, context=context
        )


# Fields of a request that say how much is generated, not what the prompt is.
_OUTPUT_FIELDS = {
    *("max_tokens", "max_completion_tokens", "min_tokens", "n", "best_of", "stop", "ignore_eos"),
    *("stream", "stream_options", "logprobs", "top_logprobs", "echo", "response_format"),
}


def prompt_tokens(server: JsonServer, prompt: str | list[int] | None, chat: str | None) -> int:
    """`usage.prompt_tokens` of a request for one token: the truth about a prompt's length.

    Exactly one of `prompt` (completions) and `chat` (one user message) is given. Raises
    `BenchError` where the server refuses it or sends no usage.
    """
    target = server.target
    extra = {k: v for k, v in target.extra_body.items() if k not in _OUTPUT_FIELDS}
    body: dict[str, Any] = {"model": target.model, "max_tokens": 1, "temperature": 0.0, **extra}
    if chat is not None:
        path, body["messages"] = "/v1/chat/completions", [{"role": "user", "content": chat}]
    else:
        path, body["prompt"] = "/v1/completions", prompt
    answer = server.post(path, body)
    if answer.status != 200:
        raise BenchError(f"{target.base_url}{path} refuses a request for one token: {answer.error}")
    usage = answer.body.get("usage")
    tokens = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    if not isinstance(tokens, int):
        raise BenchError(
            f"{target.base_url}{path} tells no usage.prompt_tokens: lengths are unknown"
        )
    return tokens
