"""Runs a request's choices and sends them: as one JSON answer or as server-sent events.

It watches for the client's leaving, the deadline and the server's end while it runs; each of them
closes the choices, which aborts their sequences in the engine.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, NamedTuple

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from atom.server.encode import DONE, Encoder, error_event
from atom.server.errors import ApiError, from_exception, internal
from atom.server.generation import Choice, Delta, merge, usage
from atom.server.state import RunningRequest, ServerState, Ticket

log = logging.getLogger("atom.server")

_JSON = [(b"content-type", b"application/json")]
_EVENTS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # proxies must pass each event on at once
]


class Job(NamedTuple):
    """A prepared request: everything that can be refused has been."""

    choices: list[Choice]
    per_prompt: int  # choices of each prompt
    encoder: Encoder
    stream: bool
    include_usage: bool  # a last chunk with the usage
    continuous_usage: bool  # usage in every chunk


class GenerationResponse(Response):
    """Generates while it is sent. Owns the ticket: the places are free when it has ended."""

    def __init__(self, state: ServerState, job: Job, ticket: Ticket, request_id: str) -> None:
        super().__init__()
        self._state = state
        self._job = job
        self._ticket = ticket
        self._request_id = request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sender = _Sender(send)
        with self._state.track() as running:
            watcher = asyncio.create_task(_watch_client(receive, running))
            deadline = self._arm_deadline(running)
            try:
                await self._run(sender)
            except asyncio.CancelledError:
                if not running.absorb():
                    raise
                await self._ended_from_outside(sender, running)
            except Exception as error:
                await self._fail(sender, self._explain(error))
            finally:
                self._ticket.release()
                watcher.cancel()
                if deadline is not None:
                    deadline.cancel()

    async def _run(self, sender: _Sender) -> None:
        job, client = self._job, self._state.client
        stream = merge([choice.deltas(client) for choice in job.choices])
        if job.stream:
            await self._stream(stream, sender)
        else:
            await self._collect(stream, sender)

    async def _collect(
        self, stream: AsyncGenerator[list[tuple[int, Delta]], None], sender: _Sender
    ) -> None:
        job = self._job
        deltas: list[list[Delta]] = [[] for _ in job.choices]
        async with aclosing(stream):
            async for batch in stream:
                for number, delta in batch:
                    deltas[number].append(delta)
        body = job.encoder.answer(job.choices, deltas, usage(job.choices, job.per_prompt))
        await sender.whole(200, body)

    async def _stream(
        self, stream: AsyncGenerator[list[tuple[int, Delta]], None], sender: _Sender
    ) -> None:
        job = self._job
        event = job.encoder.event
        await sender.start(200, _EVENTS)
        if opening := job.encoder.opening(len(job.choices)):
            await sender.piece(opening)
        async with aclosing(stream):
            async for batch in stream:
                figures = usage(job.choices, job.per_prompt) if job.continuous_usage else None
                events = [event(job.choices[n], delta, figures) for n, delta in batch]
                await sender.piece(events[0] if len(events) == 1 else b"".join(events))
        last = DONE
        if job.include_usage:
            last = job.encoder.usage_event(usage(job.choices, job.per_prompt)) + DONE
        await sender.end(last)

    def _arm_deadline(self, running: RunningRequest) -> asyncio.TimerHandle | None:
        seconds = self._state.config.server.max_request_seconds
        if not seconds:
            return None
        error = ApiError(
            504,
            f"The request took longer than {seconds:g} s (--max-request-seconds).",
            type_="timeout_error",
            code="deadline_exceeded",
            headers={"x-should-retry": "false"},  # OpenAI's clients would retry it
        )
        return asyncio.get_running_loop().call_later(seconds, running.cancel, error)

    async def _ended_from_outside(self, sender: _Sender, running: RunningRequest) -> None:
        if running.error is not None:
            await self._fail(sender, running.error)
        else:
            self._state.metrics.client_disconnects += 1
            log.debug("request %s: the client went away", self._request_id)

    def _explain(self, error: Exception) -> ApiError:
        known = from_exception(error)
        if known is None:
            log.error("request %s failed", self._request_id, exc_info=error)
            known = internal(self._request_id)
        return known

    async def _fail(self, sender: _Sender, error: ApiError) -> None:
        """In a stream that has begun: an error event, never a silent end."""
        if sender.started:
            await sender.end(error_event(error) + DONE)
        else:
            response = error.response()
            await sender.whole(error.status, bytes(response.body), response.raw_headers)


class _Sender:
    """The ASGI messages of one response."""

    __slots__ = ("_send", "started")

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False

    async def start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.started = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def piece(self, body: bytes) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def end(self, body: bytes) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def whole(
        self, status: int, body: bytes, headers: list[tuple[bytes, bytes]] | None = None
    ) -> None:
        if headers is None:
            headers = [*_JSON, (b"content-length", str(len(body)).encode())]
        await self.start(status, headers)
        await self.end(body)


async def _watch_client(receive: Receive, running: RunningRequest) -> None:
    message: Any = {"type": "http.request"}
    while message["type"] != "http.disconnect":
        message = await receive()
    running.cancel(None)
