"""Workloads whose prompts are read: reading, order, repetition and provenance of a file's rows."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from atom.bench.errors import BenchError
from atom.bench.types import Endpoint, Job, Turn
from atom.bench.workloads import draw
from atom.bench.workloads.spec import WorkloadSpec

_GOLDEN = 0x9E3779B97F4A7C15  # 2**64 times the golden ratio's fraction

# The share of the rows by which the golden ratio keeps five consecutive seeds apart, or more.
_DISJOINT = 7


class Row(NamedTuple):
    """What one job of a file sends."""

    turns: list[Turn]
    label: str = ""


class Source(NamedTuple):
    """A file's bytes and what identifies them wherever it lies."""

    name: str  # for messages: the path as given
    data: bytes
    digest: str  # sha256, 16 hex digits

    def lines(self) -> Iterator[tuple[int, str]]:
        """Lines that are not blank, with their numbers from 1. Raises `BenchError` if not UTF-8."""
        for number, raw in enumerate(self.data.split(b"\n"), 1):
            try:
                line = raw.decode().strip().removeprefix("\ufeff")
            except UnicodeDecodeError as error:
                raise BenchError(f"{self.name}, line {number}: not UTF-8: {error}") from error
            if line:
                yield number, line


def read_source(path: str | Path) -> Source:
    """Raises `BenchError` where the file cannot be read or is empty."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise BenchError(f"{path}: {error.strerror or error}") from error
    if not data.strip():
        raise BenchError(f"{path} is empty")
    return Source(str(path), data, hashlib.sha256(data).hexdigest()[:16])


def row_order(spec: WorkloadSpec, count: int, seed: int, default: bool) -> Sequence[int]:
    """The order in which a file's rows are taken: as they stand, or shuffled.

    There is one shuffled order, in which each seed begins elsewhere: seeds that follow each other,
    as those of repeats do, far apart (multiples of the golden ratio). Five repeats that each take
    up to a seventh of the rows have none in common then, unlike with orders of their own.
    """
    if not (spec.shuffle if spec.shuffle is not None else default):
        return range(count)
    order: list[int] = draw.permutation(count, "rows").tolist()
    begin = (seed * _GOLDEN % 2**64) * count >> 64
    return order[begin:] + order[:begin]


class RowWorkload:
    """Rows one after another, again from the first when they are used up."""

    length: int | None = None  # it never ends

    def __init__(self, spec: WorkloadSpec, rows: Sequence[Row], file: dict[str, Any]) -> None:
        """`rows` in the order in which they are sent; `file`: provenance."""
        assert rows
        self.name: str = spec.dataset
        self.endpoint: Endpoint = spec.endpoint
        self.spec, self._rows, self._file = spec, rows, file
        self.notes: list[str] = repetition_note(spec, len(rows), file["shuffle"])

    def jobs(self, start: int = 0) -> Iterator[Job]:
        """Jobs from number `start` on, without end."""
        return map(self.job, itertools.count(start))

    def job(self, index: int) -> Job:
        row = self._rows[index % len(self._rows)]
        return Job(index=index, turns=row.turns, label=row.label)

    def describe(self) -> dict[str, Any]:
        """The file, and every parameter that chose from it."""
        return {
            "dataset": self.spec.dataset,
            "endpoint": self.spec.endpoint,
            "output_len": self.spec.output_len,
            **self._file,
        }


def repetition_note(spec: WorkloadSpec, rows: int, shuffled: bool) -> list[str]:
    """Whether prompts will be sent more than once, as far as the number of jobs is known."""
    taken = spec.limit
    if taken is None:
        return []
    if taken > rows:
        what = f"{taken} requests from {rows} rows: prompts repeat"
    elif not shuffled:
        what = f"every repeat sends the same {taken} rows (with --shuffle each begins elsewhere)"
    elif taken * _DISJOINT > rows:
        what = f"{taken} requests from {rows} rows: repeats may have prompts in common"
    else:
        return []
    return [f"{what}, and a prefix cache will know them"]


def user_turn(
    endpoint: Endpoint, text: str, max_tokens: int, *, later: bool = False, delay_s: float = 0.0
) -> Turn:
    """What a person says, for either endpoint."""
    if endpoint == "chat":
        messages = [{"role": "user", "content": text}]
        return Turn(messages=messages, max_tokens=max_tokens, delay_s=delay_s)
    # Behind an answer a new paragraph begins.
    prompt = f"\n\n{text}" if later else text
    return Turn(prompt=prompt, max_tokens=max_tokens, delay_s=delay_s)
