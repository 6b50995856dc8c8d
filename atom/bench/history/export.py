"""Runs out of the history: JSON, JSON lines, CSV; XLSX is `workbook`'s.

JSON and JSON lines lose nothing and are imported again. CSV has one row for each run, every metric
with the ends of its interval.
"""

from __future__ import annotations

import csv
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from atom.bench.errors import BenchError
from atom.bench.history.documents import Loaded, to_document
from atom.bench.history.flat import identity, metric_names
from atom.bench.history.store import History
from atom.bench.types import RunResult

FORMATS = ("json", "jsonl", "csv", "xlsx")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def load(history: History, runs: Iterable[RunResult], *, records: bool) -> Iterator[Loaded]:
    """Runs as `find` gives them, made whole one at a time, with their samples if asked."""
    for run in runs:
        samples: list[list[Any]] = []
        evaluated: dict[str, list[Any]] = {}
        if records:
            stored = history.repeats_with_records(run.run_id)
            count = max(stored, default=-1) + 1
            samples = [list(history.records(run.run_id, repeat)) for repeat in range(count)]
            tasks = history.evaluated(run.run_id)
            evaluated = {task: list(history.evaluations(run.run_id, task)) for task in tasks}
        yield Loaded(history.get(run.run_id), samples, evaluated)


def write_json(loaded: Iterable[Loaded], out: IO[str]) -> int:
    """A JSON list of documents, written one by one; returns how many."""
    count = 0
    out.write("[")
    for each in loaded:
        out.write(",\n" if count else "\n")
        out.write(json.dumps(to_document(*each), ensure_ascii=False, indent=1))
        count += 1
    out.write("\n]\n")
    return count


def write_jsonl(loaded: Iterable[Loaded], out: IO[str]) -> int:
    """A document a line."""
    count = 0
    for each in loaded:
        out.write(json.dumps(to_document(*each), ensure_ascii=False) + "\n")
        count += 1
    return count


def write_csv(runs: Sequence[RunResult], out: IO[str]) -> int:
    """A row for each run: who and where it is, then `metric`, `metric_low`, `metric_high`.

    Text that a spreadsheet would take for a formula begins with an apostrophe.
    """
    metrics = metric_names(runs)
    columns = [f"{name}{end}" for name in metrics for end in ("", "_low", "_high")]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*identity(runs[0]), *columns] if runs else [])
    for run in runs:
        values: list[Any] = []
        for name in metrics:
            found = run.metrics.get(name)
            values += [None] * 3 if found is None else [found.value, found.low, found.high]
        writer.writerow([*map(_harmless, identity(run).values()), *values])
    return len(runs)


def _harmless(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    value = value.replace("\0", "\ufffd")  # which no reader of CSV takes
    return f"'{value}" if value.startswith(_FORMULA) else value


def format_of(path: Path | None, given: str | None) -> str:
    """The format asked for, else the one that the file's ending names, else JSON."""
    if given is not None:
        if given not in FORMATS:
            raise BenchError(f"--format {given}: choose one of {', '.join(FORMATS)}")
        return given
    if path is None:
        return "json"
    ending = path.suffix.lstrip(".").lower()
    if ending not in FORMATS:
        raise BenchError(
            f"{path}: the ending names no format; end it in .{', .'.join(FORMATS)} or give --format"
        )
    return ending


def export(
    history: History, runs: Sequence[RunResult], path: Path, kind: str, *, records: bool = False
) -> int:
    """Write runs to a file, which is replaced only when the new one is whole; returns how many."""
    if path.exists() and history.path.exists() and path.samefile(history.path):
        raise BenchError(f"{path} is the history itself; give another file")
    if kind == "xlsx":
        from atom.bench.history.workbook import write_workbook

        with _replaced(path, "wb") as out:
            return write_workbook(runs, out)
    with _replaced(path, "w") as out:
        return write_text(history, runs, out, kind, records=records)


def write_text(
    history: History, runs: Sequence[RunResult], out: IO[str], kind: str, *, records: bool = False
) -> int:
    """Write one of the text formats to an open file."""
    if kind == "csv":
        return write_csv(runs, out)
    write: Callable[[Iterable[Loaded], IO[str]], int] = (
        write_json if kind == "json" else write_jsonl
    )
    return write(load(history, runs, records=records), out)


@contextmanager
def _replaced(path: Path, mode: str) -> Iterator[IO[Any]]:
    """A file beside `path` that takes its place at the end, and goes if anything fails."""
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise BenchError(f"cannot write {path}: {error.strerror or error}") from None
    try:
        with os.fdopen(handle, mode, **text) as out:  # type: ignore[call-overload]
            yield out
        umask = os.umask(0)
        os.umask(umask)
        Path(name).chmod(0o666 & ~umask)
        Path(name).replace(path)
    except OSError as error:
        raise BenchError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        Path(name).unlink(missing_ok=True)
