"""What compiling left on disk, shared by all processes of the machine.

Under atom's cache: `plans/<key>.json`, one forward each, and `pieces/<key>/`, one piece each: its
code and what Inductor and Triton built for it. A key is a digest of all that decides the content,
so nothing is ever out of date; whatever is not exactly as it was written is made anew.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from atom.engine.compiler.plan import Plan
from atom.utils.cache import cache_dir, locked

log = logging.getLogger("atom.compiler")
CODE, MANIFEST, BUILT = "code.py", "manifest.json", "built"
Manifest = dict[str, str]  # path within the piece's folder -> digest


class Store:
    """`cache_dir("compiled")` by default."""

    def __init__(self, root: Path | None = None) -> None:
        self._root = cache_dir("compiled") if root is None else root
        for kind in ("plans", "pieces"):
            (self._root / kind).mkdir(parents=True, exist_ok=True)

    def read_plan(self, key: str) -> Plan | None:
        path = self._root / "plans" / f"{key}.json"
        try:
            digest, _, body = path.read_bytes().partition(b"\n")
        except FileNotFoundError:
            return None
        if digest.decode("ascii", "replace") == _digest(body):
            try:
                return msgspec.json.decode(body, type=Plan)
            except msgspec.MsgspecError:
                pass
        log.warning("compile cache: %s is damaged; tracing the model again", path)
        return None

    def write_plan(self, key: str, plan: Plan) -> None:
        body = msgspec.json.encode(plan)
        _write(self._root / "plans" / f"{key}.json", f"{_digest(body)}\n".encode() + body)

    @contextmanager
    def piece(self, key: str) -> Iterator[PieceFolder]:
        """The piece's folder, which no other process reads or writes meanwhile."""
        path = self._root / "pieces" / key
        with locked(path.with_suffix(".lock"), lambda: _say_waiting(key)):
            yield PieceFolder(path)


class PieceFolder:
    """Held locked by whoever has it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.built = path / BUILT  # Inductor's and Triton's files

    def read(self) -> str | None:
        """The code, if this and all files beside it are as they were committed."""
        if not self.path.exists():
            return None
        try:
            manifest = msgspec.json.decode((self.path / MANIFEST).read_bytes(), type=Manifest)
            if CODE not in manifest:
                raise ValueError(f"{MANIFEST} lists no {CODE}")
            for name, digest in manifest.items():
                if _digest((self.path / name).read_bytes()) != digest:
                    raise ValueError(f"{name} has changed")
            return (self.path / CODE).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:  # msgspec's errors are ValueErrors
            self.discard(str(error))
            return None

    def discard(self, reason: str) -> None:
        log.warning("compile cache: %s is damaged (%s); compiling again", self.path, reason)
        shutil.rmtree(self.path, ignore_errors=True)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Within, the folder is there to be filled; nothing is left of it if that fails."""
        self.built.mkdir(parents=True)
        try:
            yield
        except BaseException:
            shutil.rmtree(self.path, ignore_errors=True)
            raise

    def commit(self, code: str) -> None:
        """The code and everything built for it are complete."""
        _write(self.path / CODE, code.encode())
        files = sorted(path for path in self.path.rglob("*") if path.is_file())
        manifest = {
            str(path.relative_to(self.path)): _digest(path.read_bytes())
            for path in files
            if path.suffix not in (".lock", ".best_config")
        }
        _write(self.path / MANIFEST, msgspec.json.encode(manifest))


def _say_waiting(key: str) -> None:
    log.info("compile cache: waiting for another process that compiles piece %s", key[:8])


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _write(path: Path, data: bytes) -> None:
    """All or nothing, also for those who read meanwhile."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".writing")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
