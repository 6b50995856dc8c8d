"""Sockets of our own: moments are the kernel's, writes may be partial, ends may come early."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
import uvloop
from bench_helpers import make_jobs, measured
from mock_behaviour import Behaviour
from mock_server import MockServer

from atom.bench.client import arrival
from atom.bench.client.address import server_of
from atom.bench.client.arrival import ArrivalClock
from atom.bench.client.connections import Pool
from atom.bench.client.exchange import Exchange
from atom.bench.client.http1 import Connection
from atom.bench.types import Load, RequestRecord, Target

BLOCK_S = 0.05
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
LOOPS: list[Callable[[], asyncio.AbstractEventLoop]] = [
    asyncio.new_event_loop,
    uvloop.new_event_loop,
]


@pytest.fixture(params=LOOPS, ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Callable[[Coroutine[Any, Any, Any]], Any]]:
    loop = request.param()
    yield loop.run_until_complete
    loop.close()


class Answer:
    """A sink that writes down what it is told."""

    def __init__(self) -> None:
        self.body: list[tuple[float, bytes]] = []
        self.told: list[str] = []
        self.written_s = 0.0
        self.end: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def on_head(self, status: int, headers: dict[bytes, bytes]) -> None:
        self.told.append(f"head {status}")

    def on_body(self, now: float, data: bytes) -> None:
        self.body.append((now, data))

    def on_complete(self, now: float) -> None:
        self.end.set_result("complete")

    def on_lost(self, now: float, error: str, answered: bool) -> None:
        self.end.set_result(f"lost {answered}: {error}")

    def on_written(self, now: float) -> None:
        self.told.append("written")
        self.written_s = now


class Peer:
    """A server of one connection, in the test's own hands."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.server = server_of(Target(base_url=url, model="m"))

    async def connect(self) -> tuple[Pool, Connection, socket.socket]:
        pool = Pool(self.server, asyncio.get_running_loop())
        connection = await pool.get()
        return pool, connection, self.listener.accept()[0]

    def close(self) -> None:
        self.listener.close()


@pytest.fixture
def peer() -> Iterator[Peer]:
    one = Peer()
    yield one
    one.close()


def test_a_blocked_loop_does_not_move_moments(run: Any) -> None:
    async def main(server: MockServer) -> RequestRecord:
        pool = Pool(
            server_of(Target(base_url=server.url, model="mock")), asyncio.get_running_loop()
        )
        body = b'{"model":"mock","prompt":"x","max_tokens":3,"stream":true}'
        request = pool._server.head + b"%d\r\n\r\n" % len(body) + body
        one = Exchange(RequestRecord(index=0), 0.0, False, lambda count: None)
        one.send(request, await pool.get(), 60.0)
        while not one.done.done():
            # On purpose: each chunk comes while nobody is there to read it.
            time.sleep(2 * BLOCK_S)
            await asyncio.sleep(0)
        assert pool.clock.kernel >= 3
        assert pool.clock.client == 0
        pool.close()
        return one.record

    with MockServer(Behaviour(ttft_ms=30, itl_ms=5000 * BLOCK_S)) as server:
        record = run(main(server))
        (truth,) = server.truth
    assert record.error is None
    assert len(record.token_times_s) == len(truth.chunk_s) == 3
    for ours, theirs in zip(record.token_times_s, truth.chunk_s, strict=True):
        assert theirs < ours < theirs + BLOCK_S
    assert record.token_times_s[0] - record.sent_s < 0.030 + BLOCK_S


