"""One server process under test: start, first token, memory and CPU of its tree, stop."""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp
import psutil
from openai_load import Target, first_model, open_session, send

RSS_INTERVAL_S = 0.2
POLL_INTERVAL_S = 0.02
STOP_TIMEOUT_S = 20.0


class StartError(Exception):
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSpec:
    """A server as the configuration file names it, placeholders not yet filled in."""

    name: str
    command: str
    env: dict[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    model: str = ""
    extra_body: dict[str, Any] = field(default_factory=dict)
    drop: tuple[str, ...] = ()
    start_timeout_s: float = 120.0

    @classmethod
    def from_table(cls, name: str, table: Mapping[str, Any]) -> ServerSpec:
        lists = {key: tuple(table[key]) for key in ("needs", "drop") if key in table}
        return cls(name=name, **{**table, **lists})

    def filled(self, values: Mapping[str, str]) -> ServerSpec:
        def fill(text: str) -> str:
            for key, value in values.items():
                text = text.replace("{" + key + "}", value)
            return text

        return replace(
            self,
            command=fill(self.command),
            env={key: fill(value) for key, value in self.env.items()},
            needs=tuple(fill(path) for path in self.needs),
            model=fill(self.model),
        )

    def missing(self) -> str | None:
        """Why this server cannot run here; None when it can."""
        if "{root}" in " ".join((self.command, *self.needs)):
            return "its command needs --root"
        program = shlex.split(self.command)[0]
        if find_program(program) is None:
            return f"executable not found: {program}"
        absent = [path for path in self.needs if not Path(path).exists()]
        return f"file not found: {absent[0]}" if absent else None


def find_program(name: str) -> str | None:
    # A console script of the environment that runs this benchmark need not be on PATH.
    beside_python = str(Path(sys.executable).parent)
    return shutil.which(name, path=os.pathsep.join((beside_python, os.environ.get("PATH", ""))))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RunningServer:
    """Context manager: entered, the server has answered its first token."""

    def __init__(self, spec: ServerSpec, port: int, log_path: Path) -> None:
        self.spec = spec
        self.log_path = log_path
        self.target = Target(
            f"http://127.0.0.1:{port}", spec.model, dict(spec.extra_body), spec.drop
        )
        self.start_s = 0.0
        self.peak_rss_bytes = 0
        self._stopping = threading.Event()
        self._sampler = threading.Thread(target=self._sample_rss, daemon=True)

    def __enter__(self) -> RunningServer:
        command = shlex.split(self.spec.command)
        command[0] = find_program(command[0]) or command[0]
        spawned_at = time.perf_counter()
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **self.spec.env},
                start_new_session=True,
            )
        self._sampler.start()
        try:
            asyncio.run(self._first_token(spawned_at + self.spec.start_timeout_s))
        except BaseException:
            self.stop()
            raise
        self.start_s = time.perf_counter() - spawned_at
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    async def _first_token(self, deadline: float) -> None:
        error = "no answer"
        async with open_session(60.0) as session:
            while time.perf_counter() < deadline:
                if (status := self.process.poll()) is not None:
                    raise StartError(f"exited with status {status}: {self.log_tail()}")
                try:
                    if not self.target.model:
                        model = await first_model(session, self.target)
                        self.target = replace(self.target, model=model)
                except (aiohttp.ClientError, asyncio.TimeoutError, LookupError, ValueError) as e:
                    error = f"{type(e).__name__}: {e}"
                else:
                    error = (await send(session, self.target, "Once upon a time", 1)).error or ""
                if not error:
                    return
                await asyncio.sleep(POLL_INTERVAL_S)
        raise StartError(f"no token in {self.spec.start_timeout_s:g} s: {error}")

    def log_tail(self, num_lines: int = 3) -> str:
        lines = self.log_path.read_text(errors="replace").strip().splitlines()
        return " | ".join(lines[-num_lines:]) or "nothing in its log"

    def processes(self) -> Iterator[psutil.Process]:
        try:
            root = psutil.Process(self.process.pid)
            yield root
            yield from root.children(recursive=True)
        except psutil.NoSuchProcess:
            return

    def rss_bytes(self) -> int:
        """Summed over the tree: pages that its processes share count once for each."""
        total = 0
        for process in self.processes():
            try:
                total += process.memory_info().rss
            except psutil.Error:
                continue
        return total

    def cpu_s(self) -> float:
        total = 0.0
        for process in self.processes():
            try:
                total += sum(process.cpu_times()[:4])  # with its reaped children's
            except psutil.Error:
                continue
        return total

    def _sample_rss(self) -> None:
        while not self._stopping.wait(RSS_INTERVAL_S):
            self.peak_rss_bytes = max(self.peak_rss_bytes, self.rss_bytes())

    def take_peak_rss(self) -> int:
        """The peak since the last call."""
        peak = max(self.peak_rss_bytes, self.rss_bytes())
        self.peak_rss_bytes = 0
        return peak

    def stop(self) -> None:
        self._stopping.set()
        self._sampler.join()
        for ask in (signal.SIGTERM, signal.SIGKILL):
            ends_at = time.perf_counter() + STOP_TIMEOUT_S
            if not self._signal_group(ask):
                return
            while time.perf_counter() < ends_at:
                self.process.poll()  # reaps it, or its group would never be gone
                if not self._signal_group(0):
                    return
                time.sleep(0.05)

    def _signal_group(self, number: int) -> bool:
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            return False
        return True
