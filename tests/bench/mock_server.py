"""A mock OpenAI server whose timings are known exactly, and which writes down what it really did.

    python tests/bench/mock_server.py --port 18130 --ttft-ms 200 --itl-ms 50 --truth truth.jsonl

In tests, in a thread of their own process:

    with MockServer(Behaviour(ttft_ms=20, itl_ms=5)) as server:
        run_load(Target(base_url=server.url, ...), ...)
        server.truth  # one `Truth` per generation request, in order of arrival

All moments are `time.perf_counter()`, which is one clock for all processes of a machine on Linux.
A request's moment is the kernel's stamp of its last
byte, a chunk's is taken just before its bytes are handed to the kernel. Deadlines of a stream do
not drift: each counts from the last deadline, not from when it was met. One thread, epoll, a heap
of deadlines; no asyncio, so that 20,000 chunks a second leave most of a core alone.
"""

from __future__ import annotations

import heapq
import json
import os
import resource
import select
import signal
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from mock_behaviour import Behaviour
from mock_http import Request, answer, read_request, route
from mock_stream import Ask, Step, Stream, split, whole_answer
from mock_truth import NOTES_SIZE, SO_TIMESTAMPNS, KernelClock, Truth, read_truth

__all__ = ["MockServer", "Truth", "read_truth"]

now = time.perf_counter


class Connection:
    """One client's socket: what was read, what could not be written yet, the stream it carries."""

    __slots__ = ("answers", "arrived_s", "out", "read", "shut", "since", "sock", "steps", "truth")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.read = bytearray()
        self.out = bytearray()
        self.steps: Iterator[Step] | None = None
        self.truth: Truth | None = None
        self.answers = 0
        self.arrived_s = 0.0  # the latest bytes
        self.since = now()  # idle
        self.shut = False