def test_the_verdict_says_whose_moments_they_are() -> None:
    outcome, _ = measured(Behaviour(ttft_ms=5, itl_ms=1), make_jobs(200), Load(concurrency=4))
    assert outcome.health.arrival_clock == "kernel"
    assert outcome.health.reason.endswith("arrival times: kernel")


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Both clocks, set by hand; they stand still between."""
    told = {"wall": 100_000.0, "steady": 10.0}
    monkeypatch.setattr(arrival, "time", lambda: told["wall"])
    monkeypatch.setattr(arrival, "perf_counter", lambda: told["steady"])
    return told


def note(wall: float) -> list[tuple[int, int, bytes]]:
    data = struct.pack("ll", int(wall), round(wall % 1 * 1e9))
    return [(socket.SOL_SOCKET, 35, data)]


def test_a_stamp_becomes_a_moment(clocks: dict[str, float]) -> None:
    clock = ArrivalClock()
    clocks.update(wall=100_001.0, steady=11.0)
    assert clock.moment(note(100_000.75), 10.5) == pytest.approx(10.75)
    assert clock.moment([], 10.5) == 11.0  # no stamp
    assert clock.moment(note(100_000.25), 10.5) == 11.0  # before the previous read
    assert clock.moment(note(100_001.25), 10.5) == 11.0  # the future
    assert (clock.kernel, clock.client) == (1, 3)
    clock.close()


@pytest.mark.parametrize("step", [3600.0, 0.01, -0.01, -3600.0])
def test_the_wall_clock_is_set(clocks: dict[str, float], step: float) -> None:
    """Between the arrival of the first bytes and their reading."""
    clock = ArrivalClock()
    clocks.update(wall=100_001.0 + step, steady=11.0)
    assert clock.moment(note(100_000.995), 10.5) == 11.0
    # Later ones are of the new setting.
    clocks.update(wall=100_002.0 + step, steady=12.0)
    assert clock.moment(note(100_001.75 + step), 11.0) == pytest.approx(11.75)
    clock.close()


def test_an_interruption_between_the_clocks_is_no_step(
    clocks: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = ArrivalClock()
    readings = iter([11.005])  # of a `perf_counter` that comes 5 ms after `time`
    clocks.update(wall=100_001.0, steady=11.0)
    monkeypatch.setattr(arrival, "perf_counter", lambda: next(readings, 11.0))
    assert clock.moment(note(100_000.75), 10.5) == pytest.approx(10.75)
    assert clock.kernel == 1
    clock.close()


def test_a_body_larger_than_the_sockets_buffers(run: Any, peer: Peer) -> None:
    request = b"POST / HTTP/1.1\r\n\r\n" + bytes(range(256)) * (64 << 10)  # 16 MiB

    def read(sock: socket.socket) -> tuple[bytes, float]:
        found = bytearray()
        while len(found) < len(request):
            found += sock.recv(1 << 20)
        done = time.perf_counter()
        sock.sendall(HEAD + b"Content-Length: 2\r\n\r\nok")
        return bytes(found), done

    async def main() -> None:
        pool, connection, sock = await peer.connect()
        answer = Answer()
        before = time.perf_counter()
        connection.send(request, answer)
        assert connection.writing
        assert answer.told == []
        found, done = await asyncio.get_running_loop().run_in_executor(None, read, sock)
        assert await answer.end == "complete"
        assert found == request
        assert answer.told == ["written", "head 200"]
        assert before < answer.written_s < done
        assert await pool.get() is connection  # kept alive
        sock.close()
        pool.close()

    run(main())


def test_an_answer_before_the_whole_request(run: Any, peer: Peer) -> None:
    """The rest of the request would be taken for the next one: the connection is not kept."""

    async def main() -> None:
        pool, connection, sock = await peer.connect()
        answer = Answer()
        connection.send(b"x" * (16 << 20), answer)
        sock.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
        assert await answer.end == "complete"
        assert not connection.alive
        assert await pool.get() is not connection
        sock.close()
        pool.close()

    run(main())


@pytest.mark.parametrize(
    ("sent", "reset", "end"),
    [
        (b"", False, "lost False: the server closed the connection"),
        (b"", True, "lost False: Connection reset by peer"),
        (HEAD + b"Content-Length: 9\r\n\r\nab", False, "lost True: the server closed"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab", False, "lost True"),
        (HEAD + b"\r\nab", False, "complete"),  # such a body ends with its connection
        (HEAD[:20], False, "lost True: the server closed"),
    ],
)
def test_the_connection_ends_within_the_answer(
    run: Any, peer: Peer, sent: bytes, reset: bool, end: str
) -> None:
    async def main() -> None:
        pool, connection, sock = await peer.connect()
        answer = Answer()
        connection.send(b"request", answer)
        assert sock.recv(100) == b"request"
        sock.sendall(sent)
        if reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
        assert (await answer.end).startswith(end)
        assert [data for _, data in answer.body] == ([b"ab"] if b"ab" in sent else [])
        assert not connection.alive
        assert not pool._open
        pool.close()

    run(main())


def test_half_an_end(run: Any, peer: Peer) -> None:
    """A server that ends its direction only has said all it will say."""

    async def main() -> None:
        pool, connection, sock = await peer.connect()
        answer = Answer()
        connection.send(b"request", answer)
        sock.sendall(HEAD + b"Content-Length: 2\r\n\r\nok")
        sock.shutdown(socket.SHUT_WR)
        assert await answer.end == "complete"
        # The end is seen: by now or by whoever sends next.
        if connection.alive:
            second = Answer()
            connection.send(b"request", second)
            assert await second.end == "lost False: the server closed the connection"
        assert not connection.alive
        sock.close()
        pool.close()

    run(main())


def test_a_server_that_leaves_while_we_write(run: Any, peer: Peer) -> None:
    async def main() -> None:
        pool, connection, sock = await peer.connect()
        answer = Answer()
        connection.send(b"x" * (16 << 20), answer)
        assert connection.writing
        sock.close()  # with bytes unread: a reset
        assert (await answer.end).startswith("lost False: ")
        assert answer.told == []
        assert not connection.alive
        assert not pool._open
        pool.close()

    run(main())
