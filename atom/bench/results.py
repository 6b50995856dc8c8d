"""Result files in the seeds' format, under the seeds' names."""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from atom.bench.errors import BenchError
from atom.bench.metrics import LegacyFields, legacy, result_json
from atom.bench.points import Point
from atom.bench.settings import Settings
from atom.bench.types import ClientHealth, RepeatResult, RunResult


def wanted(settings: Settings) -> bool:
    output = settings.config.output
    return bool(output.save_result or output.result_dir or output.result_filename)


def check_place(settings: Settings) -> None:
    """Raise `BenchError` now if the directory cannot take a file, not after the measuring."""
    if not wanted(settings):
        return
    directory = Path(settings.config.output.result_dir or ".")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise BenchError(f"--result-dir {directory}: {error.strerror}") from error


def check_metadata(settings: Settings) -> None:
    """Keys that a result has already are found on an empty one, before anything is measured."""
    idle = ClientHealth(0, [], 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    never = RepeatResult(0, "1970-01-01T00:00:00", 0.0, {}, {}, idle, None)
    empty = RunResult("", "bench", "", "", {}, {}, {}, "", [never], {}, {})
    legacy(empty, [[]], LegacyFields(metadata=settings.metadata, detailed=True))


def write(settings: Settings, run: RunResult, point: Point, *, several: bool) -> Path | None:
    """The result file of a run, or None where none was asked for; raises `OSError`."""
    if not wanted(settings):
        return None
    output = settings.config.output
    name = output.result_filename
    if name is None:
        name = file_name(run, point)
    elif several:
        path = Path(name)
        name = f"{path.stem}-{_level(point)}{path.suffix or '.json'}"
    path = Path(output.result_dir or ".") / name
    if output.result_filename is None:
        path = _free(path)
    write_json(path, result_json(run))
    return path


def file_name(run: RunResult, point: Point) -> str:
    """{backend}-{rate}qps[-concurrencyN]-{model}-{date}-{time}.json, as the original has it."""
    rate = run.legacy["request_rate"]
    places = run.legacy["max_concurrency"]
    parts = [
        str(run.legacy["backend"]),
        f"{rate}qps",
        *([f"concurrency{places}"] if places is not None else []),
        re.sub(r"[^\w.+-]+", "_", run.model.rpartition("/")[2]),
        str(run.legacy["date"]),
    ]
    return "-".join(parts) + ".json"


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Whole or not at all: a full disk leaves no half of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_text(
            json.dumps(document, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8"
        )
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _level(point: Point) -> str:
    return f"c{point.concurrency}" if point.closed else f"r{point.rate_text.replace(':', '-')}"


def _free(path: Path) -> Path:
    """A name that is not taken: two runs may begin in the same second."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_stem(f"{path.stem}-{number}")
    return free
