"""Traces of a server: on this machine or not, whole or still being written."""

from __future__ import annotations

import gzip
import os
import time
from pathlib import Path

import pytest

from atom.profile import collect
from atom.profile.errors import ProfileError


def trace(path: Path, text: str = '{"traceEvents": []}', age_s: float = 0.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    when = time.time() - age_s
    os.utime(path, (when, when))
    return path


def test_a_path_of_another_machine(tmp_path: Path) -> None:
    new = trace(tmp_path / "a.json.gz")
    old = trace(tmp_path / "b.json.gz", age_s=3600)
    gone = str(tmp_path / "c.json.gz")
    assert collect.here([str(new), str(old), gone], time.time() - 10) == (
        [new],
        [str(old), gone],
    )


def test_what_was_written_since(tmp_path: Path) -> None:
    trace(tmp_path / "old.json.gz", age_s=3600)
    (tmp_path / "log.txt").touch()
    new = trace(tmp_path / "deep" / "new.json.gz")
    assert collect.written_since(tmp_path, time.time() - 10, poll_s=0.0) == [new]


def test_nothing_was_written(tmp_path: Path) -> None:
    trace(tmp_path / "old.json.gz", age_s=3600)
    with pytest.raises(ProfileError, match=r"no trace was written there within 0 s"):
        collect.written_since(tmp_path, time.time() - 10, wait_s=0.0, poll_s=0.0)
    with pytest.raises(ProfileError, match=r"^--trace-dir .*/none: no such folder"):
        collect.written_since(tmp_path / "none", 0.0)


def test_what_never_becomes_whole(tmp_path: Path) -> None:
    path = trace(tmp_path / "a.json.gz", "x" * 5000)
    path.write_bytes(path.read_bytes()[:-8])
    assert not collect.is_whole(path)
    with pytest.raises(ProfileError, match=r"a\.json\.gz was not complete after 0 s"):
        collect.written_since(tmp_path, time.time() - 10, wait_s=0.0, poll_s=0.0)


def test_whole_files(tmp_path: Path) -> None:
    assert collect.is_whole(trace(tmp_path / "a.json.gz"))
    assert collect.is_whole(trace(tmp_path / "b.json", '{"traceEvents": [1]}\n'))
    assert not collect.is_whole(trace(tmp_path / "c.json", '{"traceEvents": [{"a": 1'))
    assert not collect.is_whole(trace(tmp_path / "d.json", ""))
    damaged = trace(tmp_path / "e.json.gz", "y" * 5000)
    data = bytearray(damaged.read_bytes())
    data[20] ^= 0xFF
    damaged.write_bytes(data)
    assert not collect.is_whole(damaged)


def test_copies_lie_by_rank(tmp_path: Path) -> None:
    files = [
        trace(tmp_path / "srv" / "rank_3" / "a.json.gz"),
        trace(tmp_path / "srv" / "host_tp1.json.gz"),
        trace(tmp_path / "srv" / "plain.json.gz"),
    ]
    out = tmp_path / "out"
    found = [str(p.relative_to(out)) for p in collect.bring(files, out)]
    assert found == ["rank_3/a.json.gz", "rank_1/host_tp1.json.gz", "rank_2/plain.json.gz"]
    assert all((out / f).read_bytes() == p.read_bytes() for f, p in zip(found, files, strict=True))
    again = collect.bring([out / found[0]], out)  # where it is already
    assert again == [out / found[0]]


def test_a_copy_brings_the_capture_of_its_graphs(tmp_path: Path) -> None:
    server = tmp_path / "srv" / "rank_0"
    file = trace(server / "m_ts_20261121_120000_000.pt.trace.json.gz")
    captures = [
        trace(server / f"capture_graph_m_ts_20261121_{time}_000.pt.trace.json.gz")
        for time in ("100000", "110000", "130000")  # the last is of a later start
    ]
    out = tmp_path / "out"
    (copy,) = collect.bring([file], out)
    assert {p.name for p in copy.parent.iterdir()} == {file.name, captures[1].name}
