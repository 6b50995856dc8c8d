"""The samples of an evaluation in the history file: per run and task, packed in blocks.

A sample is here any JSON object; what is in one is `atom.eval.types.Sample`, whose room lies above.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import msgspec

from atom.bench.history import codec

SAMPLES_PER_BLOCK = 64  # unpacked at once when samples are read

Evaluations = Mapping[str, Sequence[Any]]  # task -> its samples: structs or JSON objects

Row = tuple[str, int, int, bytes]  # task, block, count, samples


def encode(evaluations: Evaluations) -> list[Row]:
    """Rows of the table, without the run's id. It takes a while: not within a transaction."""
    return [
        (task, block, len(part), codec.pack(msgspec.json.encode(codec.plain(part))))
        for task, samples in evaluations.items()
        for block, part in enumerate(_parts(samples))
    ]


def _parts(samples: Iterable[Any]) -> Iterator[list[Any]]:
    rest = iter(samples)
    while part := list(islice(rest, SAMPLES_PER_BLOCK)):
        yield part


def insert(connection: sqlite3.Connection, run_id: str, rows: Sequence[Row]) -> None:
    """Add the samples of the tasks of which the run has none; in the caller's transaction."""
    there = counts(connection, run_id)
    connection.executemany(
        "INSERT INTO evaluations VALUES (?, ?, ?, ?, ?)",
        [(run_id, *row) for row in rows if row[0] not in there],
    )


def counts(connection: sqlite3.Connection, run_id: str) -> dict[str, int]:
    """How many samples the run has of each task."""
    query = (
        "SELECT task, sum(count) AS total FROM evaluations WHERE run_id = ? "
        "GROUP BY task ORDER BY task"
    )
    return {row["task"]: row["total"] for row in connection.execute(query, (run_id,))}


def decode(data: bytes) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = msgspec.json.decode(codec.unpack(data))
    return found
