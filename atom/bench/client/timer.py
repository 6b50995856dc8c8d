"""A timer to the microsecond on an event loop.

The timers of asyncio and uvloop are whole milliseconds, which would put up to a millisecond into
every open-loop latency and into the measured lag of the loop. Linux's timerfd is exact; elsewhere
the loop's own timers serve. Times are `time.perf_counter()`, which is CLOCK_MONOTONIC on Linux.
"""

from __future__ import annotations

import asyncio
import ctypes
import heapq
import os
import sys
from collections.abc import Callable
from time import perf_counter

_MONOTONIC, _NONBLOCK, _CLOEXEC, _ABSOLUTE = 1, os.O_NONBLOCK, os.O_CLOEXEC, 1


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class ExactTimer:
    """Calls back at a moment of `perf_counter`; many may wait at once."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0  # breaks ties: callbacks cannot be compared
        self._armed: float | None = None
        self._handle: asyncio.TimerHandle | None = None
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = -1
        if sys.platform == "linux":
            self._fd = self._libc.timerfd_create(_MONOTONIC, _NONBLOCK | _CLOEXEC)
            if self._fd < 0:
                raise OSError(ctypes.get_errno(), "timerfd_create")
            loop.add_reader(self._fd, self._on_timer)

    @staticmethod
    def now() -> float:
        return perf_counter()

    def at(self, when_s: float, callback: Callable[[], None]) -> None:
        """Call `callback` at `when_s`; at once (from the loop) if that has passed."""
        self._count += 1
        heapq.heappush(self._waiting, (when_s, self._count, callback))
        self._arm()

    async def until(self, when_s: float) -> None:
        if when_s <= perf_counter():
            return
        future: asyncio.Future[None] = self._loop.create_future()
        self.at(when_s, lambda: _set(future))
        await future

    def close(self) -> None:
        self._waiting.clear()
        if self._handle is not None:
            self._handle.cancel()
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _arm(self) -> None:
        when = self._waiting[0][0] if self._waiting else None
        if when is None or (self._armed is not None and self._armed <= when):
            return
        self._armed = when
        if self._fd < 0:
            if self._handle is not None:
                self._handle.cancel()
            self._handle = self._loop.call_later(max(0.0, when - perf_counter()), self._fire)
            return
        nanoseconds = max(1, int(when * 1e9))  # 0 would disarm
        value = _Timespec(nanoseconds // 10**9, nanoseconds % 10**9)
        spec = _Itimerspec(_Timespec(0, 0), value)
        if self._libc.timerfd_settime(self._fd, _ABSOLUTE, ctypes.byref(spec), None) < 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    def _on_timer(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return
        self._fire()

    def _fire(self) -> None:
        self._armed = None
        now = perf_counter()
        while self._waiting and self._waiting[0][0] <= now:
            heapq.heappop(self._waiting)[2]()
        self._arm()


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
