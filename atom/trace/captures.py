"""Which file holds the capture of the graphs that a run replays."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from atom.trace.reader.files import is_capture

_STAMP = re.compile(r"_ts_(\d{8}_\d{6}(?:_\d+)?)")
_SIZE = re.compile(r"(?:^|[_.-])bs_?(\d+)(?:[_.-]|$)")
_CAPTURE = re.compile(r"^capture_graph_")


def captures_for(trace: Path, rank: int, sizes: Iterable[int]) -> list[Path]:
    """The captures that belong to a run's trace, or none.

    They are looked for beside it and in the folders of its rank and of rank 0 next to its own. Of
    whole captures the newest that is not newer than the trace, of the same model if the names
    tell. Of folders with one file per size, those of `sizes` (all, if none of these is there).
    """
    for folder in _folders(trace, rank):
        found = [path for path in _in(folder) if _same_model(trace, path)]
        if not found:
            continue
        whole = [path for path in found if _size(path) is None]
        if whole:
            found = [_newest(whole, _stamp(trace))]
        else:
            found = _of_rank(_of_sizes(found, sizes), rank)
        # A relative path is answered by relative ones: they are shown.
        return found if trace.is_absolute() else [Path(os.path.relpath(path)) for path in found]
    return []


def _of_sizes(captures: Sequence[Path], sizes: Iterable[int]) -> list[Path]:
    """Of each size the file, else that of the next larger graph, which pads; all without sizes."""
    known = sorted((size, path) for path in captures if (size := _size(path)) is not None)
    chosen = set()
    for wanted in sizes:
        larger = [size for size, _ in known if size >= wanted]
        chosen.add(larger[0] if larger else known[-1][0])
    return [path for size, path in known if size in chosen or not chosen]


def _folders(trace: Path, rank: int) -> list[Path]:
    own = trace.resolve().parent
    up = own.parent
    near = [own, own / "capture_traces", up / f"rank_{rank}", up / "rank_0", up / "capture_traces"]
    if own.name.startswith(("rank_", "dp")):
        near.append(up)
    return [folder for folder in dict.fromkeys(near) if folder.is_dir()]


def _in(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if is_capture(path) and _is_json(path)]


def _is_json(path: Path) -> bool:
    return path.is_file() and path.name.endswith((".json", ".json.gz", ".json.zst"))


def _size(path: Path) -> int | None:
    match = None if _CAPTURE.match(path.name) else _SIZE.search(path.name)
    return int(match[1]) if match else None


def _model(path: Path) -> str:
    """What the name says before its time stamp: "capture_graph_qwen3_ts_2026..." -> "qwen3"."""
    stamp = _STAMP.search(path.name)
    return _CAPTURE.sub("", path.name[: stamp.start()]) if stamp else ""


def _same_model(trace: Path, capture: Path) -> bool:
    mine, other = _model(trace), _model(capture)
    if mine and other:
        return mine == other
    if other or _CAPTURE.match(capture.name):
        return True  # the trace has been renamed
    # "x.capture_bs32.json.gz" beside "x.run.json.gz"; upstream's "bs_32_q_1_rank0.json.gz".
    head = capture.name.split(".")[0]
    return capture.parent.name == "capture_traces" or (
        _size(capture) is not None and (head == trace.name.split(".")[0] or head.startswith("bs_"))
    )


def _stamp(path: Path) -> str:
    match = _STAMP.search(path.name)
    return match[1] if match else ""


def _newest(captures: Sequence[Path], before: str) -> Path:
    def age(path: Path) -> tuple[bool, str, float]:
        stamp = _stamp(path)
        return (not before or stamp <= before, stamp, path.stat().st_mtime)

    return max(captures, key=age)


def _of_rank(captures: Sequence[Path], rank: int) -> list[Path]:
    own = [path for path in captures if re.search(rf"rank_?{rank}(?!\d)", path.name)]
    return own or list(captures)
