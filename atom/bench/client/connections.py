"""The sockets of the measured requests, and those of them that lie idle.

http: read and written here, so that a read brings the kernel's note of when its bytes arrived.
https: asyncio's transport, whose bytes have been through the decryption and have no such note; a
moment then is when the event loop got to them.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from time import perf_counter

from atom.bench.client.arrival import NOTES_SIZE, ArrivalClock, ask_for_stamps
from atom.bench.client.http1 import AT_ONCE_S, Backlog, Connection, reason
from atom.bench.client.wire import Server

CONNECT_TIMEOUT_S = 30.0
READ_BYTES = 256 << 10
CLOSED = "the server closed the connection"


class PlainConnection(Connection):
    """A connected TCP socket."""

    def __init__(self, sock: socket.socket, pool: Pool) -> None:
        super().__init__(pool.backlog, pool)
        self._pool = pool
        self._sock = sock
        self._fd = sock.fileno()
        self._loop = pool.loop
        self._clock = pool.clock
        self._buffer = pool.buffer
        self._into = (pool.buffer,)
        self._read = sock.recvmsg_into
        self._rest = memoryview(b"")  # of the request
        self.alive = True
        self._loop.add_reader(self._fd, self._on_readable)

    def write(self, data: bytes) -> None:
        if not self.alive:  # its loss is on its way to the sink
            return
        try:
            sent = self._sock.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            self._lose(reason(error))
            return
        if sent < len(data):
            self.writing = True
            self._rest = memoryview(data)[sent:]
            self._loop.add_writer(self._fd, self._on_writable)

    def close(self) -> None:
        self._release()
        self._pool.forget(self)

    def _on_readable(self) -> None:
        now = perf_counter()  # before: what this read does not bring arrives later
        try:
            size, notes, _, _ = self._read(self._into, NOTES_SIZE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._lose(reason(error))
            return
        if not size:
            self._lose(CLOSED)
            return
        moment = self._clock.moment(notes, self.floor_s)
        # If the buffer is full more may be waiting, and have arrived before now.
        self.floor_s = now if size < READ_BYTES else moment
        self.backlog.add(self, moment, self._buffer[:size])

    def _on_writable(self) -> None:
        now = perf_counter()
        try:
            sent = self._sock.send(self._rest)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._lose(reason(error))
            return
        self._rest = self._rest[sent:]
        if not self._rest:
            self._loop.remove_writer(self._fd)
            self.written(now)

    def _lose(self, error: str) -> None:
        self.alive = False
        self._release()
        self.backlog.add_loss(self, error)

    def _release(self) -> None:
        if self._fd < 0:
            return
        self._loop.remove_reader(self._fd)
        if self.writing:
            self._loop.remove_writer(self._fd)
        self._fd = -1
        self._rest = memoryview(b"")
        self._sock.close()


class TlsConnection(Connection, asyncio.Protocol):
    """On a transport of the event loop."""

    def __init__(self, pool: Pool) -> None:
        super().__init__(pool.backlog, pool)
        self._clock = pool.clock
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport) or hasattr(transport, "write")
        self._transport = transport  # type: ignore[assignment]
        # Bytes are then written at once, not at the end of the loop's round.
        self._transport.set_write_buffer_limits(0)  # type: ignore[union-attr]
        self.alive = True

    def data_received(self, data: bytes) -> None:
        self._clock.client += 1
        self.backlog.add(self, perf_counter(), data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.alive = False
        self.backlog.add_loss(self, CLOSED if exc is None else reason(exc))

    def pause_writing(self) -> None:
        self.writing = True

    def resume_writing(self) -> None:
        self.written(perf_counter())

    def write(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class Pool:
    """Idle connections, the latest first; as many open ones as there are requests in flight."""

    def __init__(self, server: Server, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.clock = ArrivalClock()
        stamped = self.clock.supported and not server.tls
        self.backlog = Backlog(loop, AT_ONCE_S if stamped else 0.0)
        self.buffer = bytearray(READ_BYTES)  # every read goes through it
        self._server = server
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
        failure: OSError | None = None
        limit_s = min(CONNECT_TIMEOUT_S, self._server.timeout_s)
        for address in self._addresses:
            connect = self._connect_plain if self._tls is None else self._connect_tls
            try:
                connection = await asyncio.wait_for(connect(address), limit_s)
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

    async def _connect_plain(self, address: tuple[str, int]) -> Connection:
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.clock.supported:
                ask_for_stamps(sock)  # before the first byte can come
            await self.loop.sock_connect(sock, address)
        except BaseException:
            sock.close()
            raise
        return PlainConnection(sock, self)

    async def _connect_tls(self, address: tuple[str, int]) -> Connection:
        _, connection = await self.loop.create_connection(
            lambda: TlsConnection(self),
            *address,
            ssl=self._tls,
            server_hostname=self._server.host,
        )
        return connection

    def put(self, connection: Connection) -> None:
        self._idle.append(connection)

    def forget(self, connection: Connection) -> None:
        self._open.discard(connection)

    def close(self) -> None:
        for connection in list(self._open):
            connection.drop()
        self._idle.clear()
        self.clock.close()


def _tls(server: Server) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if not server.verify_tls:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
