"""What `atom run` asks and gets, whoever answers: the engine in process or a running server."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

Message = dict[str, str]  # {"role": ..., "content": ...}, as the API writes it


@dataclass(frozen=True, slots=True)
class Question:
    """Either a chat or, with `text`, a text to continue as it stands."""

    messages: tuple[Message, ...] = ()
    text: str | None = None
    sampling: dict[str, Any] = field(default_factory=dict)  # only what the user gave


@dataclass(slots=True)
class Usage:
    """What an answer took. Seconds are measured here, at the terminal."""

    finish_reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    ttft_s: float = 0.0
    latency_s: float = 0.0

    @property
    def tokens_per_s(self) -> float:
        """Of the tokens after the first; 0 if there are none."""
        decode_s = self.latency_s - self.ttft_s
        return (self.completion_tokens - 1) / decode_s if decode_s > 0 else 0.0


class Answerer(Protocol):
    """Answers one question at a time. Closing the iterator early stops the answer.

    `usage` belongs to the last answer and is complete when its iterator has ended. Ctrl-C may
    arrive anywhere in the iterator: it comes out as `KeyboardInterrupt` and leaves the answerer fit
    for the next question.
    """

    @property
    def name(self) -> str: ...
    @property
    def can_chat(self) -> bool: ...  # False: the model has no chat template
    @property
    def usage(self) -> Usage: ...
    def stream(self, question: Question) -> Iterator[str]: ...
    def close(self) -> None: ...


def timed(pieces: Iterator[str], usage: Usage) -> Iterator[str]:
    """Pass pieces on and write down when the first and the last came."""
    started = time.perf_counter()
    try:
        for piece in pieces:
            if usage.ttft_s == 0.0:
                usage.ttft_s = time.perf_counter() - started
            yield piece
    finally:
        usage.latency_s = time.perf_counter() - started
