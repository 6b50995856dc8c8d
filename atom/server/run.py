"""`serve`: from a configuration to a running server and an exit code.

The port is bound first, the engine starts in its own process while the tokenizer is read and the
application is built, and HTTP answers /health as soon as it can; the door opens for requests
when the engine is ready.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import signal
import socket
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import uvloop

from atom.config.schema import Config, ServerConfig
from atom.engine.client import EngineClient
from atom.engine.text.tokenizer import load_tokenizer
from atom.errors import AtomError, ConfigError, EngineDeadError, ModelError
from atom.models.source import ModelSource, resolve_source

if TYPE_CHECKING:
    import uvicorn

    from atom.server.state import ServerState

log = logging.getLogger("atom.server")

_FAREWELL_S = 5.0  # how long clients may take to be told that the engine has died
# uvloop accepts one connection per listener and round of its loop. With hundreds of streams a round
# takes 10 to 20 ms, and the last of 512 clients that connect at once would wait five seconds.
_ACCEPTED_PER_ROUND = 32

MakeClient = Callable[[Config, ModelSource], EngineClient]


def serve(config: Config, make_client: MakeClient = EngineClient) -> int:
    """Serve until a signal (0) or the engine's death (70).

    Raises `AtomError` for whatever keeps it from starting. `make_client` is for tests.
    """
    result: int = uvloop.run(_Serving(config, make_client).main())
    return result


class _Serving:
    """One run of the server."""

    def __init__(self, config: Config, make_client: MakeClient) -> None:
        self._config = config
        self._make_client = make_client
        self._signals = 0
        self._stop = asyncio.Event()  # the first signal: drain
        self._now = asyncio.Event()  # the second one: end at once
        self._phases_s: dict[str, float] = {}

    async def main(self) -> int:
        from atom.server import logs

        logs.configure(self._config.server.log_level)
        self._install_signals()
        listener = bind(self._config.server)
        try:
            with self._timed("find the model"):
                source = await asyncio.to_thread(resolve_source, self._config.model)
            client = self._make_client(self._config, source)
            try:
                return await self._with_engine(client, source, listener)
            finally:
                await client.shutdown(0.0)
        finally:
            listener.close()

    async def _with_engine(
        self, client: EngineClient, source: ModelSource, listener: socket.socket
    ) -> int:
        began = time.perf_counter()
        starting = asyncio.create_task(client.start())
        stopping = asyncio.create_task(self._stop.wait())
        try:
            with self._timed("tokenizer and application"):
                state, server = await asyncio.to_thread(self._build, client, source)
            async with _http(server, listener):
                await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if not starting.done():
                    log.info("stopped before the engine was ready")
                    return 0
                _raise_start_error(starting)
                self._phases_s["engine"] = time.perf_counter() - began
                self._announce(state, listener)
                return await self._serve_until_end(state, client, server)
        finally:
            for task in (starting, stopping):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, AtomError):
                    await task

    def _build(self, client: EngineClient, source: ModelSource) -> tuple[ServerState, Any]:
        """In a thread: importing FastAPI and reading a vocabulary take a while."""
        import uvicorn

        from atom.server.app import create_app
        from atom.server.http_protocol import QuietServer, limited_protocol

        model, door = self._config.model, self._config.server
        tokenizer = load_tokenizer(source, model.tokenizer, model.chat_template)
        app = create_app(self._config, client, tokenizer, source)
        settings = uvicorn.Config(
            app,
            loop="none",
            http=limited_protocol(door.max_header_bytes),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=door.timeout_keep_alive_s,
            timeout_graceful_shutdown=2,
        )
        settings.load()
        return app.state.server, QuietServer(settings)

    def _announce(self, state: ServerState, listener: socket.socket) -> None:
        from atom.server import logs

        state.set_ready()
        if self._config.model.generation_config != "auto":
            defaults = "OpenAI's (--generation-config none)"
        elif state.defaults == type(state.defaults)():
            defaults = "OpenAI's (the model's generation config says nothing else)"
        else:
            defaults = f"{state.defaults.describe()} (the model's generation config)"
        for line in logs.startup_report(state.info, self._phases_s, defaults):
            log.info("%s", line)
        door = self._config.server
        if not door.api_key and not _is_loopback(listener):
            log.warning("whoever reaches %s may use it: there is no --api-key", url_of(listener))
        log.info("listening on %s", url_of(listener))

    async def _serve_until_end(
        self, state: ServerState, client: EngineClient, server: uvicorn.Server
    ) -> int:
        from atom.server import logs

        activity = asyncio.create_task(logs.Activity(state).run())
        dying = asyncio.create_task(client.wait_dead())
        stopping = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({dying, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if client.dead is None:
                await self._drain(state, dying)
            if client.dead is not None:
                return await self._mourn(state, client.dead)
            return 0
        finally:
            for task in (activity, dying, stopping):
                task.cancel()
            server.force_exit = self._now.is_set()

    async def _drain(self, state: ServerState, dying: asyncio.Task[Any]) -> None:
        """Refuse new requests, wait for those that run, end the rest with an error."""
        from atom.server.errors import unavailable

        limit_s = self._config.server.drain_timeout_s
        state.set_draining()
        running = len(state.running)
        log.info("shutting down: %d requests are running, waiting up to %g s", running, limit_s)
        idle = asyncio.create_task(state.wait_idle())
        now = asyncio.create_task(self._now.wait())
        await asyncio.wait({idle, now, dying}, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        if not idle.done() and not dying.done():
            log.warning("%d requests are cut off", len(state.running))
            state.cancel_all(unavailable("The server is shutting down.", "shutdown"))
            await asyncio.wait({idle}, timeout=_FAREWELL_S)
        for task in (idle, now):
            task.cancel()

    async def _mourn(self, state: ServerState, error: EngineDeadError) -> int:
        """The engine has died: its requests fail by themselves; give them time to say so."""
        log.error("the engine has died, the server ends: %s", " ".join(str(error).split()))
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(state.wait_idle(), _FAREWELL_S)
        return error.exit_code

    def _install_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)

    def _on_signal(self) -> None:
        self._signals += 1
        self._stop.set()
        if self._signals > 1:
            self._now.set()

    @contextlib.contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._phases_s[phase] = time.perf_counter() - began


def _raise_start_error(starting: asyncio.Task[Any]) -> None:
    """A core that cannot start is the fault of what it was given: one line, exit code 2."""
    error = starting.exception()
    if isinstance(error, EngineDeadError):
        raise ModelError(str(error))
    if error is not None:
        raise error


@contextlib.asynccontextmanager
async def _http(server: uvicorn.Server, listener: socket.socket) -> Any:
    """HTTP answers within the block; on leaving, open answers are finished and it ends."""
    task = asyncio.create_task(server.serve(sockets=acceptors(listener)))
    try:
        yield
    finally:
        server.should_exit = True
        await task


def acceptors(listener: socket.socket) -> list[socket.socket]:
    """The listener and duplicates of it: each of them accepts in every round of the loop."""
    return [listener, *(listener.dup() for _ in range(_ACCEPTED_PER_ROUND - 1))]


def bind(door: ServerConfig) -> socket.socket:
    """A listening socket; raises `ConfigError` in one line."""
    family = socket.AF_INET6 if ":" in door.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((door.host, door.port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"port {door.port} of {door.host} is in use; choose another with --port, or 0 for"
                " a free one"
            ) from None
        raise ConfigError(
            f"cannot listen on {door.host} port {door.port}: {error.strerror or error}"
        ) from None
    listener.setblocking(False)
    return listener


def _is_loopback(listener: socket.socket) -> bool:
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback


def url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
