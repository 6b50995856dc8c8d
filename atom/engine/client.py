"""`EngineClient`: the server's side of the core process. Needs no torch.

Starts the process, turns its messages into one stream per request, and knows at once when it has
died. Everything here runs on one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import zmq
import zmq.asyncio

from atom.config.schema import Config
from atom.engine import wire
from atom.engine.child import CoreChild
from atom.engine.messages import (
    AbortRequests,
    CoreFailed,
    CoreOutputs,
    EngineInfo,
    GenerateRequest,
    SchedulerStats,
    Shutdown,
    ToCore,
    TokenChunk,
    UtilityCall,
    UtilityReply,
)
from atom.engine.runner.fake import FakeOptions
from atom.errors import EngineDeadError, RequestError

if TYPE_CHECKING:
    from atom.models.source import ModelSource

_LAST_WORDS_S = 1.0  # how long a dead core's last message may still be under way
_KILL_AFTER_S = 10.0  # how long a core that was told to end may take beyond its drain


class _Mailbox:
    """Where a request's chunks wait for their consumer, merged into one if it lags."""

    __slots__ = ("ended", "pending", "waiter")

    def __init__(self) -> None:
        self.pending: TokenChunk | None = None
        self.waiter: asyncio.Future[None] | None = None
        self.ended = False  # the engine is done with the request

    def put(self, chunk: TokenChunk) -> None:
        if chunk.finish_reason is not None:
            self.ended = True
        if self.pending is None:
            self.pending = chunk
        else:
            merge(self.pending, chunk)
        self.wake()

    def wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)


class TokenStream:
    """The chunks of one request: an async iterator. Closing or dropping it early aborts."""

    def __init__(self, client: EngineClient, request_id: str, mailbox: _Mailbox) -> None:
        self.request_id = request_id
        self._client = client
        self._mailbox = mailbox
        self._closed = False  # nothing more will be handed out

    def __aiter__(self) -> TokenStream:
        return self

    async def __anext__(self) -> TokenChunk:
        box = self._mailbox
        while box.pending is None or self._closed:
            if self._closed:
                raise StopAsyncIteration
            if self._client.dead is not None:
                self._closed = True
                raise EngineDeadError(str(self._client.dead))
            box.waiter = asyncio.get_running_loop().create_future()
            await box.waiter
        chunk, box.pending = box.pending, None
        self._closed = chunk.finish_reason is not None
        return chunk

    async def aclose(self) -> None:
        """End the iteration; the request is aborted if it still runs."""
        self._abandon()

    def __del__(self) -> None:
        self._abandon()

    def _abandon(self) -> None:
        self._closed = True
        if not self._mailbox.ended:
            self._mailbox.ended = True
            self._client.forget(self.request_id)
        self._mailbox.wake()


def merge(first: TokenChunk, then: TokenChunk) -> None:
    """Append the next chunk of the same request to one that was not consumed yet."""
    first.token_ids += then.token_ids
    if then.logprobs is not None:
        first.logprobs = (first.logprobs or []) + then.logprobs
    if then.prompt_logprobs is not None:
        first.prompt_logprobs = then.prompt_logprobs
    first.num_cached_tokens = max(first.num_cached_tokens, then.num_cached_tokens)
    first.finish_reason = then.finish_reason
    first.stop_token_id = then.stop_token_id
    first.error = then.error
    first.timings = then.timings


