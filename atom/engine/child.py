"""The core as a child process: started, listened to, waited for, ended."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections import deque
from pathlib import Path

_MAX_LINE = 64 * 1024


class CoreChild:
    """A running `atom.engine.core_process`.

    Its stdin is a pipe that is only held open: when this process ends, however it ends, the pipe
    closes and the core ends too. Its stderr is passed on, and the last lines are kept to explain a
    death.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._lines: deque[str] = deque(maxlen=20)
        self._pump = asyncio.create_task(self._pass_on(), name="engine-stderr")

    @classmethod
    async def start(cls, directory: Path) -> CoreChild:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "atom.engine.core_process",
            str(directory),
            stdin=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=_MAX_LINE,
            start_new_session=True,  # a Ctrl-C in the terminal is for the parent alone
        )
        return cls(process)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process.returncode is None else None

    async def _pass_on(self) -> None:
        stderr = self._process.stderr
        assert stderr is not None
        while True:
            try:
                line = await stderr.readline()
            except ValueError:  # a line longer than the limit was dropped
                continue
            if not line:
                return
            text = line.decode(errors="replace")
            if text.strip():
                self._lines.append(text.strip())
            sys.stderr.write(text)
            sys.stderr.flush()

    async def wait(self, timeout_s: float | None) -> int | None:
        """The exit status, negative for a signal; None if it still runs after `timeout_s`."""
        try:
            await asyncio.wait_for(asyncio.shield(self._exited()), timeout_s)
        except asyncio.TimeoutError:
            return None
        return self._process.returncode

    async def _exited(self) -> None:
        await self._process.wait()
        # What it wrote is in the pipe; a grandchild that holds the pipe open is not waited for.
        await asyncio.wait([self._pump], timeout=0.5)

    async def kill(self) -> None:
        """End it now if it still runs, and reap it."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        await asyncio.wait([self._pump], timeout=0.5)
        self._pump.cancel()
        if self._process.stdin is not None:
            self._process.stdin.close()

    def last_line(self, prefix: str = "") -> str:
        return prefix + self._lines[-1] if self._lines else ""

    def obituary(self) -> str:
        """One line: how it ended, and the last thing that it wrote."""
        status = self._process.returncode
        assert status is not None, "it is alive"
        if status < 0:
            try:
                name = signal.Signals(-status).name
            except ValueError:
                name = str(-status)
            how = f"was killed by {name}"
        else:
            how = f"ended with status {status}"
        return f"the engine process {how}{self.last_line('; its last line: ')}"
