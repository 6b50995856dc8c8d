"""The core's own process, `python -m atom.engine.core_process DIRECTORY`; see `EngineClient`.

Reads requests, steps the engine, sends one message of outputs per step; blocks when idle. It ends
when told to, when the parent ends (its stdin closes), or when the engine fails; then its last
message says why and its status is not zero. SIGINT and SIGTERM are the parent's affair.
"""

from __future__ import annotations

import dataclasses
import gc
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import zmq

from atom.engine import wire
from atom.engine.core import EngineCore
from atom.engine.messages import (
    AbortRequests,
    CoreFailed,
    CoreOutputs,
    GenerateRequest,
    Shutdown,
    ToCore,
    TokenChunk,
    UtilityCall,
    UtilityReply,
)
from atom.engine.parent import end_with_parent
from atom.engine.runner.fake import FakeRunner
from atom.errors import AtomError, EngineDeadError, RequestError

STATS_INTERVAL_S = 0.25
_FLUSH_MS = 2000  # how long the last message may take to leave

log = logging.getLogger("atom.engine")


class CoreProcess:
    """The loop between the sockets and the engine."""

    def __init__(
        self,
        core: EngineCore,
        directory: Path,
        inbox: zmq.Socket[bytes],
        outbox: zmq.Socket[bytes],
        check: bool,
    ) -> None:
        self._core = core
        self._directory = directory
        self._inbox = inbox
        self._outbox = outbox
        self._check = check  # invariants, whenever idle
        self._errors: list[TokenChunk] = []
        self._stats_t = 0.0
        self._deadline: float | None = None  # once draining: when what still runs is aborted

    def run(self) -> None:
        """Serve until a `Shutdown` has been carried out."""
        core = self._core
        busy = False
        while True:
            self._receive(wait=not core.has_work)
            if core.has_work:
                if self._deadline is not None and time.monotonic() >= self._deadline:
                    core.abort_all()
                self._send(core.step())
                busy = True
            if not core.has_work:
                if busy and self._check:
                    core.check_invariants()
                self._send([], idle=busy)
                busy = False
                if self._deadline is not None:
                    return

    def _receive(self, wait: bool) -> None:
        """Everything that has arrived; with `wait`, blocks until something has."""
        if wait and self._deadline is None:
            self._handle(wire.decode_to_core(self._inbox.recv()))
        while True:
            try:
                data = self._inbox.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._handle(wire.decode_to_core(data))

    def _handle(self, message: ToCore) -> None:
        match message:
            case GenerateRequest():
                self._add(message)
            case AbortRequests(request_ids):
                self._core.abort(request_ids)
            case UtilityCall():
                self._call(message)
            case Shutdown(drain_timeout_s):
                self._deadline = time.monotonic() + drain_timeout_s

    def _add(self, request: GenerateRequest) -> None:
        """A request that is wrong fails alone."""
        try:
            if self._deadline is not None:
                raise RequestError("the engine is shutting down", code="shutting_down")
            self._core.add(request)
        except RequestError as error:
            self._refuse(request, str(error))
        except Exception:
            log.exception("request %s could not be added", request.request_id)
            self._refuse(request, "internal error: the request could not be queued")

    def _refuse(self, request: GenerateRequest, why: str) -> None:
        chunk = TokenChunk(request.request_id, [], finish_reason="error", error=why)
        self._errors.append(chunk)

    def _call(self, call: UtilityCall) -> None:
        reply = UtilityReply(call.call_id)
        try:
            reply.result = self._core.call(call.method, call.args)
        except (RequestError, AssertionError, TypeError) as error:
            reply.error = str(error)
        if callable(reply.result):
            work = threading.Thread(target=self._finish, args=(reply,), name="call", daemon=True)
            work.start()
        else:
            self._outbox.send(wire.encode(reply))

    def _finish(self, reply: UtilityReply) -> None:
        """The rest of a call, on a thread of its own and so with a socket of its own."""
        try:
            reply.result = reply.result()
        except AtomError as error:
            reply.result, reply.error = None, str(error)
        except Exception as error:
            log.exception("a call could not be finished")
            reply.result, reply.error = None, f"{type(error).__name__}: {error}"
        context: zmq.Context[Any] = zmq.Context.instance()
        with context.socket(zmq.PUSH) as outbox:
            outbox.setsockopt(zmq.LINGER, _FLUSH_MS)
            outbox.connect(wire.out_address(self._directory))
            outbox.send(wire.encode(reply))

    def _send(self, chunks: list[TokenChunk], idle: bool = False) -> None:
        if self._errors:
            chunks, self._errors = chunks + self._errors, []
        stats = None
        now = time.monotonic()
        if idle or now - self._stats_t >= STATS_INTERVAL_S:
            stats, self._stats_t = self._core.stats(), now
        if chunks or stats is not None:
            self._outbox.send(wire.encode(CoreOutputs(chunks, stats)))


def _build(setup: wire.CoreSetup) -> EngineCore:
    config = setup.config
    if setup.fake is not None:
        return EngineCore(config, FakeRunner(config, setup.fake), model="fake")
    # Imported here: they bring torch.
    began = time.monotonic()
    from atom.engine.runner.tp import make_runner
    from atom.models.source import resolve_source

    before_s = {"import": time.monotonic() - began}
    found = resolve_source(dataclasses.replace(config.model, model=setup.model_path))
    source = dataclasses.replace(found, name=setup.model_name)
    runner = make_runner(config, source)
    architecture = source.config.architecture
    return EngineCore(
        config, runner, model=source.name, architecture=architecture, before_s=before_s
    )


def _serve(directory: Path, inbox: zmq.Socket[bytes], outbox: zmq.Socket[bytes]) -> None:
    setup = wire.decode_setup(wire.setup_file(directory).read_bytes())
    logging.basicConfig(
        stream=sys.stderr,
        level=setup.config.server.log_level.upper(),
        format="%(levelname)s %(name)s: %(message)s",
    )
    core = _build(setup)
    gc.collect()
    gc.freeze()  # the model and its modules are not garbage: do not walk them in mid-step
    try:
        outbox.send(wire.encode(core.info))
        CoreProcess(core, directory, inbox, outbox, setup.config.engine.check_invariants).run()
    finally:
        core.shutdown()


def main(argv: list[str]) -> int:
    """Exit status: 0 after a shutdown, an `AtomError`'s own, else 70."""
    if len(argv) != 2 or not os.path.isdir(argv[1]):
        print("internal: started by the engine client; use `atom serve` or LLM", file=sys.stderr)
        return 2
    directory = Path(argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.dup2(2, 1)  # stdout is the parent's
    end_with_parent(directory)
    context: zmq.Context[Any] = zmq.Context()
    inbox, outbox = context.socket(zmq.PULL), context.socket(zmq.PUSH)
    wire.unlimited(inbox)
    wire.unlimited(outbox)
    outbox.setsockopt(zmq.LINGER, _FLUSH_MS)
    inbox.bind(wire.in_address(directory))
    outbox.connect(wire.out_address(directory))
    status = 0
    try:
        _serve(directory, inbox, outbox)
    except AtomError as error:
        status = error.exit_code
        outbox.send(wire.encode(CoreFailed(str(error), status)))
    except Exception as error:
        status = EngineDeadError.exit_code
        log.exception("the engine core failed")
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        outbox.send(wire.encode(CoreFailed(reason, status)))
    finally:
        inbox.close()
        outbox.close()
        context.term()
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv))
