"""Result files as JSON values: one document, a list, one after another, JSON lines, or data.js."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from atom.bench.errors import BenchError

MAX_BYTES = 2**30
_SPACE = re.compile(r"[\s,]*")
_ASSIGNMENT = re.compile(r"\s*(?:window\.)?[A-Za-z_$][\w$]*(?:\.[\w$]+)*\s*=\s*(?=[\[{])")


class Tree(NamedTuple):
    value: Any
    line: int  # where it begins in the file, from 1


def read_trees(path: Path) -> Iterator[Tree]:
    """The JSON values of a file; the items of a list one by one."""
    text = _text(path)
    match = _ASSIGNMENT.match(text)  # window.BENCHMARK_DATA = {...}
    position = match.end() if match else _SPACE.match(text, 0).end()  # type: ignore[union-attr]
    decoder = json.JSONDecoder()
    while position < len(text):
        line = text.count("\n", 0, position) + 1
        try:
            value, position = decoder.raw_decode(text, position)
        except ValueError as error:
            position = getattr(error, "pos", position)
            where = text.count("\n", 0, position) + 1
            raise BenchError(f"{path}:{where}: not JSON: {_reason(error)}") from None
        except RecursionError:
            raise BenchError(f"{path}:{line}: nested too deeply to be a result") from None
        values = value if isinstance(value, list) else [value]
        yield from (Tree(item, line) for item in values)
        position = re.compile(r"[\s;]*").match(text, position).end()  # type: ignore[union-attr]


def _reason(error: ValueError) -> str:
    return getattr(error, "msg", None) or str(error)


def _text(path: Path) -> str:
    try:
        if path.is_dir():
            raise BenchError(f"{path} is a folder: give the result files in it")
        if path.stat().st_size > MAX_BYTES:
            raise BenchError(f"{path} has more than {MAX_BYTES >> 30} GiB: not a result file")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise BenchError(f"{path} is not a text file (UTF-8)") from None
    except OSError as error:
        raise BenchError(f"cannot read {path}: {error.strerror or error}") from None


def number(value: Any) -> float | None:
    """A finite number, also as text; None for anything else."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def whole(value: Any) -> Any:
    """1024.0 and "1024" as 1024; what is no whole number stays as it is."""
    found = number(value)
    return int(found) if found is not None and found.is_integer() else value