class EngineClient:
    """One engine core in its own process.

    `source` says which files the core loads. With `runner="fake"`, or `FakeOptions`, the core runs
    `FakeRunner` and needs no model: for tests of everything above it.
    """

    def __init__(
        self,
        config: Config,
        source: ModelSource | None = None,
        *,
        runner: str | FakeOptions = "model",
        startup_timeout_s: float = 1800.0,
    ) -> None:
        fake = FakeOptions() if runner == "fake" else runner
        self._setup = wire.CoreSetup(config, fake=fake if isinstance(fake, FakeOptions) else None)
        if self._setup.fake is None:
            assert runner == "model", runner
            assert source is not None, "a model needs its source"
            self._setup.model_path, self._setup.model_name = str(source.path), source.name
        self._startup_timeout_s = startup_timeout_s
        self._info: EngineInfo | None = None
        self.stats = SchedulerStats()
        self.dead: EngineDeadError | None = None
        self._dead_event = asyncio.Event()
        self._streams: dict[str, _Mailbox] = {}
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._next_call = 0
        self._ready = asyncio.Event()
        self._heard = asyncio.Event()  # the core's last words, if it had any
        self._ending = False
        self._directory: Path | None = None
        self._child: CoreChild | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._context: zmq.asyncio.Context | None = None
        self._send_socket: zmq.Socket[bytes] | None = None

    # -- life -----------------------------------------------------------------------------------

    async def start(self) -> EngineInfo:
        """Start the core and wait until it can serve; raises `EngineDeadError` if it cannot."""
        self._directory = wire.make_private_dir()
        wire.setup_file(self._directory).write_bytes(wire.encode(self._setup))
        self._context = zmq.asyncio.Context()
        inbox = self._context.socket(zmq.PULL)
        wire.unlimited(inbox)
        inbox.bind(wire.out_address(self._directory))
        self._child = await CoreChild.start(self._directory)
        self._tasks = [
            asyncio.create_task(self._read(inbox), name="engine-read"),
            asyncio.create_task(self._watch(self._child), name="engine-watch"),
        ]
        waits = [asyncio.ensure_future(e.wait()) for e in (self._ready, self._dead_event)]
        await asyncio.wait(
            waits, timeout=self._startup_timeout_s, return_when=asyncio.FIRST_COMPLETED
        )
        for wait in waits:
            wait.cancel()
        if self.dead is None and not self._ready.is_set():
            late = f"the engine did not start within {self._startup_timeout_s:g} s"
            self._die(EngineDeadError(late + self._child.last_line(": ")))
        if self.dead is not None:
            error = self.dead
            # A user's mistake that only the core could see keeps its exit status.
            error.exit_code = await self._child.wait(_LAST_WORDS_S) or error.exit_code
            await self.shutdown()
            raise error
        self._connect()
        return self.info

    def _connect(self) -> None:
        assert self._directory is not None
        assert self._context is not None
        # Not an asyncio socket: sending never blocks, so it needs no task.
        context: zmq.Context[Any] = zmq.Context.shadow(self._context)
        self._send_socket = context.socket(zmq.PUSH)
        wire.unlimited(self._send_socket)
        self._send_socket.connect(wire.in_address(self._directory))

    async def shutdown(self, drain_timeout_s: float = 0.0) -> None:
        """End the core after what runs, at the latest after `drain_timeout_s`; idempotent."""
        self._ending = True
        if self._child is not None:
            if self.dead is None and self._send_socket is not None:
                self._send(Shutdown(drain_timeout_s))
                await self._child.wait(drain_timeout_s + _KILL_AFTER_S)
            await self._child.kill()
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._tasks = []
        self._die(EngineDeadError("the engine was shut down"))
        if self._send_socket is not None:
            self._send_socket.close(linger=0)
            self._send_socket = None
        if self._context is not None:
            self._context.destroy(linger=0)
            self._context = None
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    @property
    def info(self) -> EngineInfo:
        assert self._info is not None, "the engine has not started"
        return self._info

    @property
    def num_inflight(self) -> int:
        """Requests that the engine has and has not ended."""
        return len(self._streams)

    @property
    def pid(self) -> int | None:
        """The core's process id while it is alive."""
        return self._child.pid if self._child is not None else None

    async def wait_dead(self) -> EngineDeadError:
        await self._dead_event.wait()
        assert self.dead is not None
        return self.dead

    # -- requests -------------------------------------------------------------------------------

    def generate(self, request: GenerateRequest) -> TokenStream:
        """Send the request now; iterate the answer for its chunks.

        The iterator raises `EngineDeadError` if the core dies. A request that the core refuses
        gives one chunk with `finish_reason` "error".
        """
        self._require_alive()
        if request.request_id in self._streams:
            raise RequestError(f"request id {request.request_id} is in use", param="request_id")
        mailbox = self._streams[request.request_id] = _Mailbox()
        self._send(request)
        return TokenStream(self, request.request_id, mailbox)

    async def abort(self, request_ids: Iterable[str]) -> None:
        """End requests; their streams get a last chunk with `finish_reason` "abort"."""
        wanted = [request_id for request_id in request_ids if request_id in self._streams]
        if wanted and self.dead is None:
            self._send(AbortRequests(wanted))

    def forget(self, request_id: str) -> None:
        """The stream was closed: nobody reads it any more, so the request need not run."""
        known = self._streams.pop(request_id, None)
        if known is not None and self._send_socket is not None:
            self._send(AbortRequests([request_id]))

    async def call(self, method: str, *args: Any) -> Any:
        """One of `EngineCore.UTILITIES`; raises `RequestError` with the core's reason."""
        self._require_alive()
        self._next_call += 1
        call_id = self._next_call
        future = asyncio.get_running_loop().create_future()
        self._calls[call_id] = future
        try:
            self._send(UtilityCall(call_id, method, list(args)))
            return await future
        finally:
            self._calls.pop(call_id, None)

    def _require_alive(self) -> None:
        if self.dead is not None:
            raise EngineDeadError(str(self.dead))

    def _send(self, message: ToCore) -> None:
        assert self._send_socket is not None, "the engine has not started"
        self._send_socket.send(wire.encode(message), zmq.NOBLOCK)

    # -- what comes back ------------------------------------------------------------------------

    async def _read(self, inbox: zmq.asyncio.Socket) -> None:
        while True:
            data = await cast("asyncio.Future[bytes]", inbox.recv())
            message = wire.decode_from_core(data)
            match message:
                case CoreOutputs():
                    self._take_outputs(message)
                case UtilityReply():
                    self._take_reply(message)
                case EngineInfo():
                    self._info = message
                    self._ready.set()
                case CoreFailed(reason, status):
                    self._heard.set()
                    started = self._ready.is_set()
                    what = "has failed" if started else "could not start"
                    error = EngineDeadError(f"the engine {what}: {reason}")
                    if not started:  # told, because a slow process may take a while to end
                        error.exit_code = status
                    self._die(error)

    def _take_outputs(self, outputs: CoreOutputs) -> None:
        if outputs.stats is not None:
            self.stats = outputs.stats
        streams = self._streams
        for chunk in outputs.chunks:
            stream = streams.get(chunk.request_id)
            if stream is None:
                continue  # closed here while the chunk was under way
            if chunk.finish_reason is not None:
                del streams[chunk.request_id]
            stream.put(chunk)

    def _take_reply(self, reply: UtilityReply) -> None:
        future = self._calls.get(reply.call_id)
        if future is None or future.done():
            return
        if reply.error is not None:
            future.set_exception(RequestError(reply.error))
        else:
            future.set_result(reply.result)

    async def _watch(self, child: CoreChild) -> None:
        """The process has ended: say so at once, in its own words if it left any."""
        status = await child.wait(None)
        if status is not None and status > 0:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._heard.wait(), _LAST_WORDS_S)
        if status or not self._ending:
            self._die(EngineDeadError(child.obituary()))

    def _die(self, error: EngineDeadError) -> None:
        """The first cause counts. Wakes everybody who waits for the core."""
        if self.dead is not None:
            return
        self.dead = error
        self._dead_event.set()
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.wake()
        for future in self._calls.values():
            if not future.done():
                future.set_exception(error)
