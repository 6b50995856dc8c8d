"""`atom bench list | show | export | import` as a person types them."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import openpyxl
import pytest
from cli_helpers import atom, clean_environment
from history_helpers import LM_EVAL, SERVING, data_js, make_run, write
from rich.console import Console

from atom.bench.history import History
from atom.bench.history.importers import read_results
from atom.bench.history.show import print_run


@pytest.fixture
def history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "h.db"
    monkeypatch.setenv("ATOM_HISTORY", str(path))
    monkeypatch.setenv("NO_COLOR", "1")
    return path


@pytest.fixture
def filled(history: Path) -> Path:
    with History(history) as made:
        for number in range(25):
            made.add(make_run(number, sweep_id="sw" if number > 22 else ""))
        made.add(make_run(30, run_id="20261102-180000-00001e", model="org/other", name="other"))
    return history


def at_width(width: int, *argv: str, **env: str) -> list[str]:
    """What a terminal of this width shows."""
    outer, inner = pty.openpty()
    environment = clean_environment(**env, COLUMNS=str(width), TERM="xterm")
    command = [sys.executable, "-m", "atom.cli", *argv]
    with subprocess.Popen(command, stdout=inner, stderr=inner, env=environment) as process:
        os.close(inner)
        shown = b""
        while True:
            try:
                part = os.read(outer, 65536)
            except OSError:
                break
            if not part:
                break
            shown += part
        assert process.wait(60) == 0
    os.close(outer)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown.decode())
    return [line.rstrip() for line in plain.splitlines()]


def test_an_empty_history_says_how_to_fill_it(
    history: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = atom(capsys, "bench", "list")
    assert (ran.code, ran.out) == (0, "")
    assert "no runs in" in ran.err
    assert "atom bench import" in ran.err
    assert not history.exists()
    assert json.loads(atom(capsys, "bench", "list", "--json").out) == []


def test_list(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran = atom(capsys, "bench", "list")
    lines = ran.out.splitlines()
    assert lines[1].split()[:2] == ["20261102-180000-00001e", "other"]
    assert lines[2].startswith(make_run(24).run_id)
    assert len([line for line in lines if line.startswith("2026")]) == 20
    assert "the newest 20 of 26 runs" in ran.err
    every = json.loads(atom(capsys, "bench", "list", "--json", "--limit", "0").out)
    assert len(every) == 26
    assert every[-1]["metrics"] == {"output_throughput": 100.0}
    ran = atom(capsys, "bench", "list", "--model", "other", "--json")
    assert [row["name"] for row in json.loads(ran.out)] == ["other"]
    ran = atom(capsys, "bench", "list", "--model", "nobody")
    assert (ran.code, ran.out) == (0, "")
    assert "none of the 26 runs" in ran.err


@pytest.mark.parametrize("width", [80, 100, 140])
def test_the_list_fits_and_its_ids_are_enough(
    filled: Path, capsys: pytest.CaptureFixture[str], width: int
) -> None:
    with History(filled) as history:  # alike until the last digit, with a name that is long
        for digit in "123":
            run = make_run(40, run_id=f"20261103-100000-aaaaa{digit}", name="long-" * 20 + digit)
            history.add(run)
    lines = at_width(width, "bench", "list", ATOM_HISTORY=str(filled))
    assert max(map(len, lines)) <= width
    ids = [line.split()[0] for line in lines if line.startswith("2026")]
    with History(filled) as history:
        expected = [run.run_id for run in history.find(limit=20)]
        assert [history.get(run_id).run_id for run_id in ids] == expected
    assert "…" in lines[1]
    assert "c=8" in lines[1]


def test_show(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran = atom(capsys, "bench", "show", "20261102-18")
    assert ran.code == 0
    assert "org/other" in ran.out
    assert "130" in ran.out
    both = atom(capsys, "bench", "show", "sw").out
    assert make_run(23).run_id in both
    assert make_run(24).run_id in both
    tree = json.loads(atom(capsys, "bench", "show", "other", "--json").out)
    assert tree["atom"]["run_id"] == "20261102-180000-00001e"
    assert tree["request_rate"] == "inf", "the original's fields lie on top"
    assert "records" not in tree["atom"]


@pytest.mark.parametrize("width", [80, 100, 140])
def test_what_is_shown_fits(tmp_path: Path, width: int) -> None:
    runs = [it.run for it in read_results(write(tmp_path / "data.js", data_js()))]
    runs += [make_run(), read_results(write(tmp_path / "r.json", LM_EVAL))[0].run]
    for run in runs:
        shown = io.StringIO()
        print_run(Console(file=shown, width=width), run)
        lines = shown.getvalue().splitlines()
        assert len(lines) > 5
        assert max(len(line.rstrip()) for line in lines) <= width


def test_import_says_what_it_did(
    history: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = write(tmp_path / "good.json", SERVING)
    bad = write(tmp_path / "bad.json", "{")
    scores = write(tmp_path / "results_1.json", LM_EVAL)
    ran = atom(capsys, "bench", "import", "--dry-run", str(good))
    assert ran.out == f"{good}: 1 run would be added\n"
    assert not history.exists()
    ran = atom(capsys, "bench", "import", str(good), str(bad), str(scores))
    assert ran.code == 2
    assert ran.out == f"{good}: 1 run added\n{scores}: 1 run added\n"
    assert ran.err.startswith(f"atom: error: {bad}:1: not JSON")
    ran = atom(capsys, "bench", "import", "--json", str(good))
    assert ran.code == 0
    (told,) = json.loads(ran.out)
    assert told["added"] == []
    assert len(told["already"]) == 1


def test_export(filled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    documents = json.loads(atom(capsys, "bench", "export", "last", "sw").out)
    assert [d["atom"]["run_id"] for d in documents][1:] == [
        make_run(number).run_id for number in (23, 24)
    ]
    rows = list(csv.DictReader(io.StringIO(atom(capsys, "bench", "export", "--format", "csv").out)))
    assert len(rows) == 26
    path = tmp_path / "out.xlsx"
    ran = atom(capsys, "bench", "export", "--limit", "3", "-o", str(path))
    assert (ran.out, ran.err) == ("", f"{path}: 3 runs\n")
    assert openpyxl.load_workbook(path)["runs"].max_row == 4


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["show", "nobody"], "nobody: no run, sweep, recipe or commit"),
        (["show", "2026"], "begins several runs"),
        (["show", "last", "--records"], "--records needs --json"),
        (["export", "nobody"], "nobody: no run"),
        (["export", "--format", "xlsx"], "--format xlsx needs a file"),
        (["export", "--format", "pdf"], "--format pdf: choose one of"),
        (["export", "-o", "x.pdf"], "the ending names no format"),
        (["export", "-o", "x.csv", "--records"], "csv has no place for samples"),
        (["export", "last", "--limit", "2"], "not both"),
        (["export", "--model", "nobody"], "no such run"),
        (["list", "--since", "yesterday"], "--since yesterday"),
        (["list", "--limit", "-1"], "limit"),
        (["list", "--kindd", "x"], "unknown option --kindd (did you mean --kind?)"),
        (["list", "--history", "/etc/passwd"], "/etc/passwd is not a run history"),
        (["import", "nothere.json"], "cannot read nothere.json: No such file"),
    ],
)
def test_mistakes_are_one_line(
    filled: Path, capsys: pytest.CaptureFixture[str], argv: list[str], said: str
) -> None:
    ran = atom(capsys, "bench", *argv)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("atom: error: ")
    assert said in ran.err
    assert ran.err.count("\n") == 1


def test_listing_imports_nothing_heavy(filled: Path) -> None:
    code = (
        "import sys; from atom.cli.main import main; main(['bench', 'list']);"
        "print(*{'torch', 'numpy', 'scipy', 'openpyxl', 'aiohttp'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code]
    environment = clean_environment(ATOM_HISTORY=str(filled))
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.splitlines()[-1] == ""
