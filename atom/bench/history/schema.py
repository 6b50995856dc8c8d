"""The history file's tables, their versions, and how a file is opened.

`PRAGMA user_version` is how many of `MIGRATIONS` a file has had. Each runs in one transaction, so a
file is never between two versions. A file of a newer atom is refused, not guessed at.
"""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from urllib.parse import quote

APPLICATION_ID = 0x41744D68  # "AtMh": tells our files from any other SQLite file
BUSY_SECONDS = 30.0

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        # `document` is the RunResult as JSON; the columns repeat what runs are searched by.
        """CREATE TABLE runs (
            run_id TEXT PRIMARY KEY,
            started_at TEXT NOT NULL,
            kind TEXT NOT NULL,
            name TEXT NOT NULL,
            model TEXT NOT NULL,
            recipe TEXT NOT NULL,
            recipe_sha256 TEXT NOT NULL,
            "commit" TEXT NOT NULL,
            fingerprint TEXT NOT NULL,
            sweep_id TEXT NOT NULL,
            status TEXT NOT NULL,
            source_sha256 TEXT NOT NULL,
            document TEXT NOT NULL,
            lists BLOB
        )""",
        "CREATE INDEX runs_by_time ON runs (started_at, run_id)",
        "CREATE INDEX runs_by_fingerprint ON runs (fingerprint, started_at)",
        "CREATE INDEX runs_by_sweep ON runs (sweep_id)",
        # An imported result is one run, whatever moment is taken for its own.
        "CREATE UNIQUE INDEX runs_by_source ON runs (source_sha256) WHERE source_sha256 <> ''",
        """CREATE TABLE samples (
            run_id TEXT NOT NULL REFERENCES runs (run_id) ON DELETE CASCADE,
            repeat INTEGER NOT NULL,
            block INTEGER NOT NULL,
            records BLOB NOT NULL,
            PRIMARY KEY (run_id, repeat, block)
        ) WITHOUT ROWID""",
        # For people with the sqlite3 command.
        """CREATE VIEW metrics AS
            SELECT run_id, runs.started_at, runs.name, runs.fingerprint, entry.key AS metric,
                   json_extract(entry.value, '$.value') AS value,
                   json_extract(entry.value, '$.low') AS low,
                   json_extract(entry.value, '$.high') AS high
            FROM runs, json_each(runs.document, '$.metrics') AS entry""",
    ),
    (
        # What an evaluation asked and got, document by document; `samples` is packed JSON.
        """CREATE TABLE evaluations (
            run_id TEXT NOT NULL REFERENCES runs (run_id) ON DELETE CASCADE,
            task TEXT NOT NULL,
            block INTEGER NOT NULL,
            count INTEGER NOT NULL,
            samples BLOB NOT NULL,
            PRIMARY KEY (run_id, task, block)
        ) WITHOUT ROWID""",
    ),
)


class NotOurs(Exception):
    """An SQLite file that another program made."""


class TooNew(Exception):
    """A file of a newer atom; the argument is its version."""


def open_to_write(path: Path) -> sqlite3.Connection:
    """The file, made and migrated if needed. Raises `sqlite3.Error`, `OSError` or the two above."""
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = _connect(str(path))
    try:
        if _version(connection) < len(MIGRATIONS):
            _use_wal(connection)
            _migrate(connection)
        connection.execute("PRAGMA foreign_keys = ON")
    except BaseException:
        connection.close()
        raise
    return connection


def open_to_read(path: Path) -> sqlite3.Connection:
    """An existing file, without changing it, even in a folder that cannot be written.

    A file of an older version is migrated, for which it must be writable.
    """
    address = f"file:{quote(str(path))}"
    connection = _connect(f"{address}?mode=ro", uri=True)
    try:
        try:
            version = _version(connection)
        except sqlite3.OperationalError:
            # WAL needs a file beside; where none can be made, and nobody writes, the file is all.
            if path.with_name(path.name + "-wal").exists():
                raise
            connection.close()
            connection = _connect(f"{address}?mode=ro&immutable=1", uri=True)
            version = _version(connection)
    except BaseException:
        connection.close()
        raise
    if version < len(MIGRATIONS):
        connection.close()
        return open_to_write(path)
    return connection


def _connect(name: str, *, uri: bool = False) -> sqlite3.Connection:
    connection = sqlite3.connect(
        name, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, uri=uri
    )
    connection.row_factory = sqlite3.Row
    return connection


def _version(connection: sqlite3.Connection) -> int:
    """The file's version, 0 for an empty one; raises `NotOurs` or `TooNew`."""
    alone = not connection.in_transaction
    if alone:  # all from one moment: another process may just be making the file
        connection.execute("BEGIN")
    try:
        version: int = connection.execute("PRAGMA user_version").fetchone()[0]
        mark = connection.execute("PRAGMA application_id").fetchone()[0]
        tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    finally:
        if alone:
            connection.execute("ROLLBACK")
    if mark != APPLICATION_ID and (tables or version or mark):
        raise NotOurs
    if version > len(MIGRATIONS):
        raise TooNew(version)
    return version


def _use_wal(connection: sqlite3.Connection) -> None:
    """Readers beside a writer. SQLite does not wait by itself here when two processes begin."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _migrate(connection: sqlite3.Connection) -> None:
    while True:
        connection.execute("BEGIN IMMEDIATE")
        try:
            version = _version(connection)  # another process may have been faster
            if version == len(MIGRATIONS):
                connection.execute("COMMIT")
                return
            for statement in MIGRATIONS[version]:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {version + 1}")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
