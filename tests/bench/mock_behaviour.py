"""What the mock server does with a request: timings, the form of the stream, faults."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Any

KINDS = ("atom", "vllm", "llama.cpp", "sglang", "unknown")
FAULTS = {
    "http": "answers with this status instead (http:503)",
    "event": "after K tokens an error event, then the stream's proper end (event:3)",
    "close": "after K tokens the body ends, no finish reason and no [DONE] (close:3)",
    "cut": "after K tokens the connection closes within the body (cut:3)",
    "reset": "after K tokens the connection is reset; reset:0 before any byte of the answer",
    "garbage": "after K tokens an event that is no JSON, then the stream's proper end (garbage:3)",
    "hang": "after K tokens nothing more, the connection stays open (hang:3)",
    "empty": "a stream that ends well and carries no token",
    "html": "status 200 and a page of HTML instead of a stream",
}


@dataclass(frozen=True, slots=True)
class Fault:
    """A kind of `FAULTS`, its number, and which generation requests (by order of arrival) it hits.

    Written `kind[:number][@selector]`; the selector is `every=N` (N-1, 2N-1, ...), `2,5,9`, or
    nothing, for all of them.
    """

    kind: str
    number: int = 0
    every: int = 1
    only: frozenset[int] = frozenset()

    @staticmethod
    def parse(text: str) -> Fault:
        match = re.fullmatch(r"(\w+)(?::(\d+))?(?:@(?:every=(\d+)|(\d+(?:,\d+)*)))?", text)
        if match is None or match[1] not in FAULTS:
            raise ValueError(f"fault {text!r}: KIND[:NUMBER][@every=N|@I,J]; kinds: {[*FAULTS]}")
        only = frozenset(int(i) for i in (match[4] or "").split(",") if i)
        return Fault(match[1], int(match[2] or 0), int(match[3] or 1), only)

    def hits(self, index: int) -> bool:
        return index in self.only if self.only else index % self.every == self.every - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """All of it can be overridden for one request by the member "mock" of its body."""

    ttft_ms: float = 20.0  # from the request's arrival (or its place, with `slots`) to chunk 0
    itl_ms: float = 5.0  # between chunks
    load_ms: float = 0.0  # added to each gap for each stream in service
    prefill_us: float = 0.0  # added to the first gap for each prompt token
    tokens_per_chunk: int = 1
    hold_tokens: int = 0  # so many first tokens come with no chunk; the next chunk counts them
    reasoning_tokens: int = 0  # chat: so many first tokens are reasoning_content
    stalls: dict[int, float] = field(default_factory=dict)  # token -> ms that its chunk is late
    stall_every: int = 1  # only requests N-1, 2N-1, ... stall
    batched: bool = False  # chunks leave at multiples of itl_ms for all streams, as an engine's do
    eos_at: int | None = None  # without ignore_eos, the answer ends after so many tokens
    slots: int | None = None  # requests in service at once; more wait, first come first served

    usage: str = "auto"  # auto: as asked; final: never continuous; none; refuse: 400 when asked
    extras: bool = True  # queue_s, ttft_s, latency_s within the final usage, as our server's
    cached_tokens: int | None = None  # said in usage.prompt_tokens_details
    opening: bool = True  # chat: role-only chunk first; completions: with `empty_first` only
    empty_first: bool = False  # completions: a chunk without text before the first token
    opening_ms: float = 0.0  # when the opening chunk leaves
    finish_apart: bool = False  # the finish reason comes in a chunk of its own, without text
    done: bool = True  # [DONE] at the end
    crlf: bool = False
    comments: bool = False  # a comment line before each event
    multiline: bool = False  # each event's data in two lines
    split_bytes: int = 0  # each event is written in pieces of so many bytes
    split_ms: float = 0.0  # between the pieces

    faults: tuple[Fault, ...] = ()
    key: str | None = None  # the bearer token that is required
    model: str = "mock"
    max_model_len: int = 32768
    kind: str = "atom"  # whose answers /version, /metrics, /v1/models and their like resemble
    accept_length: float = 0.0  # > 0: counters of speculative decoding on the metrics page
    profiler: bool = True  # /start_profile and /stop_profile exist
    tokenize: bool = True  # /tokenize and /detokenize exist
    idle_close_ms: float = 0.0  # > 0: an idle connection is closed after so long
    close_after: int = 0  # > 0: a connection is closed, unannounced, after so many answers

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.usage not in ("auto", "final", "none", "refuse"):
            raise ValueError(f"kind {self.kind!r} or usage {self.usage!r} is not known")
        if self.tokens_per_chunk < 1 or self.itl_ms < 0 or self.ttft_ms < 0:
            raise ValueError("tokens_per_chunk is at least 1, times are not negative")

    def fault(self, index: int) -> Fault | None:
        return next((fault for fault in self.faults if fault.hits(index)), None)

    def stall_s(self, index: int, first: int, count: int) -> float:
        """What the chunk with tokens [first, first + count) of request `index` is late by."""
        if not self.stalls or index % self.stall_every != self.stall_every - 1:
            return 0.0
        return sum(ms for token, ms in self.stalls.items() if first <= token < first + count) / 1e3

    def override(self, changes: dict[str, Any]) -> Behaviour:
        """With JSON values, as in a body's "mock"; unknown names raise TypeError."""
        changes = dict(changes)
        if "fault" in changes:
            changes["faults"] = (Fault.parse(changes.pop("fault")),)
        if "stalls" in changes:
            changes["stalls"] = {int(k): float(v) for k, v in changes["stalls"].items()}
        return dataclasses.replace(self, **changes)
