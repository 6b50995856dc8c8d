"""The processes of ranks 1 and up: started, fed with plans, watched, ended.

Each worker has a private-directory socket of its own, on which it gets a setup message and then
one message per step; an empty one ends it. Its stdin is a pipe that this process only holds open:
however this process ends, the pipe closes and the worker ends too.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import msgspec
import zmq

from atom.config.schema import Config
from atom.engine.wire import make_private_dir, unlimited
from atom.errors import EngineDeadError, RequestError

log = logging.getLogger("atom.runner")

_STOP_S = 10.0  # how long a worker may take to end when told to
_NOTICE_S = 2.0  # how long to wait for the exit status of a worker whose connection broke
_TRACE_POLL_MS = 200  # how often it is looked whether a worker still lives that writes a trace
_STUCK_S = 10.0  # how long a collective may outlive a dead peer


class WorkerSetup(msgspec.Struct):
    """The first message. `config.model.model` is the path of the files that rank 0 resolved;
    `port` is where it waits for the others."""

    config: Config
    model_name: str
    port: int


class TracesWritten(msgspec.Struct):
    """A worker's answer, when it has written what its profiler recorded."""

    paths: list[str]
    error: str = ""


class Workers:
    """`size - 1` worker processes."""

    def __init__(self, setup: WorkerSetup, size: int, exit_if_stuck: bool) -> None:
        """`exit_if_stuck`: where the death of a worker can leave this process in a collective that
        never returns (GPUs), end the process after a while."""
        self._stopping = False
        self._died: str | None = None
        self._noticed = threading.Event()  # that `_died` is set
        self._exit_if_stuck = exit_if_stuck
        self._directory = make_private_dir()
        self._context: zmq.Context[Any] = zmq.Context()
        self._sockets: list[zmq.Socket[bytes]] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        first = msgspec.msgpack.encode(setup)
        for rank in range(1, size):
            self._start(rank, first)

    def _start(self, rank: int, first: bytes) -> None:
        socket = self._context.socket(zmq.PUSH)
        unlimited(socket)
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(address(self._directory, rank))  # sends are queued until the worker binds
        socket.send(first)
        self._sockets.append(socket)
        command = [sys.executable, "-m", "atom.engine.runner.tp_worker"]
        process = subprocess.Popen(
            [*command, str(self._directory), str(rank)],
            stdin=subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C in the terminal is for the parent alone
        )
        self._processes.append(process)
        watch = threading.Thread(
            target=self._watch, args=(rank, process), name=f"rank-{rank}-watch", daemon=True
        )
        watch.start()

    def _watch(self, rank: int, process: subprocess.Popen[bytes]) -> None:
        status = process.wait()
        if self._stopping:
            return
        if self._died is None:
            how = f"signal {-status}" if status < 0 else f"status {status}"
            self._died = f"tensor-parallel rank {rank} ended with {how}"
            log.error("%s", self._died)
            self._noticed.set()
        if self._exit_if_stuck and not self._stopped_within(_STUCK_S):
            log.critical("rank 0 is stuck waiting for rank %d: ending", rank)
            os._exit(EngineDeadError.exit_code)

    def _stopped_within(self, seconds: float) -> bool:
        waited = threading.Event()
        for _ in range(int(seconds * 10)):
            if self._stopping:
                return True
            waited.wait(0.1)
        return self._stopping

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def send(self, data: bytes) -> None:
        """One message to each worker; raises `EngineDeadError` if one has died."""
        if self._died is not None:
            raise EngineDeadError(self._died)
        for socket in self._sockets:
            socket.send(data, copy=False)

    def traces(self) -> list[str]:
        """Wait until every worker has written its trace; their paths. For any thread.

        Raises `RequestError` if one could not, `EngineDeadError` if one has died.
        """
        paths, error = [], ""
        with self._context.socket(zmq.PULL) as inbox:
            inbox.bind(trace_address(self._directory))
            for _ in self._processes:
                while not inbox.poll(_TRACE_POLL_MS):
                    if self._died is not None or self._stopping:
                        raise EngineDeadError(self._died or "the engine is shutting down")
                written = msgspec.msgpack.decode(inbox.recv(), type=TracesWritten)
                paths += written.paths
                error = error or written.error
        if error:
            raise RequestError(error, code="no_trace")
        return sorted(paths)

    def explain(self, error: Exception) -> Exception:
        """What to raise for an error of a collective: a worker's death, if that is behind it."""
        self._noticed.wait(_NOTICE_S)
        return error if self._died is None else EngineDeadError(self._died)

    def stop(self) -> None:
        """End every worker, politely first, and reap it."""
        if self._stopping:
            return
        self._stopping = True
        for socket in self._sockets:
            socket.send(b"")
        for process in self._processes:
            try:
                process.wait(0 if self._died else _STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdin is not None
            process.stdin.close()
        for socket in self._sockets:
            socket.close()
        self._context.term()
        shutil.rmtree(self._directory, ignore_errors=True)


def trace_address(directory: Path) -> str:
    return f"ipc://{directory}/traces"


def address(directory: Path, rank: int) -> str:
    return f"ipc://{directory}/rank{rank}"
