"""How well a worker keeps up: CPU, time waited for a CPU, lag of a ticker, delay of sends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time

from atom.bench.client.timer import ExactTimer

TICK_S = 0.010
_SCHEDSTAT = Path("/proc/self/schedstat")


class Meter:
    """A 10 ms ticker. A stall of the loop counts as each tick it swallowed, not as one."""

    def __init__(self, timer: ExactTimer, on_tick: Callable[[], None]) -> None:
        self._timer = timer
        self._on_tick = on_tick
        self._next = 0.0
        self._started = perf_counter()
        self._cpu = process_time()
        self._waited = waited_for_cpu_s()
        self._running = False
        self.lags_s: list[float] = []
        self.send_delays_s: list[float] = []

    def start(self) -> None:
        self._started = perf_counter()
        self._cpu = process_time()
        self._waited = waited_for_cpu_s()
        self._running = True
        self._next = self._started + TICK_S
        self._timer.at(self._next, self._tick)

    def stop(self) -> None:
        self._running = False

    @property
    def elapsed_s(self) -> float:
        return max(perf_counter() - self._started, 1e-9)

    @property
    def cpu_s(self) -> float:
        return process_time() - self._cpu

    @property
    def waited_s(self) -> float:
        return waited_for_cpu_s() - self._waited

    def _tick(self) -> None:
        if not self._running:
            return
        now = perf_counter()
        while self._next <= now:
            self.lags_s.append(now - self._next)
            self._next += TICK_S
        self._on_tick()
        self._timer.at(self._next, self._tick)


def waited_for_cpu_s() -> float:
    """Seconds that this process's main thread was runnable without a CPU; 0 if unknown."""
    try:
        return int(_SCHEDSTAT.read_text().split()[1]) * 1e-9
    except (OSError, IndexError, ValueError):
        return 0.0
