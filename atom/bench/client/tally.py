"""One answer's events -> its tokens, their times, how it ended.

Tokens are counted from `usage`, never from chunks or text. Where every chunk holds the usage so far
(`continuous_usage_stats`), a chunk weighs what it adds. Where only the last one does, a token time
is that of a chunk with text, reasoning or a tool call; an empty or role-only chunk is none.
"""

from __future__ import annotations

from typing import Any

import msgspec

from atom.bench.client.sse import Event, EventParser, NotEvents
from atom.bench.types import ErrorKind, RequestRecord

DONE = b"[DONE]"
MAX_MESSAGE = 300  # characters of an error that are kept


class Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[msgspec.Raw] | None = None


class ChunkChoice(msgspec.Struct):
    text: str | None = None
    delta: Delta | None = None
    finish_reason: str | None = None


class PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: PromptDetails | None = None
    # What atom's server adds; seconds.
    queue_s: float | None = None
    ttft_s: float | None = None
    tpot_s: float | None = None
    latency_s: float | None = None


class Chunk(msgspec.Struct):
    choices: list[ChunkChoice] = []
    usage: Usage | None = None
    error: Any = None
    object: str | None = None
    message: str | None = None  # of an error in vLLM's older shape


_decode = msgspec.json.Decoder(Chunk).decode
_SERVER_FIELDS = ("queue_s", "ttft_s", "tpot_s", "latency_s")


class Failed(Exception):
    """The answer is an error; its kind and one line for people."""

    def __init__(self, kind: ErrorKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Tally:
    """Fills a `RequestRecord` from the bytes of one event stream.

    `count` is called with the number of new tokens. Times are perf_counter less `base_s`.
    """

    __slots__ = (
        "_base",
        "_continuous",
        "_counts",
        "_known",
        "_parser",
        "_times",
        "_usage",
        "chunks",
        "done",
        "record",
        "texts",
        "tokens",
    )

    def __init__(self, record: RequestRecord, base_s: float, keep_text: bool) -> None:
        self.record = record
        self.texts: list[str] | None = [] if keep_text else None
        self.done = False  # [DONE] has come
        self.chunks = 0
        self.tokens = 0  # so far, as well as it is known: for the display
        self._base = base_s
        self._parser = EventParser()
        self._times = record.token_times_s = []
        self._counts = record.token_counts = []
        # Whether usage comes with the chunks; known from the first one that carries anything.
        self._continuous: bool | None = None
        self._known = 0  # completion tokens of the latest usage
        self._usage: Usage | None = None

    def feed(self, now: float, data: bytes) -> None:
        """Bytes of the body that arrived at `now`. Raises `Failed`."""
        try:
            events = self._parser.feed(data)
        except NotEvents as error:
            raise Failed("malformed", f"not server-sent events: {error}") from None
        for event in events:
            if type(event) is Event:
                self._named(now, event)
            else:
                self._event(now - self._base, event)  # type: ignore[arg-type]

    def _named(self, now: float, event: Event) -> None:
        if event.name == b"error":
            raise Failed("stream", error_text(event.data))
        self._event(now - self._base, event.data)

    def _event(self, at: float, data: bytes) -> None:
        if data == DONE or data.strip() == DONE:
            if not self.done:
                self.done = True
                self.record.ended_s = at
            return
        try:
            chunk = _decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Failed("malformed", f"{error}: {shown(data)}") from None
        self.chunks += 1
        if chunk.error is not None or chunk.object == "error":
            raise Failed("stream", error_text(data))
        carries = False
        for choice in chunk.choices:
            if self._choice(at, choice):
                carries = True
        usage = chunk.usage
        told = None if usage is None else usage.completion_tokens
        if carries and not told and self._continuous is None:
            self._continuous = False  # a token that no usage counts
        if carries and self._continuous is False:
            self._add(at, 1)
        if usage is not None and told is not None:
            self._on_usage(at, usage, told, bool(chunk.choices))

    def _choice(self, at: float, choice: ChunkChoice) -> bool:
        """Whether the chunk carries a token, as far as its content shows."""
        if choice.finish_reason is not None:
            self.record.finish_reason = choice.finish_reason
        text = choice.text
        delta = choice.delta
        carries = False
        if delta is not None:
            text = delta.content
            carries = bool(delta.reasoning_content or delta.reasoning or delta.tool_calls)
        if not text:
            return carries
        if self.record.first_text_s is None:
            self.record.first_text_s = at
        if self.texts is not None:
            self.texts.append(text)
        return True

    def _on_usage(self, at: float, usage: Usage, tokens: int, with_choices: bool) -> None:
        self._usage = usage
        new = tokens - self._known
        self._known = tokens
        if self._continuous is None and tokens > 0:
            # A first token together with its usage; or nothing before the closing usage event,
            # which then is what advanced the count.
            self._continuous = with_choices
            if not with_choices:
                self._times.append(at)
                self._counts.append(tokens)
                self.tokens = tokens
                return
        if self._continuous and new > 0:
            self._add(at, new)

    def _add(self, at: float, tokens: int) -> None:
        self._times.append(at)
        self._counts.append(tokens)
        self.tokens += tokens

    def finish(self, at: float) -> None:
        """The stream has ended at `at`. Raises `Failed` if it was no proper end."""
        record = self.record
        if not self.done:
            record.ended_s = at - self._base
        self.fill()
        if not self.done and record.finish_reason is None:
            raise Failed("early_close", "the stream ended without [DONE] and without finish_reason")
        if not self._times:
            raise Failed("no_tokens", "the answer ended without a token")

    def fill(self) -> None:
        """What is known so far into the record; also for requests that failed or were given up."""
        record = self.record
        if self.texts is not None:
            record.text = "".join(self.texts)
        usage = self._usage
        if usage is None:
            record.counted_by = "chunks" if self._times else ""
            return
        record.counted_by = "continuous_usage" if self._continuous else "usage"
        record.input_tokens = usage.prompt_tokens
        record.output_tokens = usage.completion_tokens
        if usage.prompt_tokens_details is not None:
            record.cached_tokens = usage.prompt_tokens_details.cached_tokens
        told = ((name, getattr(usage, name)) for name in _SERVER_FIELDS)
        record.server = {name: value for name, value in told if value is not None}
        if self._continuous and sum(self._counts) != self._known:
            self._settle(self._known)

    def _settle(self, total: int) -> None:
        """A server took tokens back (its last usage is less than one before): so do we."""
        excess = sum(self._counts) - total
        while excess > 0 and self._counts:
            taken = min(excess, self._counts[-1])
            excess -= taken
            self._counts[-1] -= taken
            if not self._counts[-1]:
                self._counts.pop()
                self._times.pop()


def shown(data: bytes) -> str:
    text = " ".join(data[: MAX_MESSAGE * 4].decode("utf-8", "replace").split())
    return text if len(text) <= MAX_MESSAGE else text[:MAX_MESSAGE] + "..."


def error_text(data: bytes) -> str:
    """The message of an error body in any of the shapes that servers use, in one line."""
    try:
        body: Any = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return shown(data)
    for _ in range(3):
        if isinstance(body, dict):
            body = next(
                (body[key] for key in ("error", "message", "detail") if body.get(key)), None
            )
    return shown(body.encode()) if isinstance(body, str) else shown(data)