class MockServer:
    """`behaviour` may be replaced while it runs; requests in flight keep theirs."""

    def __init__(self, behaviour: Behaviour | None = None, port: int = 0) -> None:
        self.behaviour = behaviour or Behaviour()
        self.truth: list[Truth] = []
        self.profiling: list[str] = []  # calls of /start_profile and /stop_profile
        self.seen: list[dict[str, Any]] = []  # bodies of generation requests
        self.counters: dict[str, float] = {}
        self._listener = socket.create_server(("127.0.0.1", port), backlog=4096)
        self._listener.setblocking(False)
        # Connections inherit it, so that it holds for what arrives before they are accepted.
        self._listener.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self._clock = KernelClock()
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._epoll = select.epoll()
        self._epoll.register(self._listener.fileno(), select.EPOLLIN)
        self._wake = os.eventfd(0)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._connections: dict[int, Connection] = {}
        self._due: list[tuple[float, int, Connection, Step]] = []
        self._order = 0
        self._waiting: deque[tuple[Connection, Ask]] = deque()
        self.active = 0
        self._stopping = False
        self._thread: threading.Thread | None = None

    def __enter__(self) -> MockServer:
        self._thread = threading.Thread(target=self.run, name="mock", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        assert self._thread is not None
        self._thread.join()

    def run(self) -> None:
        """Serve until `stop`."""
        number = self._epoll.fileno()
        try:
            while not self._stopping:
                wait = self._fire()
                # epoll's own timeout counts in milliseconds; select's on the epoll does not.
                select.select([number], [], [], wait)
                for fd, event in self._epoll.poll(0):
                    if fd == self._listener.fileno():
                        self._accept()
                    elif (connection := self._connections.get(fd)) is not None:
                        self._ready(connection, event)
        finally:
            for connection in list(self._connections.values()):
                self._drop(connection)
            self._listener.close()
            self._epoll.close()
            os.close(self._wake)

    def stop(self) -> None:
        """From any thread, or a signal's handler."""
        os.eventfd_write(self._wake, 1)  # first: the thread closes it once it sees the flag
        self._stopping = True

    def _fire(self) -> float:
        """Take every step that is due; seconds until the next one."""
        due = self._due
        while due:
            wait = due[0][0] - now()
            if wait > 0:
                return min(wait, 1.0)
            deadline, _, connection, step = heapq.heappop(due)
            if not connection.shut:
                self._take(connection, step, deadline)
        return 1.0

    def _at(self, deadline: float, connection: Connection, step: Step) -> None:
        self._order += 1
        heapq.heappush(self._due, (deadline, self._order, connection, step))

    def _take(self, connection: Connection, step: Step, deadline: float) -> None:
        truth = connection.truth
        if step.after == "idle":
            if truth is None and connection.since <= deadline - step.gap_s + 1e-9:
                self._drop(connection)
            return
        assert truth is not None
        moment = now()
        if step.data:
            if step.tokens:
                truth.chunk_s.append(moment)
                truth.chunk_tokens.append(step.tokens)
            elif step.after == "opening":
                truth.opening_s = moment
            self._send(connection, step.data)
        if connection.shut:
            return
        if step.after in ("", "opening"):
            self._next(connection, deadline)
        else:
            self._end(connection, step.after, moment)

    def _next(self, connection: Connection, deadline: float) -> None:
        assert connection.steps is not None
        step = next(connection.steps)
        deadline += step.gap_s
        grid = self.behaviour.itl_ms / 1e3
        if self.behaviour.batched and grid > 0 and step.tokens:
            deadline = -(-deadline // grid) * grid
        self._at(deadline, connection, step)

    def _end(self, connection: Connection, after: str, moment: float) -> None:
        truth = connection.truth
        assert truth is not None
        truth.ended_s = moment
        if after == "hang":
            truth.outcome = "hang"
            return  # its place stays taken until the client leaves
        truth.outcome = truth.outcome or ("ok" if after == "end" else after)
        self._leave(connection)
        if after == "reset":
            linger = struct.pack("ii", 1, 0)
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        if after in ("reset", "cut"):
            self._drop(connection)
        else:
            self._answered(connection)

    def _leave(self, connection: Connection) -> None:
        """A stream gives its place up; the longest waiting one gets it."""
        connection.steps = connection.truth = None
        self.active -= 1
        while self._waiting and self._has_place():
            follower, ask = self._waiting.popleft()
            if not follower.shut:
                self._start(follower, ask)

    def _has_place(self) -> bool:
        slots = self.behaviour.slots
        return slots is None or self.active < slots

    def _answered(self, connection: Connection) -> None:
        connection.answers += 1
        connection.since = now()
        limits = self.behaviour
        if limits.close_after and connection.answers >= limits.close_after:
            if not connection.out:
                self._drop(connection)
        elif limits.idle_close_ms:
            gap = limits.idle_close_ms / 1e3
            self._at(connection.since + gap, connection, Step(gap, b"", after="idle"))

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connections[sock.fileno()] = Connection(sock)
            self._epoll.register(sock.fileno(), select.EPOLLIN)

    def _ready(self, connection: Connection, event: int) -> None:
        if event & select.EPOLLOUT and connection.out:
            self._epoll.modify(connection.sock.fileno(), select.EPOLLIN)
            out, connection.out = connection.out, bytearray()
            self._send(connection, bytes(out))
        if event & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR) and not connection.shut:
            try:
                data, notes, _, _ = connection.sock.recvmsg(1 << 20, NOTES_SIZE)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._drop(connection)
                return
            connection.arrived_s = self._clock.moment(notes)
            connection.read += data
            while not connection.shut and connection.truth is None:
                request = read_request(connection.read)
                if request is None:
                    return
                self._handle(connection, request)

    def _send(self, connection: Connection, data: bytes) -> None:
        """All of it, now or when the client has read what it has."""
        sent = 0
        if not connection.out:
            try:
                sent = connection.sock.send(data)
            except BlockingIOError:
                pass
            except OSError:
                self._drop(connection)
                return
            if sent == len(data):
                return
        connection.out += data[sent:]
        if connection.truth is not None:
            connection.truth.blocked = True
        self._epoll.modify(connection.sock.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def _drop(self, connection: Connection) -> None:
        if connection.shut:
            return
        connection.shut = True
        del self._connections[connection.sock.fileno()]
        self._epoll.unregister(connection.sock.fileno())
        connection.sock.close()
        truth = connection.truth
        if truth is not None:
            truth.outcome = truth.outcome or "disconnected"
            truth.ended_s = truth.ended_s or now()
            if connection.steps is not None:
                self._leave(connection)

    def _handle(self, connection: Connection, request: Request) -> None:
        asked = route(self, request)
        if isinstance(asked, bytes):
            self._send(connection, asked)
            if not connection.shut:
                self._answered(connection)
            return
        truth = Truth(
            asked.index,
            request.path,
            asked.prompt,
            asked.prompt_tokens,
            asked.max_tokens,
            connection.arrived_s,
            now(),
        )
        self.truth.append(truth)
        fault = asked.behaviour.fault(asked.index)
        if fault is not None and fault.kind in ("http", "html"):
            status = fault.number if fault.kind == "http" else 200
            truth.outcome = f"http {status}" if fault.kind == "http" else "html"
            truth.ended_s = now()
            self._send(connection, answer(status, fault.kind))
            if not connection.shut:
                self._answered(connection)
            return
        connection.truth = truth
        if self._has_place():
            self._start(connection, asked)
        else:
            self._waiting.append((connection, asked))

    def _start(self, connection: Connection, ask: Ask) -> None:
        truth, b = connection.truth, ask.behaviour
        assert truth is not None
        self.active += 1
        truth.started_s = now() if self.behaviour.slots else truth.arrived_s
        queue_s = truth.started_s - truth.arrived_s
        self.count("requests", 1, queue_s=queue_s, prompt=ask.prompt_tokens)
        if ask.stream:
            stream = Stream(ask, queue_s, lambda: self.active)
            truth.outcome = stream.fault if stream.fault != "hang" else ""
            steps = stream.steps()
            if b.split_bytes:
                steps = split(steps, b.split_bytes, b.split_ms / 1e3)
        else:
            step = whole_answer(ask, queue_s, self.active)
            steps = iter((step._replace(data=answer(200, "", step.data)),))
        connection.steps = steps
        self._next(connection, truth.started_s)

    def count(self, name: str, value: float, **more: float) -> None:
        for key, amount in {name: value, **more}.items():
            self.counters[key] = self.counters.get(key, 0.0) + amount

    def write_truth(self, path: Path) -> None:
        """One JSON object a line."""
        path.write_bytes(b"".join(msgspec.json.encode(truth) + b"\n" for truth in self.truth))


def raise_open_files() -> None:
    """A thousand streams are a thousand descriptors."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> None:
    from mock_cli import parse

    arguments, behaviour = parse()
    raise_open_files()
    server = MockServer(behaviour, arguments.port)
    print(json.dumps({"url": server.url}), flush=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: server.stop())
    started_cpu = time.process_time()
    started = now()
    server.run()
    share = (time.process_time() - started_cpu) / (now() - started)
    print(json.dumps({"requests": len(server.truth), "cpu_share": round(share, 3)}), flush=True)
    if arguments.truth:
        server.write_truth(arguments.truth)


if __name__ == "__main__":
    main()
