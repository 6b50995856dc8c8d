"""Which files are traces, whose they are, and what of them is kept."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from raw_events import HEAD, TAIL, kernel, texts
from synthetic import TraceBuilder, write_bytes

from atom.trace.errors import TraceError
from atom.trace.reader import find_traces, read_trace
from atom.trace.types import CpuKind


def folder(tmp_path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    return tmp_path


_SOME = HEAD + b",".join(texts(1)) + TAIL


def test_folders_hold_traces_and_other_files(tmp_path: Path) -> None:
    top = folder(
        tmp_path,
        {
            "rank_1/m_ts_1.pt.trace.json.gz": gzip.compress(_SOME),
            "rank_0/m_ts_1.pt.trace.json": _SOME,
            "rank_0/capture_graph_m_ts_1.pt.trace.json": _SOME,
            "rank_0/capture_traces/bs_4_q_1_rank0.json": _SOME,
            "rank_0/plain.json": _SOME,
            "rank_0/list.json.zst": zstandard.compress(b"[" + texts(1)[0]),
            "profile.json": b'{"shapes": []}',
            "notes.txt": b"",
        },
    )
    found = [file.relative_to(top).as_posix() for file in find_traces([top])]
    assert found == [
        "rank_0/list.json.zst",
        "rank_0/m_ts_1.pt.trace.json",
        "rank_0/plain.json",
        "rank_1/m_ts_1.pt.trace.json.gz",
    ]
    capture = top / "rank_0/capture_graph_m_ts_1.pt.trace.json"
    assert find_traces([capture, top / "rank_1", capture, top / "rank_1"]) == [
        capture,
        top / "rank_1/m_ts_1.pt.trace.json.gz",
    ]


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "it has no files"),
        ({"a.csv": b"", "b.csv": b""}, "it has 2 .csv"),
        ({"profile.json": b"{}"}, "profile.json have no traceEvents"),
        ({"rank_0/capture_graph_m.pt.trace.json": _SOME}, "only captures of graphs (capture_graph"),
    ],
)
def test_folders_without_traces(tmp_path: Path, files: dict[str, bytes], says: str) -> None:
    with pytest.raises(TraceError) as found:
        find_traces([folder(tmp_path, files)])
    assert says in str(found.value)


def test_paths_that_are_not_there(tmp_path: Path) -> None:
    folder(tmp_path, {"a.json": _SOME})
    with pytest.raises(TraceError, match=r"b\.json: no such file or folder; .* has a\.json"):
        find_traces([tmp_path / "b.json"])


@pytest.mark.parametrize(
    ("name", "document", "rank"),
    [
        ("rank_3/m.json", {}, 3),
        ("rank_3/m.json", {"distributedInfo": {"rank": 5}}, 5),
        ("rank_3/m.json", {"atom": {"rank": 6}}, 6),
        ("rank_3/m.json", {"atom": [], "distributedInfo": {"rank": "x"}}, 3),
        ("dp1_tp2/m.json", {}, 2),
        ("x/1757-TP-4.trace.json", {}, 4),
        ("x/dp0_pp0_tp1_rank9.123.pt.trace.json", {}, 9),
        ("x/http2_frank7.json", {}, 0),
    ],
)
def test_ranks(tmp_path: Path, name: str, document: dict[str, Any], rank: int) -> None:
    data = json.dumps({**document, "traceEvents": [kernel(0)]}).encode()
    assert read_trace(write_in(tmp_path / name, data)).rank == rank


def write_in(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_bytes(path, data)


def test_python_frames_are_dropped_but_counted(tmp_path: Path) -> None:
    run = TraceBuilder()
    make: Callable[[str], None] = run.python
    for index in range(5):
        make(f"file.py({index}): f")
    with run.nn_module("Linear_0"):
        make("linear.py(3): forward")
    path = run.write(tmp_path / "m.json")
    trace, all_of_it = read_trace(path), read_trace(path, keep_python=True)
    assert trace.counts["python_function"] == 7
    assert trace.cpu.kind.tolist() == [CpuKind.MODULE]
    assert "file.py(1): f" not in trace.strings
    assert sorted(all_of_it.cpu.kind.tolist()) == [CpuKind.MODULE, *[CpuKind.PYTHON] * 6]
