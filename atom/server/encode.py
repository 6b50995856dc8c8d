"""Answers as JSON and as server-sent events. Per streamed token: one orjson call and two joins."""

from __future__ import annotations

import abc
import time
import uuid
from typing import Any

import orjson

from atom.server.errors import ApiError
from atom.server.generation import Choice, Delta
from atom.server.logprobs import chat_logprobs, completion_logprobs, prompt_logprobs

DONE = b"data: [DONE]\n\n"


def error_event(error: ApiError) -> bytes:
    return b"data: " + orjson.dumps(error.body()) + b"\n\n"


class Encoder(abc.ABC):
    """The protocol's face of one request. `num_logprobs` None: none were asked for."""

    prefix: str  # of the id
    stream_object: str
    answer_object: str

    def __init__(self, model: str, num_logprobs: int | None, null_usage: bool) -> None:
        self.num_logprobs = num_logprobs
        self._id = f"{self.prefix}-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._model = model
        envelope = self._envelope(self.stream_object)
        head = orjson.dumps({**envelope, "choices": []})
        self._head = b"data: " + head[: head.rindex(b"]")]
        self._tail = b'],"usage":null}\n\n' if null_usage else b"]}\n\n"

    def _envelope(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}

    def opening(self, num_choices: int) -> bytes:
        """Events sent before the first token."""
        return b""

    def event(self, choice: Choice, delta: Delta, usage: dict[str, Any] | None) -> bytes:
        """One chunk; `usage` is given with continuous_usage_stats."""
        logprobs = b"null"
        if delta.positions and self.num_logprobs is not None:
            logprobs = orjson.dumps(self._logprobs(choice, delta))
        reason = b'"%b"' % delta.finish_reason.encode() if delta.finish_reason else b"null"
        tail = self._tail if usage is None else b'],"usage":' + orjson.dumps(usage) + b"}\n\n"
        return b'%b{"index":%d,%b,"logprobs":%b,"finish_reason":%b}%b' % (
            self._head,
            choice.index,
            self._text(delta.text),
            logprobs,
            reason,
            tail,
        )

    def usage_event(self, usage: dict[str, Any]) -> bytes:
        body = {**self._envelope(self.stream_object), "choices": [], "usage": usage}
        return b"data: " + orjson.dumps(body) + b"\n\n"

    def answer(
        self, choices: list[Choice], deltas: list[list[Delta]], usage: dict[str, Any]
    ) -> bytes:
        """The whole answer of a request that does not stream."""
        body = self._envelope(self.answer_object)
        body["choices"] = [
            self._whole(choice, _joined(parts))
            for choice, parts in zip(choices, deltas, strict=True)
        ]
        body["usage"] = usage
        return orjson.dumps(body)

    @abc.abstractmethod
    def _text(self, text: str) -> bytes:
        """The chunk's members that hold the text."""

    @abc.abstractmethod
    def _logprobs(self, choice: Choice, delta: Delta) -> dict[str, Any]: ...

    @abc.abstractmethod
    def _whole(self, choice: Choice, delta: Delta) -> dict[str, Any]: ...


class CompletionEncoder(Encoder):
    prefix = "cmpl"
    stream_object = "text_completion"
    answer_object = "text_completion"

    def _text(self, text: str) -> bytes:
        return b'"text":' + orjson.dumps(text)

    def _logprobs(self, choice: Choice, delta: Delta) -> dict[str, Any]:
        return completion_logprobs(delta.positions, self.num_logprobs or 0, choice.token_text)

    def _whole(self, choice: Choice, delta: Delta) -> dict[str, Any]:
        body: dict[str, Any] = {
            "index": choice.index,
            "text": delta.text,
            "logprobs": None if self.num_logprobs is None else self._logprobs(choice, delta),
            "finish_reason": delta.finish_reason,
        }
        if choice.num_prompt_logprobs is not None:
            body["prompt_logprobs"] = _prompt_logprobs(choice)
        return body


class ChatEncoder(Encoder):
    prefix = "chatcmpl"
    stream_object = "chat.completion.chunk"
    answer_object = "chat.completion"

    def opening(self, num_choices: int) -> bytes:
        """The role of each choice, before any content."""
        role = b'"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}'
        return b"".join(
            b'%b{"index":%d,%b%b' % (self._head, index, role, self._tail)
            for index in range(num_choices)
        )

    def _text(self, text: str) -> bytes:
        return b'"delta":{"content":%b}' % orjson.dumps(text) if text else b'"delta":{}'

    def _logprobs(self, choice: Choice, delta: Delta) -> dict[str, Any]:
        return chat_logprobs(delta.positions, self.num_logprobs or 0, choice.token_text)

    def _whole(self, choice: Choice, delta: Delta) -> dict[str, Any]:
        body: dict[str, Any] = {
            "index": choice.index,
            "message": {"role": "assistant", "content": delta.text, "refusal": None},
            "logprobs": None if self.num_logprobs is None else self._logprobs(choice, delta),
            "finish_reason": delta.finish_reason,
        }
        if choice.num_prompt_logprobs is not None:
            body["prompt_logprobs"] = _prompt_logprobs(choice)
        return body


def _prompt_logprobs(choice: Choice) -> list[dict[str, Any] | None] | None:
    """The prompt's, which the first choice of each prompt has computed for all."""
    values, num = choice.first.prompt_logprobs, choice.num_prompt_logprobs
    if values is None or num is None:
        return None
    return prompt_logprobs(values, num, choice.token_text)


def _joined(parts: list[Delta]) -> Delta:
    return Delta(
        "".join(part.text for part in parts),
        [position for part in parts for position in part.positions],
        parts[-1].finish_reason,
    )
