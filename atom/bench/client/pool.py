"""The client's processes: started when needed, kept for the next run, ended with the parent."""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import tempfile

import msgspec

from atom.bench.client import wire
from atom.bench.errors import BenchError

_READ_BYTES = 1 << 20


class WorkerProcess:
    """One `atom.bench.client.worker`. Its pipes are the only way in and out."""

    def __init__(self) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by end()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "atom.bench.client.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            # A folder named atom where the user stands is not this package (Python >= 3.11).
            env={**os.environ, "PYTHONSAFEPATH": "1"},
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin = self._process.stdin.fileno()
        self.stdout = self._process.stdout.fileno()
        os.set_blocking(self.stdout, False)
        self._frames = wire.Unpacker()
        self._decode = msgspec.msgpack.Decoder(wire.ToParent).decode

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def send(self, message: wire.ToWorker) -> None:
        """A worker always reads, so this waits little. Raises `BenchError` if it is dead."""
        data = memoryview(wire.pack(message))
        try:
            while data:
                data = data[os.write(self._stdin, data) :]
        except BrokenPipeError:
            raise self._death() from None

    def receive(self) -> list[wire.ToParent]:
        """What has come, perhaps nothing. Raises `BenchError` if the worker is dead."""
        try:
            data = os.read(self.stdout, _READ_BYTES)
        except BlockingIOError:
            return []
        if not data:
            raise self._death()
        return [self._decode(frame) for frame in self._frames.feed(data)]

    def end(self) -> None:
        """Close its stdin, upon which it ends; kill it if it does not."""
        process = self._process
        for pipe in (process.stdin, process.stdout):
            if pipe is not None and not pipe.closed:
                pipe.close()
        try:
            process.wait(timeout=2.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._errors.close()

    def _death(self) -> BenchError:
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        last = f": {lines[-1][:300]}" if lines else ""
        return BenchError(f"a client process ended (exit code {code}){last}")


_idle: list[WorkerProcess] = []


def take() -> WorkerProcess:
    """An idle worker, or a new one."""
    while _idle:
        worker = _idle.pop()
        if worker.alive:
            return worker
        worker.end()
    return WorkerProcess()


def give_back(worker: WorkerProcess) -> None:
    """Only after its `Final`: the next run finds it clean."""
    _idle.append(worker)


@atexit.register
def end_all() -> None:
    while _idle:
        _idle.pop().end()
