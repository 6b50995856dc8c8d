"""What people call runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from history_helpers import SERVING, make_run, write

from atom.bench.errors import BenchError
from atom.bench.history import History, HistoryError
from atom.bench.types import RunResult


def named(
    number: int, sweep: str = "", recipe: str = "", commit: str = "", **more: str
) -> RunResult:
    provenance = {
        "server": {"kind": "atom", "commit": commit},
        "recipe": {"name": recipe, "sha256": ""} if recipe else None,
    }
    return make_run(number, sweep_id=sweep, provenance=provenance, **more)


RUNS = [
    named(0, recipe="fast", commit="aaaaaaa1", fingerprint="f1"),
    named(1, sweep="sw1", recipe="fast", commit="aaaaaaa1", fingerprint="f1"),
    named(2, sweep="sw1", recipe="fast", commit="aaaaaaa1", fingerprint="f2"),
    named(3, commit="bbbbbbb2", name="alone"),
    named(4, sweep="sw2", recipe="other", commit="bbbbbbb2", fingerprint="f1"),
    named(5, sweep="sw2", recipe="other", commit="bbbbbbb2", fingerprint="f2"),
    named(6, sweep="sw2", recipe="other", commit="bbbbbbb2", fingerprint="f2"),
]


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    with History(tmp_path / "h.db") as made:
        for run in reversed(RUNS):
            made.add(run)
        yield made


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("last", [4, 5, 6]),
        ("last~0", [4, 5, 6]),
        ("last~1", [3]),
        ("last~2", [1, 2]),
        ("last~3", [0]),
        (RUNS[5].run_id, [5]),
        (RUNS[5].run_id[:12], [5]),
        ("sw1", [1, 2]),
        ("sw2", [4, 5, 6]),
        ("fast", [1, 2]),
        ("other", [4, 5, 6]),
        ("alone", [3]),
        ("aaaaaa", [1, 2]),  # of each experiment at that commit the newest
        ("bbbbbbb2", [3, 4, 6]),
    ],
)
def test_names(history: History, text: str, numbers: list[int]) -> None:
    assert [run.run_id for run in history.resolve(text)] == [RUNS[n].run_id for n in numbers]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("last~4", "there are 4 invocations"),
        ("nobody", "no run, sweep, recipe or commit of .* and no file; atom bench list"),
        ("aaaaa", "no run, sweep"),  # too short for a commit
        ("", "no run, sweep"),
        ("20261101-1", "begins several runs"),
        ("sw", "sw begins several sweeps: sw1, sw2"),
        ("nothere.json", "no such file"),
    ],
)
def test_what_names_nothing(history: History, text: str, said: str) -> None:
    with pytest.raises(HistoryError, match=said):
        history.resolve(text)


def test_last_of_an_empty_history(tmp_path: Path) -> None:
    with History(tmp_path / "h.db") as history, pytest.raises(HistoryError, match="0 invocations"):
        history.resolve("last")


def test_a_long_sweep_is_one_invocation(tmp_path: Path) -> None:
    """Longer than the window that is looked through at first."""
    with History(tmp_path / "h.db") as history:
        history.add(named(0))
        for number in range(1, 91):
            history.add(named(number, sweep="long"))
        assert len(history.resolve("last")) == 90
        assert [run.run_id for run in history.resolve("last~1")] == [named(0).run_id]


def test_a_result_file_is_read_and_not_added(history: History, tmp_path: Path) -> None:
    path = write(tmp_path / "theirs.json", SERVING)
    before = history.count()
    (run,) = history.resolve(str(path))
    assert run.model == SERVING["model_id"]
    assert history.count() == before
    with pytest.raises(BenchError, match="not JSON"):
        history.resolve(str(write(tmp_path / "bad.json", "{")))


def test_the_beginning_of_a_sweeps_id_will_do(tmp_path: Path) -> None:
    points = [named(n, sweep="20261121-152512-0934e7", fingerprint=f"f{n}") for n in (1, 2)]
    with History(tmp_path / "h.db") as history:
        for run in points:
            history.add(run)
        found = history.resolve("20261121-1525")
    assert [run.run_id for run in found] == [run.run_id for run in points]
