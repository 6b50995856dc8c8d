"""Writes the site: the static files of this package and `data.js` with the history."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

from atom.bench.dashboard.payload import Mark, payload
from atom.bench.errors import BenchError
from atom.bench.types import RunResult

STATIC = resources.files("atom.bench.dashboard") / "static"
DATA = "data.js"


def write_site(
    runs: Sequence[RunResult],
    out: Path,
    marks: Sequence[Mark] = (),
    *,
    source: str = "",
    links: Mapping[str, str] | None = None,
) -> Path:
    """Fill `out` with the site; returns its index.html. Only files of the same names are replaced.

    An artefact that is not in `links` is linked by its relative path where it exists.
    Raises `BenchError` where `out` cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in assets().items():
            _replace(out / name, content)
        _replace(
            out / DATA, data_js(runs, marks, source=source, links=links or relative(runs, out))
        )
    except OSError as error:
        raise BenchError(
            f"--out {out}: {error.strerror or error}; choose a folder that can be written"
        ) from error
    return out / "index.html"


def assets() -> dict[str, bytes]:
    """The files that do not depend on the history, by name."""
    return {f.name: f.read_bytes() for f in sorted(STATIC.iterdir(), key=lambda f: f.name)}


def data_js(
    runs: Sequence[RunResult],
    marks: Sequence[Mark],
    *,
    source: str,
    links: Mapping[str, str],
) -> bytes:
    """The history as a script: pages opened from a file may not fetch, but may load scripts."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return script(payload(runs, marks, source=source, links=links, built_at=now))


def script(value: Mapping[str, Any]) -> bytes:
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return f"window.ATOM_DATA={text};\n".encode("ascii")


def relative(runs: Sequence[RunResult], out: Path) -> dict[str, str]:
    """Addresses of the artefacts that exist, seen from the folder of the site."""
    found: dict[str, str] = {}
    for path in {a.get("path", "") for run in runs for a in run.artefacts}:
        if path and Path(path).exists():
            found[path] = quote(Path(os.path.relpath(path, out)).as_posix())
    return found


def _replace(path: Path, content: bytes) -> None:
    """A reader sees the old file or the new one, never half of it."""
    if path.exists() and path.read_bytes() == content:
        return
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
