"""`atom bench compare` and its pictures: what is printed, at which widths, with which exit code."""

from __future__ import annotations

import io
import json
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from noisy_runs import noisy_run
from rich.console import Console
from synthetic_runs import START, bench_run

from atom.bench.compare import changepoints, compare, gate, series
from atom.bench.compare.picture import (
    ASCII,
    UNICODE,
    interval_bar,
    print_changes,
    print_comparison,
    print_gate,
    print_history,
    print_sweep,
    sparkline,
)
from atom.bench.compare.sweeps import compare_sweeps, pair
from atom.bench.errors import REGRESSION, BenchError
from atom.bench.history import History
from atom.bench.types import RunResult
from atom.cli.bench_compare import parse_margin
from atom.cli.main import main

STEADY = "steady_output_throughput"


def console(width: int, encoding: str = "utf-8") -> Console:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    return Console(file=stream, width=width, highlight=False, no_color=True)


def text(out: Console) -> str:
    out.file.flush()
    return out.file.buffer.getvalue().decode(out.file.encoding)  # type: ignore[attr-defined]


def sweep(name: str, day: int, speed: float = 1.0, levels: tuple[int, ...] = (1, 4, 16)) -> list[
    RunResult
]:  # fmt: skip
    return [
        bench_run(
            concurrency=level, at=START + timedelta(days=day, minutes=level), speed=speed,
            sweep_id=name, repeats=5, commit=f"{day:08x}",
        )
        for level in levels
    ]  # fmt: skip


