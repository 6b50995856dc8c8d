"""What the mock server writes down of each request, and the kernel's stamps on its own clock."""

from __future__ import annotations

import socket
import struct
import time
from pathlib import Path

import msgspec

SO_TIMESTAMPNS = 35  # Linux; the socket module has no name for it
NOTES_SIZE = socket.CMSG_SPACE(16)
now = time.perf_counter


class Truth(msgspec.Struct):
    """What happened to one generation request."""

    index: int  # order of arrival
    path: str
    prompt: str  # its first 60 characters; of token ids, their JSON
    prompt_tokens: int
    max_tokens: int
    arrived_s: float  # when its last byte had reached this socket; by the kernel's stamp
    received_s: float  # when it had been read: later if the mock was busy
    started_s: float = 0.0  # when it got its place: at arrival, later only with `slots`
    opening_s: float | None = None  # the chunk without a token
    chunk_s: list[float] = []
    chunk_tokens: list[int] = []
    ended_s: float = 0.0  # the last byte of the answer
    outcome: str = ""  # ok, http 503, a fault's name, disconnected (by the client)
    blocked: bool = False  # the client did not read fast enough: moments are of our side only


def read_truth(path: Path) -> list[Truth]:
    return [msgspec.json.decode(line, type=Truth) for line in path.read_bytes().splitlines()]


class KernelClock:
    """The kernel's stamps, which are of wall-clock time, on `perf_counter`'s scale."""

    def __init__(self) -> None:
        self._offset = 0.0
        self._measure(limit_s=1.0)

    def _measure(self, limit_s: float = 5e-6) -> None:
        """A pair of readings counts if nothing came between them."""
        before = now()
        wall = time.time()
        after = now()
        if after - before < limit_s:
            self._offset = wall - (before + after) / 2

    def moment(self, notes: list[tuple[int, int, bytes]]) -> float:
        self._measure()
        for level, kind, data in notes:
            if (level, kind) == (socket.SOL_SOCKET, SO_TIMESTAMPNS):
                seconds, nanoseconds = struct.unpack("qq", data[:16])
                return seconds - self._offset + nanoseconds * 1e-9
        return now()
