"""Traces that a server wrote: which are on this machine, whether they are whole; copies of them."""

from __future__ import annotations

import gzip
import re
import shutil
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

from atom.profile.errors import ProfileError
from atom.trace.captures import captures_for

CLOCK_S = 2.0  # how far a file system's clock may be behind ours
WAIT_S = 300.0  # for a server that still writes when it has answered
POLL_S = 0.5
_ENDINGS = (".json", ".json.gz", ".json.zst")
_RANK = re.compile(r"(?:^|[^a-z])(?:rank|tp)[-_]?(\d+)", re.IGNORECASE)


def here(paths: Sequence[str], since: float) -> tuple[list[Path], list[str]]:
    """(those that are files of this machine, the others). A file of that name from before `since`
    (seconds since the epoch) is another one: the server's machine is not this."""
    found: list[Path] = []
    others: list[str] = []
    for text in paths:
        path = Path(text)
        if path.is_file() and path.stat().st_mtime >= since - CLOCK_S:
            found.append(path)
        else:
            others.append(text)
    return found, others


def written_since(
    directory: Path, since: float, *, wait_s: float = WAIT_S, poll_s: float = POLL_S
) -> list[Path]:
    """The traces below `directory` written since then, when all of them are whole.

    Raises `ProfileError` if there are none within `wait_s`, or one never becomes whole.
    """
    if not directory.is_dir():
        raise ProfileError(f"--trace-dir {directory}: no such folder on this machine")
    deadline = time.monotonic() + wait_s
    sizes: dict[Path, int] = {}
    while True:
        found = [p for p in _traces(directory) if p.stat().st_mtime >= since - CLOCK_S]
        now = {path: path.stat().st_size for path in found}
        if now and now == sizes and all(is_whole(path) for path in found):
            return found
        if time.monotonic() >= deadline:
            if not found:
                raise ProfileError(
                    f"--trace-dir {directory}: no trace was written there within {wait_s:g} s"
                )
            raise ProfileError(f"{found[-1]} was not complete after {wait_s:g} s")
        sizes = now
        time.sleep(poll_s)


def is_whole(path: Path) -> bool:
    """Whether a gzip file ends as it should, or a JSON file with its last brace."""
    try:
        if path.name.endswith(".gz"):
            with gzip.open(path) as file:
                while file.read(1 << 20):
                    pass
            return True
        if path.name.endswith(".json"):
            with path.open("rb") as file:
                file.seek(-min(64, path.stat().st_size), 2)
                return file.read().rstrip().endswith((b"}", b"]"))
    except (OSError, EOFError, zlib.error):
        return False
    return path.stat().st_size > 0


def bring(files: Sequence[Path], folder: Path) -> list[Path]:
    """Copies under `folder`/rank_N/, by the rank in folder or name, each with the capture of its
    graphs beside it, without which replayed kernels have no names. Raises `ProfileError`."""
    copies = []
    for index, file in enumerate(files):
        match = _RANK.search(file.parent.name) or _RANK.search(file.name)
        rank = int(match[1]) if match else index
        target = folder / f"rank_{rank}"
        try:
            target.mkdir(parents=True, exist_ok=True)
            for source in (file, *captures_for(file, rank, ())):
                copy = target / source.name
                if not (copy.exists() and copy.samefile(source)):
                    shutil.copy2(source, copy)
        except OSError as error:
            raise ProfileError(f"--output-dir {folder}: {error.strerror}") from None
        copies.append(target / file.name)
    return copies


def _traces(directory: Path) -> list[Path]:
    return sorted(p for p in directory.rglob("*") if p.name.endswith(_ENDINGS) and p.is_file())
