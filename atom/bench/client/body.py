"""The JSON body of a request, and checks of what a job asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from atom.bench.errors import BenchError
from atom.bench.types import Endpoint, Job, Message, Target, Turn

PATHS: dict[Endpoint, str] = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
_encode = msgspec.json.Encoder().encode


def common_body(target: Target) -> dict[str, Any]:
    """What all requests of a run share. The temperature is always sent: defaults differ."""
    options: dict[str, Any] = {"include_usage": True}
    if target.continuous_usage:
        options["continuous_usage_stats"] = True
    body: dict[str, Any] = {
        "model": target.model,
        "temperature": target.temperature,
        "stream": True,
        "stream_options": options,
    }
    if target.ignore_eos:
        body["ignore_eos"] = True
    return body


def request_body(
    common: Mapping[str, Any],
    extra: Mapping[str, Any],
    endpoint: Endpoint,
    content: str | list[int] | list[Message],
    turn: Turn,
) -> bytes:
    """`extra` (the target's) goes over the common part, the turn's own over everything."""
    name = "messages" if endpoint == "chat" else "prompt"
    body = {**common, name: content, "max_tokens": turn.max_tokens, **extra, **turn.extra_body}
    return _encode(body)


def first_content(job: Job, endpoint: Endpoint) -> str | list[int] | list[Message]:
    """The first turn's prompt or messages. Raises `BenchError` for a job that cannot be sent."""
    if not job.turns:
        raise BenchError(f"job {job.index} has no turns")
    for number, turn in enumerate(job.turns):
        content = turn.messages if endpoint == "chat" else turn.prompt
        if content is None:
            have, need = (
                ("a prompt", "messages") if endpoint == "chat" else ("messages", "a prompt")
            )
            raise BenchError(
                f"job {job.index}, turn {number} has {have}, but the {endpoint} endpoint "
                f"takes {need}"
            )
        if len(job.turns) > 1 and endpoint == "completions" and not isinstance(content, str):
            raise BenchError(
                f"job {job.index} has several turns of token ids: an answer's ids are not known, "
                "so write its prompts as text"
            )
    content = job.turns[0].messages if endpoint == "chat" else job.turns[0].prompt
    assert content is not None
    return content
