"""A rank's trace files: complete, named as promised, and nothing half done beside them."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from atom.config.schema import ProfileConfig
from atom.engine.runner.profiler import RankProfiler, check_folder
from atom.errors import ConfigError, RequestError


def profiler(directory: Path, **changes: Any) -> RankProfiler:
    config = ProfileConfig(torch_profiler_dir=str(directory), **changes)
    return RankProfiler(config, 1, "org/A model", torch.device("cpu"))


def record(profiler: RankProfiler, stamp: str = "20260101_000000_007") -> str:
    profiler.start(stamp)
    torch.ones(3, 5) @ torch.ones(5, 2)
    writer = profiler.stop()
    (path,) = writer()
    return path


def operations(path: str, name: str) -> list[dict[str, Any]]:
    with gzip.open(path) as file:
        trace = json.load(file)
    assert trace["atom"]["rank"] == 1
    return [event for event in trace["traceEvents"] if event.get("name") == name]


@pytest.mark.parametrize("more", [False, True])
def test_a_trace_is_written(tmp_path: Path, more: bool) -> None:
    path = record(profiler(tmp_path, profiler_more=more))
    wanted = r".*/rank_1/org_A_model_ts_20260101_000000_007\.pt\.trace\.json\.gz"
    assert re.fullmatch(wanted, path)
    assert [p.name for p in (tmp_path / "rank_1").iterdir()] == [Path(path).name]
    (found,) = operations(path, "aten::mm")
    assert ("Input Dims" in found["args"]) == more


def test_each_profile_holds_its_own_steps(tmp_path: Path) -> None:
    recorder = profiler(tmp_path)
    first, second = record(recorder, "a"), record(recorder, "b")
    assert first != second
    assert len(operations(first, "aten::mm")) == len(operations(second, "aten::mm")) == 1


def test_out_of_turn(tmp_path: Path) -> None:
    recorder = profiler(tmp_path)
    with pytest.raises(RequestError, match="no profile is running"):
        recorder.stop()
    recorder.start("a")
    with pytest.raises(RequestError, match="a profile is running"):
        recorder.start("b")
    recorder.stop()()


def test_a_process_may_end_while_it_records(tmp_path: Path) -> None:
    """With Python stacks the tracer, left running, would take the process down with it."""
    program = (
        "import sys, torch; from atom.config.schema import ProfileConfig as C; "
        "from atom.engine.runner.profiler import RankProfiler as P; "
        "c = C(torch_profiler_dir=sys.argv[1], profiler_more=True); "
        "p = P(c, 0, 'm', torch.device('cpu')); "
        "p.start('a'); torch.ones(2); p.close(); p.close()"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = profiler(tmp_path)
    recorder.start("a")
    writer = recorder.stop()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfileobj", full)
    with pytest.raises(RequestError, match=r"could not be written: .*No space left on device"):
        writer()
    assert list((tmp_path / "rank_1").iterdir()) == []


def test_the_folder_is_made_or_refused_before_the_model_loads(tmp_path: Path) -> None:
    check_folder(str(tmp_path / "new" / "one"))
    assert (tmp_path / "new" / "one").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"^--torch-profiler-dir .*/file/x: Not a directory$"):
        check_folder(str(tmp_path / "file" / "x"))