@pytest.fixture
def history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Thirty nights, the last six 7 % slower, and two sweeps."""
    path = tmp_path / "history.db"
    monkeypatch.setenv("ATOM_HISTORY", str(path))
    with History(path) as store:
        for night in range(30):
            store.add(noisy_run(5, night=night, speed=0.93 if night >= 24 else 1.0))
        for run in (*sweep("one", 1), *sweep("two", 2, 0.9, (1, 4, 64))):
            store.add(run)
    return path


def run_id(night: int) -> str:
    return noisy_run(5, night=night).run_id


# The command


def test_a_regression_is_exit_code_three(history: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "compare", run_id(22), run_id(29)]) == REGRESSION
    out = capsys.readouterr().out
    assert "B is worse than A" in out
    assert "commits 0000017..0000018" in out  # the change in the history, the first bad run's


def test_the_same_and_the_better_are_exit_code_zero(
    history: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "compare", run_id(22), run_id(20)]) == 0
    assert "B is the same as A within 5%" in capsys.readouterr().out
    assert main(["bench", "compare", run_id(29), run_id(22)]) == 0


def test_json_is_all_there_is_on_stdout(history: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "compare", run_id(22), run_id(29), "--json"]) == REGRESSION
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert err == ""
    assert document["schema"] == 1
    assert document["verdict"] == "worse"
    (point,) = document["points"]
    first = point["metrics"][0]
    assert first["name"] == STEADY
    assert first["change"]["low"] < first["change"]["value"] < first["change"]["high"] < 1


def test_sweeps_are_compared_point_by_point(
    history: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "compare", "one", "two"]) == REGRESSION
    out = capsys.readouterr().out
    assert "All 2 points: worse" in out
    assert "only in A: c=16 1024/1024" in out
    assert "only in B: c=64 1024/1024" in out


def test_result_files_are_compared_without_a_history(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from atom.bench.metrics import result_json

    monkeypatch.setenv("ATOM_HISTORY", str(tmp_path / "none.db"))
    for name, run in (("a", noisy_run(1)), ("b", noisy_run(2, speed=0.9))):
        (tmp_path / f"{name}.json").write_text(json.dumps(result_json(run)))
    code = main(["bench", "compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")])
    assert code == REGRESSION, capsys.readouterr()
    assert not (tmp_path / "none.db").exists()


def test_one_run_is_judged_by_its_past(history: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "compare", run_id(24)]) == 0  # suspicious: nothing has confirmed it
    out = capsys.readouterr().out
    assert "SUSPICIOUS" in out
    assert "the median of 8 runs" in out
    assert main(["bench", "compare", run_id(23), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [g["status"] for g in document["gates"]] == ["ok"]
    assert run_id(24) in {c["run_id"] for c in document["changes"]}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nothing-like-it", "last"], "nothing-like-it: no run"),
        (["last", "last"], "A and B are the same"),
        (["last", "last~1", "--margin", "banana"], "--margin banana: write a percentage"),
        (["last", "last~1", "--margin", "80%"], "from 0.1% to 50%"),
        ([], "missing argument"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_two(
    history: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert main(["bench", "compare", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("given", "share"), [("3%", 0.03), ("3", 0.03), ("0.03", 0.03), ("50%", 0.5)]
)
def test_a_margin_is_a_percentage_or_a_share(given: str, share: float) -> None:
    assert parse_margin(given) == pytest.approx(share)


# Pairs


def test_sweeps_pair_by_load_even_where_the_experiment_differs() -> None:
    other = [
        msgspec.structs.replace(run, fingerprint="x" + run.run_id, model="another")
        for run in sweep("b", 3, levels=(4, 1, 2))
    ]
    pairs, left_a, left_b = pair(sweep("a", 1), other)
    assert [(a.load["concurrency"], b.load["concurrency"]) for a, b in pairs] == [(1, 1), (4, 4)]
    assert [r.load["concurrency"] for r in (*left_a, *left_b)] == [16, 2]


def test_two_runs_pair_whatever_they_are() -> None:
    a, b = bench_run(concurrency=1), bench_run(concurrency=64)
    assert pair([a], [b]) == ([(a, b)], [], [])


def test_a_point_that_is_there_twice_is_not_guessed() -> None:
    twice = [noisy_run(1), noisy_run(2, fingerprint="g" * 12)]
    other = [noisy_run(3, fingerprint="h" * 12), *sweep("b", 2)]
    with pytest.raises(BenchError, match="no point in common"):
        pair(twice, other)


def test_a_sweep_is_as_bad_as_its_worst_point() -> None:
    a, b = sweep("a", 1), sweep("b", 2)
    b[1] = sweep("b", 2, 0.8)[1]
    found = compare_sweeps(a, b)
    assert [p.verdict for p in found.points] == ["same", "worse", "same"]
    assert found.verdict == "worse"
    assert found.sentence == "Of 3 points: 1 worse, 2 same (c=4 1024/1024)"


# Pictures


@pytest.mark.parametrize("width", [80, 100, 140])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_nothing_is_cut_or_too_wide(width: int, encoding: str) -> None:
    out = console(width, encoding)
    a, b = noisy_run(1), noisy_run(2, speed=0.9)
    print_comparison(out, compare(a, b))
    print_sweep(out, compare_sweeps(sweep("a", 1), sweep("b", 2, 0.9)))
    runs = [noisy_run(5, night=i, speed=0.9 if i > 15 else 1.0) for i in range(20)]
    print_gate(out, gate(runs[19], runs))
    found = series(runs, STEADY)
    print_history(out, found, {runs[3].run_id: "A"})
    print_changes(out, changepoints(found))
    printed = text(out)
    assert "…" not in printed
    assert max(map(len, printed.splitlines())) <= width
    for word in ("undecided", "worse", "TTFT mean, ms", "Output tok/s, steady", "-5%"):
        assert word in printed
    assert printed.isascii() == (encoding == "ascii")


def test_brackets_in_names_are_no_markup() -> None:
    hostile = "[red]m[/red] [bold"
    a, b = (msgspec.structs.replace(noisy_run(i), name=hostile, model=hostile) for i in (1, 2))
    out = console(100)
    print_comparison(out, compare(a, b))
    assert hostile in text(out)


def test_traces_are_named_where_both_runs_have_them() -> None:
    a, b = (
        msgspec.structs.replace(noisy_run(i), artefacts=[{"kind": "trace", "path": f"t{i}.json"}])
        for i in (1, 2)
    )
    out = console(100)
    print_comparison(out, compare(a, b))
    assert "trace of A: t1.json\ntrace of B: t2.json" in text(out)
    out = console(100)
    print_comparison(out, compare(a, noisy_run(2)))
    assert "trace of" not in text(out)


def test_every_metric_is_shown_when_asked_for() -> None:
    found = compare(noisy_run(1), noisy_run(2))
    some, all_ = console(100), console(100)
    print_comparison(some, found)
    print_comparison(all_, found, every_metric=True)
    assert "more metrics: --all" in text(some)
    assert "more metrics" not in text(all_)
    assert text(all_).count("\n") > text(some).count("\n")


def bar(low: float, value: float, high: float, name: str = STEADY, limit: float = 0.1) -> str:
    found = compare(noisy_run(1), noisy_run(2)).metric(name)
    assert found is not None
    from atom.bench.types import Interval

    found = msgspec.structs.replace(found, change=Interval(value, low, high), margin=0.05)
    return interval_bar(found, 21, limit, UNICODE)


@pytest.mark.parametrize(
    ("ends", "drawn"),
    [
        ((0.98, 1.0, 1.02), "     ┊  ──●──  ┊     "),
        ((0.93, 0.95, 0.97), "   ──●──  │    ┊     "),
        ((1.06, 1.07, 1.08), "     ┊    │    ┊─●─  "),
        ((0.70, 0.95, 0.99), "◂────●────│    ┊     "),
        ((0.60, 0.70, 0.80), "◂    ┊    │    ┊     "),
        ((1.20, 1.30, 1.40), "     ┊    │    ┊    ▸"),
    ],
)
def test_an_interval_is_drawn_where_it_is(ends: tuple[float, float, float], drawn: str) -> None:
    assert bar(*ends) == drawn


def test_better_is_right_for_latencies_too() -> None:
    assert bar(0.93, 0.95, 0.97, "mean_ttft_ms") == bar(1.03, 1.05, 1.07)


def test_a_sparkline_goes_from_the_least_to_the_greatest() -> None:
    assert sparkline([1.0, 2.0, 3.0, 8.0], UNICODE.spark) == "▁▂▃█"
    assert (
        sparkline([5.0, 5.0], ASCII.spark) == "==" or len(sparkline([5.0, 5.0], ASCII.spark)) == 2
    )
