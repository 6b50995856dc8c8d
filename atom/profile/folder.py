"""The folder of a profile: chosen, checked before a model is loaded, and `profile.json` in it."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from atom.profile.errors import ProfileError

SCHEMA = 1  # of profile.json
DOCUMENT = "profile.json"

WARN_BYTES = 300_000_000  # of one trace, compressed: loading it elsewhere takes minutes
MOST_BYTES = 2_000_000_000  # and of all
UNPACKED = 20  # times the compressed size: what the JSON takes on the disk until it is compressed


def choose(asked: Path | None, model: str, now: datetime) -> Path:
    """The folder asked for, else a new name in the current one, e.g. profile-qwen3-20260131-143000.

    Raises `ProfileError` where nothing could be written. It is made.
    """
    stem = re.sub(r"[^\w.-]+", "_", model.rstrip("/").rpartition("/")[2]) or "model"
    folder = asked or Path(f"profile-{stem}-{now:%Y%m%d-%H%M%S}")
    make(folder)
    return folder


def make(folder: Path) -> None:
    """Make the folder if need be; raises `ProfileError` where nothing could be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ProfileError(f"--output-dir {folder}: {error.strerror}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ProfileError(f"--output-dir {folder} cannot be written to")


def write(folder: Path, document: Mapping[str, Any]) -> Path:
    """`profile.json`, whole under its name. Raises `ProfileError`."""
    path = folder / DOCUMENT
    part = path.with_suffix(".part")
    try:
        part.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", "utf-8")
        part.replace(path)
    except OSError as error:
        raise ProfileError(f"{path}: {error.strerror}") from None
    return path


def relative(folder: Path, files: Sequence[str | Path]) -> list[str]:
    """Paths as the document holds them: the folder may be moved."""
    base = folder.resolve()
    found = [Path(file).resolve() for file in files]
    return [str(p.relative_to(base) if p.is_relative_to(base) else p) for p in found]


def num_bytes(files: Sequence[str | Path]) -> int:
    return sum(Path(file).stat().st_size for file in files)


def size_text(size: float) -> str:
    """For people: "238 KB", "41.5 MB"."""
    for unit, least in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if size >= least:
            return f"{size / least:.3g} {unit}"
    return f"{size:.0f} B"


class Sizes:
    """How large traces become, from those that were written. Ranks record the same steps."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._per_step: dict[str, float] = {}
        self.written = 0

    def weigh(self, kind: str, steps: int, size: int) -> None:
        """Of a trace that was not kept."""
        self._per_step[kind] = size / steps

    def add(self, kind: str, steps: int, size: int) -> None:
        self.written += size
        self.weigh(kind, steps, size)

    def knows(self, kind: str) -> bool:
        return kind in self._per_step

    def estimate(self, kind: str, steps: int) -> float:
        """Compressed bytes of that many steps; 0 where no trace of the kind was written yet."""
        return self._per_step.get(kind, 0.0) * steps

    def refusal(self, kind: str, steps: int) -> str:
        """Why these steps are not recorded, or ""."""
        size = self.estimate(kind, steps)
        if self.written + size > MOST_BYTES:
            return (
                f"about {size_text(size)} more, and {size_text(MOST_BYTES)} is the most of one "
                f"profile; {self._fewer(kind, MOST_BYTES - self.written)}"
            )
        free = shutil.disk_usage(self._folder).free
        if size * UNPACKED > free:
            return (
                f"about {size_text(size)}, {size_text(size * UNPACKED)} before it is compressed, "
                f"and the disk has {size_text(free)}; "
                f"{self._fewer(kind, free / UNPACKED)}"
            )
        return ""

    def warning(self, kind: str, steps: int) -> str:
        size = self.estimate(kind, steps)
        if size < WARN_BYTES:
            return ""
        return f"the trace will have about {size_text(size)}; fewer --steps make it smaller"

    def _fewer(self, kind: str, size: float) -> str:
        """How many steps would fit into `size`."""
        steps = int(size / self._per_step[kind])
        return f"--steps {steps} would fit" if steps > 0 else "not one step would fit"
