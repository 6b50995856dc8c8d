"""Answers on disk as they come in, so that an evaluation can go on after a crash.

One file per run: a line that says what is evaluated, then one line per answer. Lines are only ever
appended; a line that was cut short counts as not written. An answer is found by a key made of what
was asked, so that order and batches may change between the run and its resumption.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import msgspec

from atom.bench.history.store import default_path
from atom.eval.errors import EvalError
from atom.eval.types import Generated, Scored

FORMAT = 1
SUFFIX = ".journal"
_ATTEMPTS, _PAUSE_S = 3, 0.02
Answer = Scored | Generated


class Header(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a journal belongs to. Times are ISO 8601 in UTC."""

    run_id: str
    tasks: list[str]
    server: str  # its URL, or the recipe that it was started from
    model: str
    settings: dict[str, Any] = {}  # all that changes a score
    created: str = ""
    format: int = FORMAT

    @property
    def digest(self) -> str:
        """Equal for runs that may share answers: the same tasks, model and settings."""
        return _digest([self.tasks, self.model, self.settings])

    def differences(self, other: Header) -> list[str]:
        """What `other` asks for otherwise, for people: "limit 10 -> 20"; server and time aside."""
        mine, theirs = _flat(self), _flat(other)
        return [
            f"{name} {_shown(mine.get(name))} -> {_shown(theirs.get(name))}"
            for name in sorted(mine.keys() | theirs.keys())
            if mine.get(name) != theirs.get(name)
        ]


class Unfinished(msgspec.Struct, frozen=True):
    """A journal that is there, as the list of them shows it."""

    path: Path
    header: Header
    answers: int
    busy: bool  # another process writes to it


class _Line(msgspec.Struct, array_like=True, omit_defaults=True):
    """[key, scored or null, generated or null]"""

    key: str
    scored: Scored | None = None
    generated: Generated | None = None


_header = msgspec.json.Decoder(Header)
_line = msgspec.json.Decoder(_Line)


def journal_folder(history: Path | None = None) -> Path:
    """Where journals of runs lie that will be stored in `history` (None: the default one)."""
    return (history or default_path()).parent / "eval"


def item_key(kind: str, model: str, item: Any, number: int = 0) -> str:
    """The key of an item. `number` tells apart items that are asked for several times on purpose,
    such as repeated samples of one prompt."""
    return _digest([kind, model, item, number])


class Journal:
    """A journal that is open to be written, by this process only. A context manager.

    Raises `EvalError`: it cannot be written, it is no journal, another process has it.
    """

    def __init__(self, path: Path, handle: int, header: Header, answers: dict[str, Answer]) -> None:
        self.path = path
        self.header = header
        self._handle = handle
        self._answers = answers

    @classmethod
    def create(cls, folder: Path, header: Header) -> Journal:
        """A new one, `folder/<run_id>.journal`; the folder is made."""
        path = folder / f"{header.run_id}{SUFFIX}"
        if not header.created:
            now = datetime.now(timezone.utc).isoformat(timespec="seconds")
            header = msgspec.structs.replace(header, created=now)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EvalError(f"cannot make the folder {folder}: {error.strerror}") from None
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
            handle = os.open(path, flags, 0o600)
        except FileExistsError:
            raise EvalError(f"{path} exists: go on with that run (--resume) or remove it") from None
        except OSError as error:
            raise EvalError(f"cannot write {path}: {error.strerror}") from None
        journal = cls(path, handle, header, {})
        try:
            _lock(handle, path)
            journal._write(msgspec.json.encode(header) + b"\n")
        except BaseException:
            os.close(handle)
            raise
        return journal

    @classmethod
    def open(cls, path: Path) -> Journal:
        """Go on with one. What was cut short at its end is cut off."""
        try:
            handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        except FileNotFoundError:
            raise EvalError(f"there is no journal {path}: nothing to resume") from None
        except OSError as error:
            raise EvalError(f"cannot open {path}: {error.strerror}") from None
        try:
            _lock(handle, path)
            data = path.read_bytes()
            header, answers = _read(data, path)
            whole = data.rfind(b"\n") + 1
            if whole < len(data):
                os.ftruncate(handle, whole)
        except BaseException:
            os.close(handle)
            raise
        return cls(path, handle, header, answers)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._answers)

    def scored(self, key: str) -> Scored | None:
        found = self._answers.get(key)
        return found if isinstance(found, Scored) else None

    def generated(self, key: str) -> Generated | None:
        found = self._answers.get(key)
        return found if isinstance(found, Generated) else None

    def add(self, answers: Mapping[str, Answer]) -> None:
        """Kept once this returns, even if the process is killed then."""
        lines = [
            _Line(key, scored=answer) if isinstance(answer, Scored) else _Line(key, None, answer)
            for key, answer in answers.items()
        ]
        self._write(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
        self._answers.update(answers)

    def close(self) -> None:
        """Keep it, and let others open it."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def remove(self) -> None:
        """The run is finished and stored: the journal is no longer needed."""
        self.path.unlink(missing_ok=True)
        self.close()

    def _write(self, data: bytes) -> None:
        assert self._handle >= 0, "the journal is closed"
        try:
            while data:
                data = data[os.write(self._handle, data) :]
        except OSError as error:
            raise EvalError(
                f"cannot write {self.path}: {error.strerror}; what was written is kept (--resume)"
            ) from None


def find_unfinished(folder: Path) -> list[Unfinished]:
    """All journals in `folder`, the newest first; files that are no journals are passed over."""
    found = []
    for path in folder.glob(f"*{SUFFIX}"):
        try:
            header, answers = _read(path.read_bytes(), path)
        except (EvalError, OSError):
            continue
        found.append(Unfinished(path, header, len(answers), _busy(path)))
    return sorted(found, key=lambda one: (one.header.created, one.header.run_id), reverse=True)


def _read(data: bytes, path: Path) -> tuple[Header, dict[str, Answer]]:
    """Lines that cannot be read (a disk that was full, a machine that went down) hold no answer."""
    first, _, rest = data.partition(b"\n")
    try:
        header = _header.decode(first)
    except msgspec.DecodeError:
        raise EvalError(f"{path} is no journal of an evaluation: remove it") from None
    if header.format != FORMAT:
        raise EvalError(f"{path} was written by another version of atom: remove it and start anew")
    answers: dict[str, Answer] = {}
    for text in rest[: rest.rfind(b"\n") + 1].splitlines():
        try:
            line = _line.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
        answer = line.scored or line.generated
        if answer is not None:
            answers[line.key] = answer
    return header, answers


def _lock(handle: int, path: Path) -> None:
    """Ends with the process, so that a crash leaves no lock behind."""
    for attempt in range(_ATTEMPTS):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            # Whoever lists journals holds each for a moment.
            if attempt < _ATTEMPTS - 1:
                time.sleep(_PAUSE_S)
    raise EvalError(f"another atom eval is writing {path}: wait for it or end it")


def _busy(path: Path) -> bool:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        # Shared: two lists at once are not in each other's way.
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def _digest(value: Any) -> str:
    return hashlib.sha256(msgspec.json.encode(value, order="sorted")).hexdigest()[:32]


def _flat(header: Header) -> dict[str, Any]:
    return {"tasks": ", ".join(header.tasks), "model": header.model, **header.settings}


def _shown(value: Any) -> str:
    return "nothing" if value is None else value if isinstance(value, str) else str(value)
