"""What parent and worker say to each other: msgspec structs as length-prefixed msgpack on pipes."""

from __future__ import annotations

import struct
from typing import Any

import msgspec

from atom.bench.types import Endpoint, Message, RequestRecord, Turn

_HEAD = struct.Struct("<I")


class Server(msgspec.Struct, frozen=True):
    """Where and how a worker connects. `head` is the request's head up to Content-Length."""

    addresses: list[tuple[str, int]]  # of the host, as resolved; the first that answers is kept
    host: str  # for TLS
    tls: bool
    verify_tls: bool
    head: bytes
    timeout_s: float


class Setup(msgspec.Struct, frozen=True, tag=True):
    """One run. `places` is this worker's share: of the concurrency, or of `max_in_flight`."""

    worker: int
    server: Server
    endpoint: Endpoint
    common: dict[str, Any]  # the part of the body that all requests share
    extra_body: dict[str, Any]  # the target's, over the above
    open_loop: bool
    places: int | None
    keep_text: bool


class Task(msgspec.Struct, frozen=True, tag=True):
    """A job. `body` is its first request's, encoded by the parent to spare the worker's loop."""

    index: int
    turns: list[Turn]  # of a single turn: without its prompt
    body: bytes
    arrival_s: float | None = None


class Start(msgspec.Struct, frozen=True, tag=True):
    """The clock's zero, in perf_counter seconds. Jobs begin then, not before.

    After `duration_s`, no more begin and what is in flight is given up.
    """

    base_s: float
    duration_s: float | None = None


class Refill(msgspec.Struct, frozen=True, tag=True):
    """Say so when fewer than `low` jobs are on hand."""

    low: int


class Places(msgspec.Struct, frozen=True, tag=True):
    """A new share."""

    places: int


class Stop(msgspec.Struct, frozen=True, tag=True):
    """Start nothing more; after `grace_s`, give up what is in flight."""

    grace_s: float


class Finish(msgspec.Struct, frozen=True, tag=True):
    """The run is over: send what is left and a `Final`."""


class Ready(msgspec.Struct, frozen=True, tag=True):
    pass


class Tick(msgspec.Struct, frozen=True, tag=True):
    """Where a worker is; ten times a second and when it runs short of jobs."""

    queued: int  # jobs on hand that have not begun
    started: int
    in_flight: int  # jobs
    done: int  # requests
    failed: int
    tokens: int
    places: int | None
    cpu_s: float  # of this run
    waited_s: float  # runnable, but without a CPU


class Ended(msgspec.Struct, frozen=True, tag=True):
    records: list[RequestRecord]


class Final(msgspec.Struct, frozen=True, tag=True):
    """Sent once all records are. Everything counts from this worker's start to the run's end."""

    elapsed_s: float
    cpu_s: float
    waited_s: float
    chunks: int
    lags_s: list[float]
    send_delays_s: list[float]
    kernel_reads: int = 0  # whose moment is the kernel's
    client_reads: int = 0  # whose moment is when we got to them


ToWorker = Setup | Task | Start | Refill | Places | Stop | Finish
ToParent = Ready | Tick | Ended | Final

_encoder = msgspec.msgpack.Encoder()


def pack(message: ToWorker | ToParent) -> bytes:
    body = _encoder.encode(message)
    return _HEAD.pack(len(body)) + body


class Unpacker:
    """Whole frames out of bytes that are cut anywhere."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        rest = self._rest
        rest += data
        frames = []
        start = 0
        while len(rest) - start >= _HEAD.size:
            (size,) = _HEAD.unpack_from(rest, start)
            end = start + _HEAD.size + size
            if len(rest) < end:
                break
            frames.append(bytes(rest[start + _HEAD.size : end]))
            start = end
        del rest[:start]
        return frames


def conversation(turns: list[Turn], upto: int, answers: list[str]) -> str | list[Message]:
    """What turn `upto` is sent with: all that was said before, and its own."""
    if turns[0].messages is not None:
        said: list[Message] = []
        for number in range(upto + 1):
            said += turns[number].messages or []
            if number < upto:
                said.append({"role": "assistant", "content": answers[number]})
        return said
    text = ""
    for number in range(upto + 1):
        text += str(turns[number].prompt)
        if number < upto:
            text += answers[number]
    return text
