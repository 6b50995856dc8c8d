"""`History`: adds runs to the file and finds them again. What the file is like: `schema`.

Many processes may read and add at once. Whatever keeps a run from being added, the run itself is
not lost: it is written to a file of its own, and the error says where.
"""

from __future__ import annotations

import functools
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, TypeVar

import msgspec

from atom.bench.history import codec, documents, evaluations, schema
from atom.bench.history.errors import HistoryError
from atom.bench.history.evaluations import Evaluations
from atom.bench.history.faults import explain
from atom.bench.history.runs import commit_of, recipe_of, started_at
from atom.bench.history.search import condition
from atom.bench.types import RequestRecord, RunResult

VARIABLE = "ATOM_HISTORY"
AMBIGUOUS_SHOWN = 4
_SOURCE_COLUMN = 11  # of `_row_of`

_Result = TypeVar("_Result")


def default_path() -> Path:
    """$ATOM_HISTORY, else $XDG_DATA_HOME/atom/history.db, else ~/.local/share/atom/history.db."""
    given = os.environ.get(VARIABLE)
    if given:
        return Path(given).expanduser()
    root = Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser()
    return root / "atom" / "history.db"


class History:
    """The run history in one SQLite file; a context manager, usable from several threads.

    The file is opened when it is first needed, and made when something is first added: reading a
    history that does not exist finds nothing. Errors are `HistoryError`, in one line.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = Path(path) if path is not None else default_path()
        self._connection: sqlite3.Connection | None = None
        self._writable = False
        self._lock = threading.RLock()

    def __enter__(self) -> History:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = None
            self._writable = False

    def check_writable(self) -> None:
        """Raise `HistoryError` now rather than after an hour of measuring."""

        def touch(connection: sqlite3.Connection) -> None:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")

        self._run(touch, write=True)

    def stamp(self) -> str:
        """A text that changes when the history does; cheap enough to be asked every second."""
        parts = []
        for suffix in ("", "-wal"):
            try:
                found = os.stat(f"{self.path}{suffix}")
                parts.append(f"{found.st_mtime_ns}:{found.st_size}:{found.st_ino}")
            except OSError:
                parts.append("")
        return "/".join(parts)

    def add(
        self,
        run: RunResult,
        records: Sequence[Sequence[RequestRecord]] = (),
        evaluated: Evaluations | None = None,
    ) -> bool:
        """Store a run and its samples; False if it is there already.

        `records`: a sequence for each repeat of a benchmark; `evaluated`: the samples of each task
        of an evaluation. A run that is there keeps what it has, but takes samples that it lacks. If
        the history cannot take the run, it is written to a file of its own, whose path is
        `HistoryError.saved`.
        """
        told = evaluated or {}
        try:
            return self._run(lambda at: self._add(at, run, records, told), write=True)
        except HistoryError as error:
            saved = documents.rescue(run, records, self.path.parent, told)
            tail = (
                f"; the run is saved as {saved} (atom bench import takes it in)"
                if saved
                else "; the run could not be written to any other place either"
            )
            raise HistoryError(f"{error}{tail}", saved=saved) from error

    def attach(self, run_id: str, kind: str, path: Path | str) -> None:
        """Note a file that belongs to a run (kind: trace, records, log, ...), once."""
        artefact = {"kind": kind, "path": str(Path(path).absolute())}

        def change(connection: sqlite3.Connection) -> None:
            with _transaction(connection):
                row = self._row(connection, run_id)
                run = codec.decode_run(row["document"])
                if artefact not in run.artefacts:
                    run.artefacts.append(artefact)
                text, _ = codec.encode_run(run)
                connection.execute(
                    "UPDATE runs SET document = ? WHERE run_id = ?", (text, row["run_id"])
                )

        self._run(change, write=True)

    def get(self, run_id: str) -> RunResult:
        """The run of this id, or of the only id that begins so, whole."""

        def read(connection: sqlite3.Connection) -> RunResult:
            row = self._row(connection, run_id)
            return self._decode(row, row["lists"])

        return self._read(read, lambda: self._nothing(run_id))

    def find(
        self,
        *,
        kind: str | None = None,
        name: str | None = None,
        model: str | None = None,
        fingerprint: str | None = None,
        commit: str | None = None,
        recipe: str | None = None,
        sweep_id: str | None = None,
        since: datetime | str | None = None,
        limit: int | None = None,
    ) -> list[RunResult]:
        """Runs that meet all conditions, newest first.

        `model` is a whole name or its last part; `commit` a prefix; `recipe` a name, a path or the
        first digits of its hash; `since` a moment, ISO 8601, or how long ago (7d, 12h). The long
        lists of `legacy` (one value per request) are left out: `get` has them.
        """
        where, values = condition(
            kind=kind,
            name=name,
            model=model,
            fingerprint=fingerprint,
            commit=commit,
            recipe=recipe,
            sweep_id=sweep_id,
            since=since,
        )
        query = f"SELECT run_id, document FROM runs{where} ORDER BY started_at DESC, run_id DESC"  # noqa: S608
        if limit is not None:
            query += " LIMIT ?"
            values.append(limit)

        def read(connection: sqlite3.Connection) -> list[RunResult]:
            return [self._decode(row, None) for row in connection.execute(query, values)]

        return self._read(read, list)

    def count(self) -> int:
        """How many runs there are."""

        def read(connection: sqlite3.Connection) -> int:
            found: int = connection.execute("SELECT count(*) FROM runs").fetchone()[0]
            return found

        return self._read(read, lambda: 0)

    def repeats_with_records(self, run_id: str) -> list[int]:
        """The numbers of the repeats whose samples are stored, from 0."""

        def read(connection: sqlite3.Connection) -> list[int]:
            query = "SELECT DISTINCT repeat FROM samples WHERE run_id = ? ORDER BY repeat"
            found = connection.execute(query, (self._row(connection, run_id)["run_id"],))
            return [row["repeat"] for row in found]

        return self._read(read, lambda: self._nothing(run_id))

    def records(self, run_id: str, repeat: int) -> Iterator[RequestRecord]:
        """The samples of one repeat, in the order in which they were added; unpacked bit by bit."""
        query = "SELECT records FROM samples WHERE run_id = ? AND repeat = ? AND block = ?"
        yield from codec.decode_records(self._blocks(query, run_id, repeat))

    def _blocks(self, query: str, run_id: str, part: Any) -> Iterator[bytes]:
        """What `query` finds for block 0, 1, ... of a part of the run; each read when wanted."""

        def whole_id(connection: sqlite3.Connection) -> str:
            found: str = self._row(connection, run_id)["run_id"]
            return found

        key = self._read(whole_id, lambda: self._nothing(run_id))
        block = 0
        while True:
            data = self._run(functools.partial(_one, query, (key, part, block)), write=False)
            if data is None:
                return
            yield data
            block += 1

    def evaluated(self, run_id: str) -> dict[str, int]:
        """The tasks of which the run's samples are stored, with how many."""

        def read(connection: sqlite3.Connection) -> dict[str, int]:
            return evaluations.counts(connection, self._row(connection, run_id)["run_id"])

        return self._read(read, lambda: self._nothing(run_id))

    def evaluations(self, run_id: str, task: str) -> Iterator[dict[str, Any]]:
        """The samples of one task, in the order in which they were added; unpacked bit by bit."""
        query = "SELECT samples FROM evaluations WHERE run_id = ? AND task = ? AND block = ?"
        for data in self._blocks(query, run_id, task):
            yield from evaluations.decode(data)

    def resolve(self, text: str) -> list[RunResult]:
        """The runs that a text names: see `atom.bench.history.names`."""
        from atom.bench.history.names import resolve

        return resolve(self, text)

    def has(self, run: RunResult) -> bool:
        """Whether `add` would find this run here, under its id or as the same imported result."""

        def read(connection: sqlite3.Connection) -> bool:
            source = _row_of(run, "", None)[_SOURCE_COLUMN]
            query = "SELECT 1 FROM runs WHERE run_id = ? OR (source_sha256 = ? AND ? <> '')"
            return connection.execute(query, (run.run_id, source, source)).fetchone() is not None

        return self._read(read, lambda: False)

    def ids(self, prefix: str) -> list[str]:
        """The ids that begin so, oldest first."""
        query = "SELECT run_id FROM runs WHERE substr(run_id, 1, ?) = ? ORDER BY run_id"

        def read(connection: sqlite3.Connection) -> list[str]:
            found = connection.execute(query, (len(prefix), prefix))
            return [row["run_id"] for row in found]

        return self._read(read, list)

    def sweep_ids(self, prefix: str) -> list[str]:
        """The sweeps whose ids begin so, oldest first."""
        query = (
            "SELECT DISTINCT sweep_id FROM runs "
            "WHERE sweep_id <> '' AND substr(sweep_id, 1, ?) = ? ORDER BY sweep_id"
        )

        def read(connection: sqlite3.Connection) -> list[str]:
            found = connection.execute(query, (len(prefix), prefix))
            return [row["sweep_id"] for row in found]

        return self._read(read, list)

    def _add(
        self,
        connection: sqlite3.Connection,
        run: RunResult,
        records: Sequence[Sequence[RequestRecord]],
        evaluated: Evaluations,
    ) -> bool:
        text, lists = codec.encode_run(run)
        blocks = [
            (run.run_id, repeat, block, data)
            for repeat, samples in enumerate(records)
            for block, data in enumerate(codec.encode_records(samples))
        ]
        row = _row_of(run, text, lists)
        samples = evaluations.encode(evaluated)
        with _transaction(connection):
            marks = ", ".join("?" * len(row))
            done = connection.execute(
                f"INSERT INTO runs VALUES ({marks}) ON CONFLICT DO NOTHING",  # noqa: S608
                row,
            )
            there = "SELECT 1 FROM runs WHERE run_id = ?"  # else it is there under another id
            if connection.execute(there, (run.run_id,)).fetchone() is not None:
                connection.executemany(
                    "INSERT INTO samples VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING", blocks
                )
            if samples:
                evaluations.insert(connection, _id_of(connection, row), samples)
            return done.rowcount == 1

    def _row(self, connection: sqlite3.Connection, run_id: str) -> sqlite3.Row:
        """The row of an id or of a prefix of exactly one."""
        rows = connection.execute(
            "SELECT run_id, document, lists FROM runs WHERE run_id = ?", (run_id,)
        ).fetchall()
        if not rows and run_id:
            rows = connection.execute(
                "SELECT run_id, document, lists FROM runs WHERE substr(run_id, 1, ?) = ? "
                "ORDER BY run_id LIMIT ?",
                (len(run_id), run_id, AMBIGUOUS_SHOWN + 1),
            ).fetchall()
        if not rows:
            self._nothing(run_id)
        if len(rows) > 1:
            some = ", ".join(row["run_id"] for row in rows[:AMBIGUOUS_SHOWN])
            more = ", ..." if len(rows) > AMBIGUOUS_SHOWN else ""
            raise HistoryError(f"{run_id} begins several runs: {some}{more}; give more of the id")
        row: sqlite3.Row = rows[0]
        return row

    def _nothing(self, run_id: str) -> NoReturn:
        raise HistoryError(
            f"no run {run_id} in {self.path}; atom bench list shows the runs that there are"
        )

    def _decode(self, row: sqlite3.Row, lists: bytes | None) -> RunResult:
        try:
            return codec.decode_run(row["document"], lists)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise HistoryError(
                f"run {row['run_id']} of {self.path} cannot be read: {error}"
            ) from None

    def _read(
        self, work: Callable[[sqlite3.Connection], _Result], otherwise: Callable[[], _Result]
    ) -> _Result:
        """`work`, or `otherwise` where there is no history yet."""
        if self._connection is None and not self.path.exists():
            return otherwise()
        return self._run(work, write=False)

    def _run(self, work: Callable[[sqlite3.Connection], _Result], *, write: bool) -> _Result:
        with self._lock:
            try:
                return work(self._open(write))
            except (sqlite3.Error, OSError, schema.NotOurs, schema.TooNew) as error:
                raise HistoryError(explain(error, self.path, write)) from error

    def _open(self, write: bool) -> sqlite3.Connection:
        if self._connection is not None and (self._writable or not write):
            return self._connection
        self.close()
        self._connection = (
            schema.open_to_write(self.path) if write else schema.open_to_read(self.path)
        )
        self._writable = write
        return self._connection


def _row_of(run: RunResult, text: str, lists: bytes | None) -> tuple[Any, ...]:
    hashes = []
    for part in ("recipe", "source"):
        place = run.provenance.get(part)
        hashes.append(str(place.get("sha256", "")) if isinstance(place, dict) else "")
    columns = (
        run.run_id,
        started_at(run),
        run.kind,
        run.name,
        run.model,
        recipe_of(run),
        hashes[0],
        commit_of(run),
        run.fingerprint,
        run.sweep_id,
        run.status,
        hashes[1],
    )
    return (*codec.finite(columns), text, lists)


def _id_of(connection: sqlite3.Connection, row: Sequence[Any]) -> str:
    """The id under which a run or the same imported result is stored."""
    query = "SELECT run_id FROM runs WHERE run_id = ? OR (source_sha256 = ? AND ? <> '')"
    source = row[_SOURCE_COLUMN]
    found: str = connection.execute(query, (row[0], source, source)).fetchone()[0]
    return found


def _one(query: str, values: Sequence[Any], connection: sqlite3.Connection) -> bytes | None:
    """The first column of the first row."""
    row = connection.execute(query, values).fetchone()
    return None if row is None else row[0]


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
