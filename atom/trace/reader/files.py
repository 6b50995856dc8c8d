"""Which files are traces, and whose: found below folders; the rank by content, folder or name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from atom.trace.errors import TraceError

_COMPRESSED = (".gz", ".zst")
_SUFFIXES = (".json", *(f".json{suffix}" for suffix in _COMPRESSED))
_CAPTURE = re.compile(r"^capture_graph_|^bs_\d+|[._]capture(_bs\d+)?[._]")
_RANK = re.compile(r"(?:^|[^a-z])(?:rank|tp)[-_]?(\d+)", re.IGNORECASE)


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
            raise TraceError(f"{path}: no such file or folder")
        for file in below:
            found.setdefault(file.resolve(), file)
    return list(found.values())


def _below(folder: Path) -> list[Path]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    traces = [file for file in files if file.name.endswith(_SUFFIXES)]
    kept = [file for file in traces if not is_capture(file)]
    # A run's own profile.json and the like lie beside the traces.
    named = [file for file in kept if "trace" in file.name]
    if named or kept:
        return named or kept
    if traces:
        raise TraceError(
            f"{folder}: only captures of graphs ({traces[0].name}); "
            "give the trace of a run, and the capture with --capture-trace"
        )
    endings = Counter("".join(file.suffixes[-2:]) or file.name for file in files)
    held = ", ".join(f"{count} {ending}" for ending, count in endings.most_common(4)) or "nothing"
    raise TraceError(f"{folder}: no trace (*.json, *.json.gz, *.json.zst) below it; it has {held}")


def rank_of(path: Path, other: Mapping[str, Any]) -> int:
    """By distributedInfo, what atom wrote, folder rank_N, file name (tp0, rank0); else 0."""
    for key in ("distributedInfo", "atom"):
        info = other.get(key)
        if isinstance(info, dict) and isinstance(info.get("rank"), int):
            return int(info["rank"])
    for text in (path.parent.name, path.name):
        if match := _RANK.search(text):
            return int(match.group(1))
    return 0
