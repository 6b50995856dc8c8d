"""The server of a recipe: started, waited for, watched, and always stopped.

It is a process of its own session, so that Ctrl-C at the terminal reaches us alone and running
requests are not cut off under the measurement; on Linux it ends when we are killed.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from atom.bench.errors import BenchError

LISTENING = re.compile(r"\blistening on (https?://\S+)")
DRAIN_S = 10.0  # it has no requests when it is stopped, but for those of an interrupted run
POLL_S = 0.05
TAIL_BYTES = 65536

# Asks the kernel to send SIGTERM when our process ends, whatever ends it, then becomes the server.
_LAUNCH = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 15)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


class Stopped(Exception):
    """The user gave up while the server was starting."""


class RecipeServer:
    """`atom serve RECIPE` on a free port of this machine; use it as a context manager.

    Args:
        recipe: What is served.
        log: File that takes all it says.
        args: More flags of `atom serve`.
        ready_s: How long it may take until it can serve.
        stopped: Asked while waiting; True ends the wait with `Stopped`.
        waiting: Told the seconds waited so far, about twice a second.

    Entering raises `BenchError` when it cannot start, dies or is not ready in time.
    """

    def __init__(
        self,
        recipe: Path,
        log: Path,
        *,
        args: Sequence[str] = (),
        ready_s: float = 1200.0,
        stopped: Callable[[], bool] = lambda: False,
        waiting: Callable[[float], None] = lambda _: None,
    ) -> None:
        self.recipe = recipe
        self.log = log
        self.url = ""
        self._args = list(args)
        self._ready_s = ready_s
        self._stopped = stopped
        self._waiting = waiting
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> RecipeServer:
        self._start()
        try:
            self.url = self._wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def argv(self) -> list[str]:
        """Ours last: it must listen here, where we know it, and say so."""
        ours = ["--host", "127.0.0.1", "--port", "0", "--log-level", "info"]
        return ["-m", "atom.cli", "serve", str(self.recipe), *self._args, *ours]

    def died(self) -> str | None:
        """Why it is gone, in one line, or None while it runs."""
        process = self._process
        if process is None or process.poll() is None:
            return None
        return f"the server of {self.recipe} ended {_how(process.returncode)}{self._last_words()}"

    def stop(self) -> None:
        """End it: SIGTERM, again, then SIGKILL for it and whatever it left."""
        process = self._process
        if process is None:
            return
        try:
            for wait_s in (DRAIN_S, DRAIN_S / 2):
                if process.poll() is None:
                    process.terminate()
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(wait_s)
        finally:  # also when the wait is broken off by Ctrl-C
            # Its session: the engine's processes too, should they have outlived it.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            self._process = None

    def _start(self) -> None:
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            out = self.log.open("wb")
        except OSError as error:
            raise BenchError(
                f"cannot write the server's log {self.log}: {error.strerror}"
            ) from error
        with out:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _LAUNCH, *self.argv],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _wait_ready(self) -> str:
        began = told = time.monotonic()
        while True:
            match = LISTENING.search(self._tail())
            if match is not None:
                return match[1]
            problem = self.died()
            if problem is not None:
                raise BenchError(f"{problem}; its log is {self.log}")
            if self._stopped():
                raise Stopped
            now = time.monotonic()
            if now - began > self._ready_s:
                raise BenchError(
                    f"the server of {self.recipe} was not ready within {self._ready_s:g} s "
                    f"(--ready-timeout-s); its log is {self.log}"
                )
            if now - told >= 0.5:
                told = now
                self._waiting(now - began)
            time.sleep(POLL_S)

    def _tail(self) -> str:
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - TAIL_BYTES))
                return file.read().decode("utf-8", errors="replace")
        except OSError:
            return ""

    def _last_words(self) -> str:
        """What it said last: its own one-line error if there is one."""
        lines = [line.strip() for line in self._tail().splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("atom: error: ")]
        if errors:
            return ": " + errors[-1].removeprefix("atom: error: ")
        return f": {lines[-1]}" if lines else ""


def _how(code: int) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"by {signal.Signals(-code).name}"
    return f"with exit code {code}"
