"""HTTP/1.1 connections for the measured requests: timestamps first, parsing after.

aiohttp does the errands (probe, metrics). Streams are read by a plain asyncio protocol and
httptools: a chunk then costs 13 to 20 us of CPU instead of 20 to 33 where each one is a wake-up of
its own (benchmarks/bench_client.py), 8 instead of 18.5 where a server sends to all streams at once,
and its moment does not wait for a task to wake.

All bytes of all sockets go, with their moment, into one `Backlog`, which is worked off a slice at a
time between polls of the sockets. So when a server sends to a thousand streams at once, the last
one's moment is late by a thousand reads, not by a thousand parses.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections import deque
from time import perf_counter
from typing import Protocol

import httptools

from atom.bench.client.wire import Server

SLICE = 24  # reads that are worked off between two polls: about 0.2 ms
SAME_POLL_S = 20e-6  # a read so soon after another comes from the same poll: there may be more
CONNECT_TIMEOUT_S = 30.0


class Sink(Protocol):
    """Whoever is waiting for an answer. Called from the backlog, in order."""

    def on_head(self, status: int, headers: dict[bytes, bytes]) -> None: ...
    def on_body(self, now: float, data: bytes) -> None: ...
    def on_complete(self, now: float) -> None: ...
    def on_lost(self, now: float, error: str, answered: bool) -> None: ...
    def on_written(self, now: float) -> None: ...


class Backlog:
    """Reads that have a moment but are not parsed yet.

    A read that comes alone is parsed at once: putting it off costs another round of the loop.
    """

    __slots__ = ("_free_s", "_loop", "_reads", "_scheduled")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._reads: deque[tuple[Connection, float, bytes | None, str]] = deque()
        self._scheduled = False
        self._free_s = 0.0  # when the last read was dealt with

    def add(self, connection: Connection, data: bytes | None, error: str = "") -> None:
        """`data` None: the connection is lost."""
        now = perf_counter()
        if not self._scheduled and now - self._free_s > SAME_POLL_S and data is not None:
            connection.on_data(now, data)
            self._free_s = perf_counter()
            return
        self._free_s = now
        self._reads.append((connection, now, data, error))
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._work)

    def _work(self) -> None:
        reads = self._reads
        for _ in range(min(SLICE, len(reads))):
            connection, now, data, error = reads.popleft()
            if data is None:
                connection.on_lost(now, error)
            else:
                connection.on_data(now, data)
        if reads:
            self._loop.call_soon(self._work)
        else:
            self._scheduled = False


class Connection(asyncio.Protocol):
    """One socket; one request at a time."""

    def __init__(self, backlog: Backlog, pool: Pool) -> None:
        self._backlog = backlog
        self._pool = pool
        self._sink: Sink | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._transport: asyncio.WriteTransport | None = None
        self._headers: dict[bytes, bytes] = {}
        self._now = 0.0
        self._answered = False  # a byte of this answer has come
        self._headed = False
        self._writing = False
        self.alive = False
        self.used = 0  # requests that were sent on it

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport) or hasattr(transport, "write")
        self._transport = transport  # type: ignore[assignment]
        # Bytes are then written at once, not at the end of the loop's round.
        self._transport.set_write_buffer_limits(0)  # type: ignore[union-attr]
        self.alive = True

    def data_received(self, data: bytes) -> None:
        self._backlog.add(self, data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.alive = False
        error = "the server closed the connection" if exc is None else reason(exc)
        self._backlog.add(self, None, error)

    def pause_writing(self) -> None:
        self._writing = True

    def resume_writing(self) -> None:
        self._writing = False
        if self._sink is not None:
            self._sink.on_written(perf_counter())

    # For whoever sends

    def send(self, request: bytes, sink: Sink) -> None:
        """Write a request; `sink` hears of it until its answer is complete or lost."""
        assert self._sink is None
        assert self._transport is not None
        self._sink = sink
        self._parser = httptools.HttpResponseParser(self)
        self._headers = {}
        self._answered = self._headed = False
        self.used += 1
        # Taken before the call: a pause of ours between the two must not shorten a latency.
        now = perf_counter()
        self._transport.write(request)
        if not self._writing:
            sink.on_written(now)

    def drop(self) -> None:
        """Close; the sink hears nothing more."""
        self._sink = None
        self.alive = False
        if self._transport is not None:
            self._transport.abort()

    # From the backlog

    def on_data(self, now: float, data: bytes) -> None:
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
        self._pool.forget(self)
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
        if self._parser.should_keep_alive() and self.alive:
            self._pool.put(self)
        else:
            self.drop()
        sink.on_complete(self._now)


class Pool:
    """Idle connections, the latest first; as many open ones as there are requests in flight."""

    def __init__(self, server: Server, backlog: Backlog) -> None:
        self._server = server
        self._backlog = backlog
        self._idle: list[Connection] = []
        self._open: set[Connection] = set()
        self._addresses = list(server.addresses)
        self._tls = _tls(server) if server.tls else None

    async def get(self, fresh: bool = False) -> Connection:
        """An idle connection, or a new one. Raises `OSError`."""
        while self._idle and not fresh:
            connection = self._idle.pop()
            if connection.alive:
                return connection
        loop = asyncio.get_running_loop()
        failure: OSError | None = None
        for address in self._addresses:
            try:
                _, connection = await asyncio.wait_for(
                    loop.create_connection(
                        self._make,
                        *address,
                        ssl=self._tls,
                        server_hostname=self._server.host if self._tls else None,
                    ),
                    min(CONNECT_TIMEOUT_S, self._server.timeout_s),
                )
            except (asyncio.TimeoutError, TimeoutError):
                failure = OSError("no connection within the time limit")
            except OSError as error:
                failure = error
            else:
                self._addresses = [address]  # the others are not tried again
                self._open.add(connection)
                return connection
        assert failure is not None
        raise failure

    def put(self, connection: Connection) -> None:
        self._idle.append(connection)

    def forget(self, connection: Connection) -> None:
        self._open.discard(connection)

    def close(self) -> None:
        for connection in list(self._open):
            connection.drop()
        self._idle.clear()

    def _make(self) -> Connection:
        return Connection(self._backlog, self)


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


def _tls(server: Server) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if not server.verify_tls:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
