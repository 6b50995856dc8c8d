"""A client process: `python -m atom.bench.client.worker`, spoken to over stdin and stdout.

It serves one run after another and ends when its stdin does, so it never outlives its parent. It
exists because a display, a history or a workload in the same interpreter would delay its moments.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import signal
import sys
import traceback
from collections.abc import Coroutine
from typing import Any

import msgspec

from atom.bench.client import wire
from atom.bench.client.runner import Runner
from atom.bench.client.timer import ExactTimer


class Worker(asyncio.Protocol):
    """Reads the parent's messages from stdin."""

    def __init__(self, output: asyncio.WriteTransport) -> None:
        self._output = output
        self._frames = wire.Unpacker()
        self._decode = msgspec.msgpack.Decoder(wire.ToWorker).decode
        self._timer = ExactTimer(asyncio.get_running_loop())
        self._runner: Runner | None = None
        self._finishing: asyncio.Task[None] | None = None
        self.ended = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        for frame in self._frames.feed(data):
            self._on_message(self._decode(frame))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    def _send(self, message: wire.ToParent) -> None:
        self._output.write(wire.pack(message))

    def _on_message(self, message: wire.ToWorker) -> None:
        if isinstance(message, wire.Setup):
            self._prepare()
            self._runner = Runner(message, self._send, self._timer)
            self._send(wire.Ready())
            return
        runner = self._runner
        assert runner is not None, message
        match message:
            case wire.Task():
                runner.add(message)
            case wire.Start(base_s, duration_s):
                runner.start(base_s, duration_s)
            case wire.Refill(low):
                runner.set_low(low)
            case wire.Places(places):
                runner.set_places(places)
            case wire.Stop(grace_s):
                runner.stop(grace_s)
            case wire.Finish():
                self._spawn(runner.finish())

    def _prepare(self) -> None:
        """What lives now lives on: the collector need not look at it during the run."""
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        gc.set_threshold(100_000, 20, 50)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._finishing = asyncio.get_running_loop().create_task(work)
        self._finishing.add_done_callback(lambda task: task.result())


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_die)
    # stdout is the parent's pipe; whatever prints must not write into it.
    output = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    transport, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, output)
    _, worker = await loop.connect_read_pipe(lambda: Worker(transport), sys.stdin.buffer)
    await worker.ended


def _die(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """A bug of ours must not become a quiet distortion of figures."""
    error = context.get("exception")
    if error is not None:
        traceback.print_exception(type(error), error, error.__traceback__)
    sys.stderr.write(f"worker: {context.get('message')}: {error!r}\n")
    sys.stderr.flush()
    os._exit(70)


def go_first() -> None:
    """Before whoever else wants this CPU, where that is allowed (root, CAP_SYS_NICE).

    A client needs little of a CPU but needs it at once. Measured on two cores with three busy
    loops: a 10 ms ticker is late by 137 ms (p99) as usual, 25 to 133 ms with nice -10, 0.07 ms
    with real-time priority. Where neither is allowed the verdict says how late the client was.
    """
    try:
        policy = os.SCHED_FIFO | os.SCHED_RESET_ON_FORK
        os.sched_setscheduler(0, policy, os.sched_param(1))
    except (OSError, AttributeError):
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, -10)


def main() -> None:
    # Ctrl-C, and a SIGTERM to the whole process group, are the parent's business; without it, stdin
    # ends and so does this.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    go_first()
    import uvloop

    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        loop.run_until_complete(_serve())
    finally:
        loop.close()


if __name__ == "__main__":
    main()
