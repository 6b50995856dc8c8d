"""HTTP/1.1 for the measured requests: moments first, parsing after.

aiohttp does the errands (probe, metrics). Streams are read from their sockets (connections.py) and
parsed by httptools: a chunk then costs about half the CPU it costs with aiohttp
(benchmarks/bench_client.py), and its moment does not wait for a task to wake.

All bytes of all sockets go, with their moment, into one `Backlog`, which is worked off a slice at a
time between polls of the sockets. So when a server sends to a thousand streams at once, the last
one is read after a thousand reads, not after a thousand parses: where the kernel does not tell when
bytes arrived that is how late its moment is, and where it does, how long bytes may wait until the
stream's next ones share their read and thereby their moment.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections import deque
from time import perf_counter
from typing import Protocol

import httptools

SLICE = 24  # reads that are worked off between two polls: about 0.2 ms
SAME_POLL_S = 20e-6  # a read so soon after another comes from the same poll: there may be more
# For so long after a poll, reads are parsed as they come if the kernel tells when they arrived: a
# round of the loop for them costs more than the parsing, and they hold up nothing but timers.
AT_ONCE_S = 0.3e-3


class Sink(Protocol):
    """Whoever is waiting for an answer. Called from the backlog, in order."""

    def on_head(self, status: int, headers: dict[bytes, bytes]) -> None: ...
    def on_body(self, now: float, data: bytes) -> None: ...
    def on_complete(self, now: float) -> None: ...
    def on_lost(self, now: float, error: str, answered: bool) -> None: ...
    def on_written(self, now: float) -> None: ...


class Keeper(Protocol):
    """Has the connections that are open."""

    def put(self, connection: Connection) -> None: ...
    def forget(self, connection: Connection) -> None: ...


class Backlog:
    """Reads that have a moment but are not parsed yet.

    A read that comes alone is parsed at once: putting it off costs another round of the loop. So
    are those of the first `at_once_s` after a poll.
    """

    __slots__ = ("_at_once_s", "_free_s", "_loop", "_poll_s", "_reads", "_scheduled")

    def __init__(self, loop: asyncio.AbstractEventLoop, at_once_s: float) -> None:
        self._loop = loop
        self._at_once_s = at_once_s
        self._poll_s = 0.0  # when the latest poll's first read came, as far as it shows
        self._reads: deque[tuple[Connection, float, bytes | bytearray | None, str]] = deque()
        self._scheduled = False
        self._free_s = 0.0  # when the last read was dealt with

    def add(self, connection: Connection, moment: float, data: bytes | bytearray) -> None:
        """What was read just now and arrived at `moment`."""
        now = perf_counter()
        if not self._scheduled:
            if now - self._free_s > SAME_POLL_S:
                self._poll_s = now
            if now - self._poll_s <= self._at_once_s:
                connection.on_data(moment, data)
                self._free_s = perf_counter()
                return
        self._free_s = now
        self._later((connection, moment, data, ""))

    def add_loss(self, connection: Connection, error: str) -> None:
        """The connection is lost. Never told at once: the caller may be its sink."""
        self._later((connection, perf_counter(), None, error))

    def _later(self, read: tuple[Connection, float, bytes | bytearray | None, str]) -> None:
        self._reads.append(read)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._work)

    def _work(self) -> None:
        reads = self._reads
        for _ in range(min(SLICE, len(reads))):
            connection, moment, data, error = reads.popleft()
            if data is None:
                connection.on_lost(moment, error)
            else:
                connection.on_data(moment, data)
        if reads:
            self._loop.call_soon(self._work)
        else:
            self._scheduled = False
            self._poll_s = perf_counter()  # the next reads are of a new one


class Connection:
    """One request at a time and its answer; who extends it moves the bytes.

    Those set `alive`, `writing` and `floor_s`, and give the backlog what they read and lose.
    """

    def __init__(self, backlog: Backlog, keeper: Keeper) -> None:
        self.backlog = backlog
        self._keeper = keeper
        self._sink: Sink | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._headers: dict[bytes, bytes] = {}
        self._now = 0.0
        self._answered = False  # a byte of this answer has come
        self._headed = False
        self.alive = False
        self.writing = False  # a part of the request still is with us
        self.floor_s = 0.0  # the latest send or read: what comes next arrives after it
        self.used = 0  # requests that were sent on it

    # Of whoever moves the bytes

    def write(self, data: bytes) -> None:
        """Sets `writing` if not all could be handed over; calls `written` once it is."""
        raise NotImplementedError

    def close(self) -> None:
        """Now, without a word; a second time is none."""
        raise NotImplementedError

    def written(self, now: float) -> None:
        self.writing = False
        if self._sink is not None:
            self._sink.on_written(now)

    # For whoever sends

    def send(self, request: bytes, sink: Sink) -> None:
        """Write a request; `sink` hears of it until its answer is complete or lost."""
        assert self._sink is None
        self._sink = sink
        self._parser = httptools.HttpResponseParser(self)
        self._headers = {}
        self._answered = self._headed = False
        self.used += 1
        # Taken before the call: a pause of ours between the two must not shorten a latency.
        now = self.floor_s = perf_counter()
        self.write(request)
        if not self.writing:
            sink.on_written(now)

    def drop(self) -> None:
        """Close; the sink hears nothing more."""
        self._sink = None
        self.alive = False
        self.close()

    # From the backlog

    def on_data(self, now: float, data: bytes | bytearray) -> None:
        if self._sink is None or self._parser is None:
            self.drop()  # nobody asked
            return
        self._now = now
        self._answered = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            # An exception of a sink comes as the parser's error, with the former as its context.
            sink = self._sink
            if sink is not None:
                self.drop()
                sink.on_lost(now, f"not HTTP: {error.__context__ or error}", True)

    def on_lost(self, now: float, error: str) -> None:
        sink, self._sink = self._sink, None
        self._keeper.forget(self)
        if sink is None:
            return
        unframed = (b"content-length", b"transfer-encoding")
        if self._headed and not any(name in self._headers for name in unframed):
            sink.on_complete(now)  # such a body ends with its connection
        else:
            sink.on_lost(now, error, self._answered)

    # httptools

    def on_message_begin(self) -> None:
        self._headers = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        status = self._parser.get_status_code()
        if status >= 200 and self._sink is not None:
            self._headed = True
            self._sink.on_head(status, self._headers)

    def on_body(self, data: bytes) -> None:
        if self._sink is not None:
            self._sink.on_body(self._now, data)

    def on_message_complete(self) -> None:
        sink = self._sink
        if not self._headed or sink is None:  # 1xx
            return
        assert self._parser is not None
        self._sink = None
        # A server that answered before it had the whole request would take its rest for the next.
        if self._parser.should_keep_alive() and self.alive and not self.writing:
            self._keeper.put(self)
        else:
            self.drop()
        sink.on_complete(self._now)


def reason(error: BaseException) -> str:
    """Of a failed connection, without Python's own decoration."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason or error}"
    number = getattr(error, "errno", None)
    if isinstance(number, int) and number > 0:
        return os.strerror(number)
    said = getattr(error, "strerror", None) or str(error)
    return " ".join(said.split()) or type(error).__name__
