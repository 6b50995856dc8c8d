"""Answers from a running OpenAI-compatible server, over HTTP with the standard library alone."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from typing import IO, Any

from atom.cli.answers import Question, Usage, timed
from atom.errors import AtomError

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 600.0  # a long prompt on a slow machine says nothing until its first token
MAX_ERROR_BYTES = 65536


class ServerError(AtomError):
    """The server cannot be reached, or it refused or broke off."""

    exit_code = 1


class RemoteAnswerer:
    """`url` is the server's address, with or without /v1; `model` None takes the first it has."""

    can_chat = True  # the server says so if it cannot

    def __init__(self, url: str, *, model: str | None = None, api_key: str | None = None) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ServerError(f"--url must look like http://127.0.0.1:8000, got {url}")
        self._base = url.rstrip("/").removesuffix("/v1")
        self._headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        # A proxy of the environment has no business between this terminal and this machine.
        local = parts.hostname in ("localhost", "127.0.0.1", "::1")
        handlers = [urllib.request.ProxyHandler({})] if local else []
        self._opener = urllib.request.build_opener(*handlers)
        self.name = self._pick(model)
        self.usage = Usage()

    def close(self) -> None:
        self._opener.close()

    def stream(self, question: Question) -> Iterator[str]:
        self.usage = Usage()
        return timed(self._pieces(question), self.usage)

    def _pieces(self, question: Question) -> Iterator[str]:
        body: dict[str, Any] = {
            "model": self.name,
            "stream": True,
            "stream_options": {"include_usage": True},
            **question.sampling,
        }
        chat = question.text is None
        body |= {"messages": list(question.messages)} if chat else {"prompt": question.text}
        with self._open(
            "/v1/chat/completions" if chat else "/v1/completions", body, READ_TIMEOUT_S
        ) as answer:
            try:
                for event in _events(answer):
                    text = self._take(event, chat)
                    if text:
                        yield text
            except (OSError, HTTPException) as error:
                raise ServerError(f"{self._base} broke off: {_reason(error)}") from error

    def _take(self, event: dict[str, Any], chat: bool) -> str:
        """The text of one event; usage and finish reason are kept."""
        if "error" in event:
            raise ServerError(f"{self._base}: {_message(event)}")
        usage = event.get("usage")
        if usage:
            self.usage.prompt_tokens = usage.get("prompt_tokens", 0)
            self.usage.completion_tokens = usage.get("completion_tokens", 0)
        text = ""
        for choice in event.get("choices") or ():
            self.usage.finish_reason = choice.get("finish_reason") or self.usage.finish_reason
            text += (choice["delta"].get("content") if chat else choice.get("text")) or ""
        return text

    def _pick(self, wanted: str | None) -> str:
        with self._open("/v1/models", None, CONNECT_TIMEOUT_S) as answer:
            try:
                names = [str(model["id"]) for model in json.load(answer)["data"]]
            except (ValueError, KeyError, TypeError) as error:
                raise ServerError(f"{self._base} is not an OpenAI-compatible server") from error
        if wanted is not None and wanted not in names:
            raise ServerError(f"{self._base} has no model {wanted}; it has {', '.join(names)}")
        if not names:
            raise ServerError(f"{self._base} has no model")
        return wanted or names[0]

    def _open(self, path: str, body: dict[str, Any] | None, timeout_s: float) -> IO[bytes]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._base + path, data, self._headers)  # noqa: S310
        try:
            answer: IO[bytes] = self._opener.open(request, timeout=timeout_s)
            return answer
        except urllib.error.HTTPError as error:
            raise ServerError(f"{self._base} answered {error.code}: {_body(error)}") from error
        except (OSError, HTTPException) as error:
            raise ServerError(
                f"cannot reach {self._base}: {_reason(error)}; is `atom serve` running?"
            ) from error


def _events(stream: IO[bytes]) -> Iterator[dict[str, Any]]:
    """The JSON objects of a server-sent event stream, up to [DONE]."""
    for line in stream:
        name, _, data = line.decode("utf-8", errors="replace").rstrip("\r\n").partition(":")
        if name != "data":
            continue
        data = data.strip()
        if data == "[DONE]":
            return
        try:
            event = json.loads(data)
        except ValueError as error:
            raise ServerError(
                f"not an event of an OpenAI-compatible server: {data[:80]}"
            ) from error
        yield event
    raise ServerError("the stream ended before its end was announced")


def _body(error: urllib.error.HTTPError) -> str:
    text = error.read(MAX_ERROR_BYTES).decode("utf-8", errors="replace")
    try:
        return _message(json.loads(text))
    except ValueError:
        return " ".join(text.split())[:200] or error.reason


def _message(value: Any) -> str:
    """The message of an error in OpenAI's shape."""
    error = value.get("error") if isinstance(value, dict) else None
    if isinstance(error, dict):
        return str(error.get("message", error))
    return str(error or value)


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.URLError):
        return str(error.reason)
    return str(error) or type(error).__name__
