"""A rank above 0: `python -m atom.engine.runner.tp_worker DIRECTORY RANK`; see `tp_workers`.

Runs the plans that it is sent, in order, until an empty message. It ends at once when its parent
does (stdin closes), and with a status that is not zero when it fails.
"""

from __future__ import annotations

import dataclasses
import gc
import logging
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import msgspec
import zmq

from atom.engine.parent import end_with_parent
from atom.engine.runner import plan_wire, tp
from atom.engine.runner.model_runner import ModelRunner
from atom.engine.runner.profiler import Writer
from atom.engine.runner.tp_workers import TracesWritten, WorkerSetup, address, trace_address
from atom.engine.wire import unlimited
from atom.errors import AtomError, EngineDeadError
from atom.models.source import resolve_source

log = logging.getLogger("atom.runner")


class _Profiles:
    """Starts and stops this rank's profiler; rank 0 hears of each stop, well or ill."""

    def __init__(self, runner: ModelRunner, directory: Path, rank: int) -> None:
        self._runner = runner
        self._address = trace_address(directory)
        self._rank = rank
        self._error = ""

    def obey(self, stamp: str) -> None:
        """A failure here must not end the rank."""
        try:
            if stamp:
                self._error = ""
                self._runner.start_profile(stamp)
                return
            writer = self._runner.stop_profile()
        except Exception as error:
            log.exception("the profiler failed")
            self._error = self._error or f"rank {self._rank}: {error}"
            if stamp:
                return
            writer = list
        threading.Thread(target=self._write, args=(writer,), name="trace", daemon=True).start()

    def _write(self, writer: Writer) -> None:
        done = TracesWritten([], self._error)
        try:
            done.paths = writer()
        except Exception as error:
            done.error = done.error or f"rank {self._rank}: {error}"
        context: zmq.Context[Any] = zmq.Context()
        with context.socket(zmq.PUSH) as outbox:
            outbox.connect(self._address)
            outbox.send(msgspec.msgpack.encode(done))
        context.term()


def _run(inbox: zmq.Socket[bytes], directory: Path, rank: int) -> None:
    setup = msgspec.msgpack.decode(inbox.recv(), type=WorkerSetup)
    config = setup.config
    logging.basicConfig(
        stream=sys.stderr,
        # What every rank says, rank 0 says.
        level=logging.DEBUG if config.server.log_level == "debug" else logging.ERROR,
        format=f"%(levelname)s rank {rank} %(name)s: %(message)s",
    )
    source = dataclasses.replace(resolve_source(config.model), name=setup.model_name)
    runner = ModelRunner(config, source, tp.join(config, rank, setup.port))
    gc.collect()
    gc.freeze()
    profiles = _Profiles(runner, directory, rank)
    while data := inbox.recv():
        stamp = plan_wire.profile_stamp(data)
        if stamp is None:
            runner.launch(plan_wire.decode(data))
        else:
            profiles.obey(stamp)
    runner.shutdown()
    tp.leave()


def main(argv: list[str]) -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    directory, rank = Path(argv[1]), int(argv[2])
    end_with_parent(directory)
    context: zmq.Context[Any] = zmq.Context()
    inbox = context.socket(zmq.PULL)
    unlimited(inbox)
    inbox.bind(address(directory, rank))
    try:
        _run(inbox, directory, rank)
    except AtomError as error:
        log.error("%s", error)
        return error.exit_code
    except Exception:
        log.exception("rank %d failed", rank)
        return EngineDeadError.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
