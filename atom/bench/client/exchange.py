"""One request and its answer: fills a `RequestRecord`, decides which error it was."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import perf_counter
from typing import Literal

from atom.bench.client.http1 import Connection
from atom.bench.client.tally import Failed, Tally, error_text, shown
from atom.bench.types import ErrorKind, RequestRecord

MAX_ERROR_BYTES = 64 << 10
AFTER_DONE_S = 0.05  # that a server has for ending the body after [DONE]
# News of a connection that was closed before we wrote arrives within a round trip.
STALE_WITHIN_S = 1.0
Outcome = Literal["ended", "stale"]


class Exchange:
    """The sink of one request. `done` holds "ended" (well or not; see the record) or "stale"."""

    def __init__(
        self,
        record: RequestRecord,
        base_s: float,
        keep_text: bool,
        on_tokens: Callable[[int], None],
    ) -> None:
        self.record = record
        self.tally = Tally(record, base_s, keep_text)
        self._loop = asyncio.get_running_loop()
        self.done: asyncio.Future[Outcome] = self._loop.create_future()
        self.over_s = 0.0  # perf_counter: its last byte arrived, or its failure
        self._base = base_s
        self._on_tokens = on_tokens
        self._connection: Connection | None = None
        self._body: bytearray | None = None  # of an answer that is no stream
        self._type = ""
        self._timer: asyncio.TimerHandle | None = None
        self._ended = False  # `done` does not tell: it is cancelled with whoever waits for it

    def send(self, request: bytes, connection: Connection, timeout_s: float) -> None:
        self._connection = connection
        self._timer = self._loop.call_later(timeout_s, self._on_timeout, timeout_s)
        connection.send(request, self)

    def give_up(self, kind: ErrorKind, message: str) -> None:
        """End it now from our side. Nothing happens if it has ended."""
        if not self._ended:
            now = perf_counter()
            if not self.record.sent_s:  # it never was
                self.record.sent_s = now - self._base
            self._fail(now, kind, message)

    # Sink

    def on_written(self, now: float) -> None:
        self.record.sent_s = now - self._base

    def on_head(self, status: int, headers: dict[bytes, bytes]) -> None:
        content = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        self._type = content.decode("latin-1")
        if status != 200:
            self.record.status = status
        if status != 200 or content not in (b"text/event-stream", b""):
            self._body = bytearray()
        elif headers.get(b"content-encoding", b"identity") != b"identity":
            coding = headers[b"content-encoding"].decode("latin-1")
            self._fail(perf_counter(), "malformed", f"the answer is encoded as {coding}, unasked")

    def on_body(self, now: float, data: bytes) -> None:
        if self._body is not None:
            self._body += data[: MAX_ERROR_BYTES - len(self._body)]
            return
        tally = self.tally
        before = tally.tokens
        try:
            tally.feed(now, data)
        except Failed as error:
            self._fail(now, error.kind, str(error))
            return
        if tally.tokens != before:
            self._on_tokens(tally.tokens - before)
        if tally.done:
            self._restart_timer(AFTER_DONE_S, self._after_done)

    def on_complete(self, now: float) -> None:
        self._connection = None
        if self._body is not None:
            self._fail(now, *self._not_a_stream(bytes(self._body)))
            return
        try:
            self.tally.finish(now)
        except Failed as error:
            self._fail(now, error.kind, str(error))
            return
        self.over_s = now
        self._resolve("ended")

    def on_lost(self, now: float, error: str, answered: bool) -> None:
        connection, self._connection = self._connection, None
        young = now - self._base - self.record.sent_s < STALE_WITHIN_S
        if not answered and young and connection is not None and connection.used > 1:
            # It was closed while it lay idle; the server has not seen the request.
            self._resolve("stale")
        elif not answered:
            self._fail(now, "connect", error)
        elif self._body is not None:
            self._fail(now, *self._not_a_stream(bytes(self._body)))
        elif error.startswith("not HTTP"):
            self._fail(now, "malformed", error)
        elif self.tally.done or self.record.finish_reason is not None:
            self.on_complete(now)
        else:
            self._fail(now, "early_close", f"the connection ended within the answer: {error}")

    def _not_a_stream(self, body: bytes) -> tuple[ErrorKind, str]:
        if self.record.status is not None:
            return "http", error_text(body) if body else "(no text)"
        return "malformed", f"the answer is {self._type}, no event stream: {shown(body)}"

    def _after_done(self) -> None:
        """[DONE] is the end even if the server leaves the body open; the connection is lost."""
        self._drop()
        self.on_complete(perf_counter())

    def _on_timeout(self, timeout_s: float) -> None:
        self.give_up("timeout", f"no end within {timeout_s:g} s")

    def _fail(self, now: float, kind: ErrorKind, message: str) -> None:
        self._drop()
        self.tally.fill()
        record = self.record
        record.error, record.message = kind, message
        record.ended_s = now - self._base
        self.over_s = now
        self._resolve("ended")

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.drop()

    def _resolve(self, outcome: Outcome) -> None:
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()
        if not self.done.done():
            self.done.set_result(outcome)

    def _restart_timer(self, delay_s: float, callback: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(delay_s, callback)
