"""What is no trace or lacks what was asked for: one line, exit code 2, nothing on stdout."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from synthetic import TraceBuilder

from atom.cli.main import main

COMMANDS = [["summary"], ["top"], ["parse", "--layer", "0"]]


def failing(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line."""
    assert main(["trace", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("atom: error: ")
    return line.removeprefix("atom: error: ")


@pytest.fixture(params=COMMANDS, ids=lambda command: command[0])
def command(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    found: list[str] = [*request.param]
    return [*found, "--output-dir", str(tmp_path / "out")] if found[0] == "parse" else found


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "HTML"),
        (b"\x80\x04\x95\n\x00\x00\x00\x00\x00\x00\x00}\x94\x8c\x01a\x94K\x01s.", "pickle"),
        (b'{"schema": 3, "runs": []}', "schema, runs"),
        (gzip.compress(b"just some text", mtime=0), "just some text"),
    ],
)
def test_not_a_trace(
    command: list[str],
    data: bytes,
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(data)
    line = failing(capsys, *command, str(path))
    assert str(path) in line
    assert words in line


def test_no_such_file_and_an_empty_folder(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no such file" in failing(capsys, *command, str(tmp_path / "nothing"))
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "notes.txt").write_text("x")
    line = failing(capsys, *command, str(folder))
    assert "no trace" in line
    assert ".txt" in line


def test_no_gpu_events(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = TraceBuilder()
    with run.annotation("decode[bs=1 tok=1]"), run.op("aten::mm"):
        pass
    path = run.write(tmp_path / "m.pt.trace.json")
    line = failing(capsys, *command, str(path))
    assert "no GPU events" in line
    assert "1 cpu_op" in line
    assert "1 user_annotation" in line
    assert "--device cpu" in line


def test_neither_gpu_events_nor_operators(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = TraceBuilder()
    run.python("main.py(1): f")
    path = run.write(tmp_path / "m.pt.trace.json")
    line = failing(capsys, *command, str(path))
    assert "no GPU events" in line
    assert "--device cpu" not in line  # it would find no more
    line = failing(capsys, *command, str(path), "--device", "cpu")
    assert "no operators of the host" in line
    assert "1 python_function" in line


def test_no_steps(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = TraceBuilder()
    with run.annotation("my loop: 7"):
        run.kernel("a")
        run.kernel("b")
    line = failing(capsys, *command, str(run.write(tmp_path / "m.pt.trace.json")))
    assert "no steps found in 2 GPU events" in line
    assert "'my loop: 7'" in line


def test_a_capture_instead_of_a_run(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = TraceBuilder()
    run.capture("capture_graph_bs_4", lambda each: each.kernel("k"))
    path = run.write(tmp_path / "capture_graph_m_ts_1.pt.trace.json")
    assert "a capture of graphs" in failing(capsys, *command, str(path))
    renamed = run.write(tmp_path / "renamed" / "m.json")
    assert "1 capture only" in failing(capsys, *command, str(renamed))


def test_steps_that_launched_nothing(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = TraceBuilder()
    for number in range(2):
        with run.annotation(f"decode[bs=1 tok={number}]"):
            run.kernel("k", executed=False)
    run.kernel("beside")
    line = failing(capsys, *command, str(run.write(tmp_path / "m.pt.trace.json")))
    assert "2 decode" in line
    assert "1 GPU event" in line


def test_a_device_that_there_is_not(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = TraceBuilder()
    run.kernel("k")
    path = run.write(tmp_path / "m.pt.trace.json")
    assert failing(capsys, *command, str(path), "--device", "tpu") == (
        "--device tpu: one of auto, gpu, cpu"
    )


def test_the_layer_is_out_of_range(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = TraceBuilder()
    with run.step("decode[bs=1 tok=1 d=1]"):
        for layer in range(2):
            with run.scope(f"model.layers.{layer}.mlp"):
                run.kernel("k")
    path = run.write(tmp_path / "m.pt.trace.json")
    line = failing(capsys, "parse", str(path), "--layer", "7", "--output-dir", str(tmp_path / "o"))
    assert line == "--layer 7: the decode step 0 has layers 0-1"
    assert not list((tmp_path / "o").glob("*.xlsx"))


def test_a_capture_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = TraceBuilder()
    with run.step("decode[bs=1 tok=1 d=1]"):
        run.kernel("k")
    path = run.write(tmp_path / "m.pt.trace.json")
    (tmp_path / "c.json").write_text("[]")
    line = failing(capsys, "summary", str(path), "--capture-trace", str(tmp_path / "c.json"))
    assert "c.json" in line


def test_a_cut_file_that_lost_its_gpu_events_says_that_it_is_cut(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = TraceBuilder()
    with run.step("decode[bs=1 tok=1 d=1 sk=9]"), run.op("aten::mm"):
        run.kernel("k")
    path = run.write(tmp_path / "m.pt.trace.json")
    text = path.read_text()
    path.write_text(text[: text.index('"kernel"')])
    line = failing(capsys, *command, str(path))
    assert "no GPU events" in line
    assert "cut" in line
