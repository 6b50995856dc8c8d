"""Where `atom bench` finds a regression and both runs have traces, it says which kernel it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli_helpers import Ran, atom
from diff_programs import Program
from mock_behaviour import Behaviour
from mock_server import MockServer
from noisy_runs import noisy_run

import atom.bench.client.load as load_module
from atom.bench.errors import REGRESSION
from atom.bench.history import History
from atom.bench.types import ClientHealth, RunResult

EXPECTED = "in self_attn.o_proj, +3.1 us x 4 layers"


@pytest.fixture(autouse=True)
def history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "history.db"
    monkeypatch.setenv("ATOM_HISTORY", str(path))
    monkeypatch.setenv("NO_COLOR", "1")
    return path


@pytest.fixture
def traces(tmp_path: Path) -> tuple[Path, Path]:
    a = Program().write(tmp_path / "a" / "rank_0" / "m.json.gz")
    b = Program(us={"self_attn.o_proj": 7.1}).write(tmp_path / "b" / "rank_0" / "m.json.gz")
    return a, b


def kept(path: Path, speed: float, night: int, *traces: Path) -> str:
    run: RunResult = noisy_run(5, night=night, speed=speed)
    with History(path) as store:
        store.add(run)
        for trace in traces:
            store.attach(run.run_id, "trace", trace)
    return run.run_id


def compare(capsys: pytest.CaptureFixture[str], *argv: str) -> Ran:
    return atom(capsys, "bench", "compare", *argv)


def test_a_regression_with_traces_names_the_kernel(
    capsys: pytest.CaptureFixture[str], history: Path, traces: tuple[Path, Path]
) -> None:
    a, b = kept(history, 1.0, 0, traces[0]), kept(history, 0.9, 1, traces[1])
    ran = compare(capsys, a, b)
    assert ran.code == REGRESSION
    (line,) = (line for line in ran.out.splitlines() if line.startswith("traces: "))
    assert line.startswith("traces: decode bs=8: 168 us -> 180 us per step, +7.4%: ")
    assert EXPECTED in line
    (told,) = json.loads(compare(capsys, a, b, "--json").out)["traces"]
    assert EXPECTED in told["lines"][0]


def test_without_traces_the_reason_is_one_line(
    capsys: pytest.CaptureFixture[str], history: Path, traces: tuple[Path, Path], tmp_path: Path
) -> None:
    a, b = kept(history, 1.0, 0, traces[0]), kept(history, 0.9, 1)
    assert "no traces to compare: B has none" in compare(capsys, a, b).out
    c, d = kept(history, 1.0, 2), kept(history, 0.9, 3)
    assert "no traces to compare: neither run has one" in compare(capsys, c, d).out
    assert "traces" not in compare(capsys, d, c).out  # it got better: nobody asks
    gone = kept(history, 0.9, 4, tmp_path / "elsewhere.json")
    ran = compare(capsys, a, gone)
    assert ran.code == REGRESSION
    assert "traces are not compared: B's is not on this machine" in ran.out
    assert ran.err == ""


@pytest.fixture
def server() -> Iterator[MockServer]:
    with MockServer(Behaviour(ttft_ms=5, itl_ms=1)) as made:
        yield made


@pytest.fixture
def bench(
    server: MockServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Ran]:
    health = ClientHealth(1, [0.1], 0.1, 0.2, 0.3, 0.1, 9.0, 0.2)
    monkeypatch.setattr(load_module, "judge", lambda *_: health)
    argv = ["--input-len", "16", "--output-len", "16", "--warmup", "1", "--repeats", "2", "-n", "4"]

    def run(*more: str) -> Ran:
        return atom(
            capsys, "bench", "--base-url", server.url, *argv, "-c", "2", "--gate", "--quiet", *more
        )

    return run


def test_a_gated_regression_is_profiled_and_compared_with_its_past(
    bench: Callable[..., Ran],
    server: MockServer,
    history: Path,
    traces: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path / "b")
    (tmp_path / "b" / "rank_0" / "mock.pt.trace.json.gz").write_bytes(traces[1].read_bytes())
    assert bench().code == 0
    with History(history) as store:
        (first,) = store.find()
        store.attach(first.run_id, "trace", traces[0])
    server.behaviour = Behaviour(ttft_ms=40, itl_ms=8)
    ran = bench("--auto-profile", "--json")
    assert ran.code == REGRESSION, ran.err
    (line,) = json.loads(ran.out)["atom"]["traces"]
    assert EXPECTED in line


def test_a_gated_regression_without_earlier_traces_says_so(
    bench: Callable[..., Ran], server: MockServer
) -> None:
    assert bench().code == 0
    server.behaviour = Behaviour(ttft_ms=40, itl_ms=8)
    ran = bench("--auto-profile")
    assert ran.code == REGRESSION
    assert "traces: no traces to compare: no earlier run like this one has any" in ran.out
