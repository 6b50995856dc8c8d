"""A `RankTrace` between processes: a msgpack header with its length before it, then the columns."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np

from atom.trace.types import (
    CpuEvents,
    GpuAnnotations,
    GpuEvents,
    RankTrace,
    RuntimeEvents,
    Track,
)

_TABLES: dict[str, type[Any]] = {
    "cpu": CpuEvents,
    "runtime": RuntimeEvents,
    "gpu": GpuEvents,
    "gpu_annotations": GpuAnnotations,
}
_LENGTH_BYTES = 8


class Header(msgspec.Struct):
    """Everything but the columns; or why there is no trace."""

    error: str = ""
    rank: int = 0
    origin_us: float = 0.0
    strings: list[str] = []
    tracks: list[tuple[str, str, str]] = []
    other: bytes = b"{}"  # JSON
    counts: dict[str, int] = {}
    num_bytes: int = 0
    warnings: list[str] = []
    columns: list[tuple[str, str, str, int]] = []  # table, name, dtype, length


def send(file: IO[bytes], trace: RankTrace) -> None:
    """Write it all."""
    header = Header(
        rank=trace.rank,
        origin_us=trace.origin_us,
        strings=trace.strings,
        tracks=[(track.pid, track.tid, track.name) for track in trace.tracks],
        other=msgspec.json.encode(trace.other),
        counts=dict(trace.counts),
        num_bytes=trace.num_bytes,
        warnings=list(trace.warnings),
    )
    columns = [
        (table, field.name, getattr(getattr(trace, table), field.name))
        for table, kind in _TABLES.items()
        for field in fields(kind)
    ]
    header.columns = [(table, name, col.dtype.str, len(col)) for table, name, col in columns]
    send_header(file, header)
    for _, _, column in columns:
        file.write(np.ascontiguousarray(column).data)
    file.flush()


def send_header(file: IO[bytes], header: Header) -> None:
    """All there is of an error."""
    data = msgspec.msgpack.encode(header)
    file.write(len(data).to_bytes(_LENGTH_BYTES, "little") + data)
    file.flush()


def receive(file: IO[bytes], path: Path) -> RankTrace | str:
    """The trace, or the error that came instead. Raises EOFError if it ends early."""
    length = int.from_bytes(_exactly(file, bytearray(_LENGTH_BYTES)), "little")
    header = msgspec.msgpack.decode(_exactly(file, bytearray(length)), type=Header)
    if header.error:
        return header.error
    tables: dict[str, dict[str, Any]] = {table: {} for table in _TABLES}
    for table, name, dtype, length in header.columns:
        column = np.empty(length, dtype=np.dtype(dtype))
        if length:
            _exactly(file, column.data.cast("B"))
        tables[table][name] = column
    return RankTrace(
        path=path,
        rank=header.rank,
        origin_us=header.origin_us,
        strings=header.strings,
        tracks=[Track(*track) for track in header.tracks],
        other=msgspec.json.decode(header.other),
        counts=header.counts,
        num_bytes=header.num_bytes,
        warnings=tuple(header.warnings),
        **{table: _TABLES[table](**columns) for table, columns in tables.items()},
    )


def _exactly(file: IO[bytes], into: Any) -> Any:
    view, filled = memoryview(into), 0
    while filled < len(view):
        count = file.readinto(view[filled:])  # type: ignore[attr-defined]
        if not count:
            raise EOFError
        filled += count
    return into
