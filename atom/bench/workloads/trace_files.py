"""Reading recorded traces: when requests came, and how long they were. No prompts are in them."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import NamedTuple

import msgspec

from atom.bench.errors import BenchError
from atom.bench.workloads.rows import Source


class Recorded(NamedTuple):
    """One request of a trace."""

    line: int  # in the file, from 1
    time_s: float  # on the trace's own clock
    input_len: int
    output_len: int
    hash_ids: tuple[int, ...] | None = None  # Mooncake: the prompt's blocks


class _Mooncake(msgspec.Struct):
    timestamp: float  # milliseconds
    input_length: int
    output_length: int
    hash_ids: list[int] | None = None


class _Columns(NamedTuple):
    """Where a csv keeps its numbers, by the names in its first line."""

    trace: str
    time: str
    input: str
    output: str
    clock: Callable[[str], float]


def _stamp(text: str) -> float:
    """`2023-11-16 18:15:46.6805900`, with or without a fraction and a zone, to seconds."""
    match = re.fullmatch(
        r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(\.\d+)?(?:Z|([+-])(\d\d):?(\d\d))?", text
    )
    if match is None:
        raise ValueError(f"{text!r} is no time like 2023-11-16 18:15:46.68")
    # datetime keeps six digits of a fraction, these files have seven.
    moment = datetime.fromisoformat(f"{match[1]}T{match[2]}").replace(tzinfo=timezone.utc)
    if match[4]:
        shift = timedelta(hours=int(match[5]), minutes=int(match[6]))
        moment = moment - shift if match[4] == "+" else moment + shift
    return moment.timestamp() + float(match[3] or 0)


_CSV = (
    _Columns("Azure", "TIMESTAMP", "ContextTokens", "GeneratedTokens", _stamp),
    _Columns("BurstGPT", "Timestamp", "Request tokens", "Response tokens", float),
)


def read_trace(source: Source, block_size: int) -> tuple[str, list[Recorded]]:
    """The trace's kind and its requests in order of time. Raises `BenchError` naming the line."""
    if source.data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        kind, rows = "Mooncake", list(_mooncake(source, block_size))
    else:
        kind, rows = _csv_rows(source)
    if not rows:
        raise BenchError(f"{source.name} has no requests")
    return kind, sorted(rows, key=lambda row: row.time_s)


def _mooncake(source: Source, block_size: int) -> Iterator[Recorded]:
    decoder = msgspec.json.Decoder(_Mooncake)
    for number, line in source.lines():
        try:
            row = decoder.decode(line)
            ids = None if row.hash_ids is None else tuple(row.hash_ids)
            _check(row.input_length, row.output_length)
            if ids is not None and row.input_length > len(ids) * block_size:
                raise ValueError(
                    f"input_length {row.input_length} is more than {len(ids)} hash_ids of "
                    f"{block_size} tokens; is the block size another one?"
                )
        except (msgspec.DecodeError, ValueError) as error:
            raise BenchError(f"{source.name}, line {number}: {error}") from error
        time_s = row.timestamp / 1000
        yield Recorded(number, time_s, row.input_length, row.output_length, ids)


def _csv_rows(source: Source) -> tuple[str, list[Recorded]]:
    lines = source.lines()
    header = next(csv.reader([next(lines)[1]]))
    columns = next((c for c in _CSV if {c.time, c.input, c.output} <= set(header)), None)
    if columns is None:
        known = "; ".join(f"{c.trace}: {c.time}, {c.input}, {c.output}" for c in _CSV)
        raise BenchError(
            f"{source.name} is no trace that is known: its first line has none of these columns "
            f"({known}), and it is not Mooncake's JSON"
        )
    places = [header.index(name) for name in (columns.time, columns.input, columns.output)]
    rows = []
    for number, line in lines:
        fields = next(csv.reader([line]))
        try:
            if len(fields) != len(header):
                raise ValueError(f"{len(fields)} fields where the first line has {len(header)}")
            time, asked, answered = (fields[place] for place in places)
            row = Recorded(number, columns.clock(time), int(asked), int(answered))
            _check(row.input_len, row.output_len)
        except ValueError as error:
            raise BenchError(f"{source.name}, line {number}: {error}") from error
        rows.append(row)
    return columns.trace, rows


def _check(asked: int, answered: int) -> None:
    if asked < 0 or answered < 0:
        raise ValueError(f"{asked} and {answered} tokens; they must be at least 0")
