"""Trace files made of bytes, for the reader's tests: what a builder cannot write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from atom.trace.reader import read_trace, source
from atom.trace.types import RankTrace

HEAD = b'{"schemaVersion": 1, "traceEvents": [\n'
TAIL = b'\n], "traceName": "x"}'


def kernel(index: int) -> dict[str, Any]:
    return {
        "ph": "X",
        "cat": "kernel",
        "name": f"kernel_{index}",
        "pid": 0,
        "tid": 7,
        "ts": 1000 + index,
        "dur": 0.5,
        "args": {"correlation": index, "grid": [1, 1, 1], "extra": [{"a": 1}, {"b": "},{"}]},
    }


def texts(count: int, indent: int | None = None) -> list[bytes]:
    return [json.dumps(kernel(index), indent=indent).encode() for index in range(count)]


def names(trace: RankTrace) -> list[str]:
    return [trace.strings[name] for name in trace.gpu.name]


def indices(trace: RankTrace) -> list[int]:
    return [int(name.rpartition("_")[2]) for name in names(trace)]


def read(tmp_path: Path, data: bytes, name: str = "m.json", block: int = 1 << 20) -> RankTrace:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "BLOCK", block)
        return read_trace(path)
