"""When bytes arrived: the kernel's stamps, on `perf_counter`'s scale.

Linux notes when a packet comes in and hands the note over with the bytes (SO_TIMESTAMPNS). So what
a client needs to get to a socket, be it a thousand other reads or a CPU that somebody else holds,
does not lengthen a latency. A read has one stamp, that of its last byte.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
from time import perf_counter, time

# Linux's SO_TIMESTAMPNS_OLD: two longs. The socket module has no name for it.
_OPTION = 35
_STAMP = struct.Struct("ll")
_unpack = _STAMP.unpack_from
NOTES_SIZE = socket.CMSG_SPACE(_STAMP.size)
# Both clocks run at one rate on Linux (NTP slews them alike), so their distance changes by steps
# only; floats of wall-clock time resolve 0.24 us.
_STEP_S = 20e-6


def ask_for_stamps(sock: socket.socket) -> bool:
    """Whether the kernel will stamp what arrives on `sock`."""
    if sys.platform != "linux":
        return False
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, _OPTION, 1)
        return True
    return False


class ArrivalClock:
    """Turns the stamps, which are of wall-clock time, into moments; counts how many it could.

    The distance of the clocks is checked with every read. A step of the wall clock (somebody sets
    it) makes stamps of before the step wrong after it, and nobody tells a read which side of it the
    stamp is from. So once a step is seen, what seems to have come before that falls back to now,
    and so does what seems to come from the future: after a step forwards old stamps look old, after
    a step backwards they look late. One that passes nevertheless (a step back by less than the
    bytes waited) is wrong by less than falling back would be.
    """

    def __init__(self) -> None:
        self.kernel = 0  # reads with a usable stamp
        self.client = 0  # reads without
        self._distance = _distance()
        self._trusted_s = 0.0  # stamps of before this may be from another setting of the clock
        # The kernel begins to stamp when the first socket asks for it, not quite at once: this one
        # asks before a connection does.
        self._first = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.supported = ask_for_stamps(self._first)

    def close(self) -> None:
        self._first.close()

    def moment(self, notes: list[tuple[int, int, bytes]], floor_s: float) -> float:
        """When the bytes of a read arrived; now if that is not known.

        `floor_s`: the previous read of this socket, or when its request was sent. An older stamp is
        no arrival of these bytes (a packet that overtook a lost one was not readable then).
        """
        wall = time()
        now = perf_counter()
        if not -_STEP_S < wall - now - self._distance < _STEP_S:
            self._on_step(now)
        if notes and notes[0][1] == _OPTION:  # nothing else was asked for
            seconds, nanoseconds = _unpack(notes[0][2])
            moment: float = seconds - self._distance + nanoseconds * 1e-9
            if floor_s <= moment <= now and moment >= self._trusted_s:
                self.kernel += 1
                return moment
        self.client += 1
        return now

    def _on_step(self, now: float) -> None:
        """Or we were interrupted between the readings of the two clocks."""
        distance = _distance()
        if abs(distance - self._distance) > _STEP_S:
            self._distance = distance
            self._trusted_s = now


def _distance() -> float:
    """Of the two clocks: the one of several readings that nothing came between."""
    readings = []
    for _ in range(10):
        before = perf_counter()
        wall = time()
        after = perf_counter()
        readings.append((after - before, wall - (before + after) / 2))
    return min(readings)[1]
