"""Which files are traces, and whose: found below folders; the rank by content, folder or name."""

from __future__ import annotations

import contextlib
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from atom.trace.errors import TraceError
from atom.trace.reader.source import Source

_SUFFIXES = (".json", ".json.gz", ".json.zst", ".json.gzip", ".json.zstd")
_CAPTURE = re.compile(r"^capture_graph_|^bs_\d+|[._]capture(_bs\d+)?[._]")
_RANKS = (
    re.compile(r"(?:^|[^a-z])rank[-_]?(\d+)", re.IGNORECASE),
    re.compile(r"(?:^|[^a-z])tp[-_]?(\d+)", re.IGNORECASE),
)
_TRACE = re.compile(rb'"traceEvents"|^\s*\[\s*\{[^}]*"ph"')


def is_capture(path: Path) -> bool:
    """Whether the name says that it holds the capture of graphs rather than a run of them."""
    return bool(_CAPTURE.search(path.name)) or path.parent.name == "capture_traces"


def find_traces(paths: Sequence[Path]) -> list[Path]:
    """Files as given, and all traces below folders in the order of their names, each once.

    Captures below folders are left out; one that is given as a file is taken.

    Raises:
        TraceError: a path does not exist, or a folder holds no trace; says what it holds.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        if path.is_dir():
            below = _below(path)
        elif path.exists():
            below = [path]
        else:
            raise TraceError(f"{path}: no such file or folder{_nearby(path)}")
        for file in below:
            found.setdefault(file.resolve(), file)
    return list(found.values())


def _nearby(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return ""
    names = sorted(file.name for file in folder.iterdir() if file.name.endswith(_SUFFIXES))
    return f"; {folder} has {_listed(names)}" if names else ""


def _below(folder: Path) -> list[Path]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    candidates = [file for file in files if file.name.endswith(_SUFFIXES)]
    traces = [file for file in candidates if not is_capture(file) and _is_trace(file)]
    if traces:
        return traces
    if captures := [file for file in candidates if is_capture(file)]:
        raise TraceError(
            f"{folder}: only captures of graphs ({_listed(file.name for file in captures)}); "
            "give the trace of a run, and the capture with --capture-trace"
        )
    if candidates:
        raise TraceError(
            f"{folder}: no trace below it; {_listed(file.name for file in candidates)} "
            "have no traceEvents"
        )
    endings = Counter("".join(file.suffixes[-2:]) or file.name for file in files)
    held = ", ".join(f"{count} {ending}" for ending, count in endings.most_common(4))
    raise TraceError(
        f"{folder}: no trace (*.json, *.json.gz, *.json.zst) below it; it has {held or 'no files'}"
    )


def _listed(names: Iterable[str]) -> str:
    found = list(names)
    return ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")


def _is_trace(path: Path) -> bool:
    """By its name, else by how it begins: other JSON lies beside traces."""
    if ".trace." in path.name:
        return True
    with contextlib.suppress(OSError, zlib.error), contextlib.closing(iter(Source(path))) as blocks:
        return bool(_TRACE.search(next(blocks, b"")))
    return False


def rank_of(path: Path, other: Mapping[str, Any]) -> int:
    """By distributedInfo, what atom wrote, folder rank_N, file name (rank0, tp0); else 0."""
    for key in ("distributedInfo", "atom"):
        info = other.get(key)
        if isinstance(info, dict) and isinstance(info.get("rank"), int):
            return int(info["rank"])
    for text in (path.parent.name, path.name):
        for pattern in _RANKS:
            if match := pattern.search(text):
                return int(match.group(1))
    return 0
