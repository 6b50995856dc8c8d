"""`atom bench` as a user meets it, against the mock server: results, exit codes, mistakes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bench_helpers import eventually
from cli_helpers import Ran, atom, clean_environment
from mock_behaviour import Behaviour, Fault
from mock_server import MockServer

import atom.bench.client.load as load_module
from atom.bench import metrics, server_process
from atom.bench.history import History, HistoryError
from atom.bench.types import ClientHealth, RunResult

FAST = Behaviour(ttft_ms=5, itl_ms=1)
# Small enough for a pass in a moment.
SMALL = ["--input-len", "16", "--output-len", "4", "--warmup", "1", "--repeats", "2", "-n", "4"]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [n for n in os.environ if n.startswith(("ATOM_", "OPENAI_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("ATOM_HISTORY", str(tmp_path / "h.db"))


@pytest.fixture(autouse=True)
def verdict(monkeypatch: pytest.MonkeyPatch) -> ClientHealth:
    """The client's health as the tests say it: theirs is a busy machine."""
    health = ClientHealth(1, [0.1], 0.1, 0.2, 0.3, 0.1, 9.0, 0.2)
    monkeypatch.setattr(load_module, "judge", lambda *_: health)
    return health


@pytest.fixture
def server() -> Iterator[MockServer]:
    with MockServer(FAST) as made:
        yield made


@pytest.fixture
def bench(server: MockServer, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    def run(*argv: str, url: str = server.url) -> Ran:
        return atom(capsys, "bench", "--base-url", url, *SMALL, *argv)

    return run


def stored(path: Path) -> list[RunResult]:
    with History(path / "h.db") as history:
        return history.find()


def test_a_run_is_reported_and_kept(
    bench: Callable[..., Ran], server: MockServer, tmp_path: Path
) -> None:
    ran = bench("-c", "2", "--label", "mine", "--metadata", "a=1", "b=2")
    assert ran.code == 0, ran.err
    for words in ("Output tokens", "Time to first token", "8 completed, 0 failed"):
        assert words in ran.out
    (run,) = stored(tmp_path)
    assert run.run_id in ran.out
    assert (run.name, run.model, run.status) == ("mine", "mock", "ok")
    assert run.provenance["metadata"] == {"a": "1", "b": "2"}
    assert run.legacy["a"] == "1"
    assert run.provenance["server"]["kind"] == "atom"
    assert len(run.repeats) == 2
    with History(tmp_path / "h.db") as history:
        assert len(list(history.records(run.run_id, 1))) == 4
    # One that proves the endpoint, one to warm up, two repeats; no prompt came twice.
    prompts = [str(body["prompt"]) for body in server.seen if body.get("stream")]
    assert len(prompts) - len(set(prompts)) == 0


def test_json_has_stdout_to_itself(bench: Callable[..., Ran]) -> None:
    ran = bench("-c", "2", "--json", "--seed", "7")
    assert ran.code == 0
    document = json.loads(ran.out)
    assert document["completed"] == 8
    assert document["max_concurrency"] == 2
    assert document["request_rate"] == "inf"
    assert document["mean_ttft_ms"] >= 5
    assert document["atom"]["provenance"]["seed"] == 7
    assert "Time to first token" in ran.err
    quiet = bench("-c", "2", "--json", "--quiet")
    assert quiet.err == ""
    assert json.loads(quiet.out)["completed"] == 8


def test_a_sweep(bench: Callable[..., Ran], tmp_path: Path) -> None:
    ran = bench("-c", "1,2", "--json")
    assert ran.code == 0
    one, two = json.loads(ran.out)
    assert [one["max_concurrency"], two["max_concurrency"]] == [1, 2]
    assert one["atom"]["sweep_id"] == two["atom"]["sweep_id"] != ""
    assert len(stored(tmp_path)) == 2


def test_an_open_loop(bench: Callable[..., Ran]) -> None:
    ran = bench("--request-rate", "40", "--max-concurrency", "3", "--json", "--repeats", "1")
    document = json.loads(ran.out)
    assert document["request_rate"] == 40
    assert document["atom"]["load"]["mode"] == "open"
    assert document["atom"]["load"]["max_in_flight"] == 3


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (["--model", "mok"], 4, "has no model mok (did you mean mock?)"),
        (["--base-url", "http://127.0.0.1:1"], 4, "no server answers at http://127.0.0.1:1: Conn"),
        (["--dataset", "jsonl:/nowhere.jsonl"], 2, "/nowhere.jsonl does not exist"),
        (["r.txt"], 2, "r.txt is no recipe (.toml); to name the model of a running server"),
        (["list"], 2, "atom bench list comes before all flags"),
        (["--history", "/proc/none/h.db"], 2, "cannot write the history /proc/none/h.db"),
        (["--result-dir", "/proc/none"], 2, "--result-dir /proc/none: No such file"),
        (["--metadata", "completed=1"], 2, "--metadata completed=: the result has"),
        (["--tokenizer", "/nowhere"], 2, "--tokenizer /nowhere: no tokenizer.json there"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_sent(
    bench: Callable[..., Ran], server: MockServer, argv: list[str], code: int, says: str
) -> None:
    ran = bench("--quiet", *argv)
    assert ran.code == code
    assert ran.out == ""
    assert ran.err.startswith("atom: error: ")
    assert ran.err.count("\n") == 1
    assert says in ran.err
    assert len(server.seen) <= 1


def test_a_broken_data_set_names_the_line(
    server: MockServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"prompt": "a", "max_tokens": 2}\n{"prompt": \n')
    argv = ["bench", "--base-url", server.url, "--quiet", "--dataset", f"jsonl:{path}"]
    ran = atom(capsys, *argv)
    assert ran.code == 2
    assert f"{path}:2" in ran.err or f"{path}, line 2" in ran.err
    assert ran.err.count("\n") == 1


def test_keys(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with MockServer(Behaviour(ttft_ms=1, itl_ms=1, key="hunter2")) as server:
        argv = ["bench", "--base-url", server.url, *SMALL, "--repeats", "1", "-c", "1", "--quiet"]
        assert "wants an API key (--api-key)" in atom(capsys, *argv).err
        ran = atom(capsys, *argv, "--api-key", "wrong")
        assert (ran.code, "refuses the API key" in ran.err) == (4, True)
        monkeypatch.setenv("OPENAI_API_KEY", "hunter2")
        assert atom(capsys, *argv).code == 0
        monkeypatch.setenv("OPENAI_API_KEY", "wrong")
        monkeypatch.setenv("ATOM_API_KEY", "hunter2")
        assert atom(capsys, *argv).code == 0
    assert b"hunter2" not in (tmp_path / "h.db").read_bytes()


def test_objectives(bench: Callable[..., Ran], tmp_path: Path) -> None:
    ran = bench("-c", "1", "--slo", "ttft_p99=1ms", "--repeats", "1")
    assert ran.code == 3
    assert "missed" in ran.out
    assert stored(tmp_path)[0].status == "slo_missed"
    assert bench("-c", "1", "--slo", "ttft_p99=60s", "--repeats", "1").code == 0


def test_errors(bench: Callable[..., Ran], server: MockServer, tmp_path: Path) -> None:
    server.behaviour = Behaviour(ttft_ms=1, itl_ms=1, faults=(Fault.parse("http:503@every=4"),))
    ran = bench("-c", "1", "--repeats", "2", "-n", "8")
    assert ran.code == 5
    assert "http 503" in ran.out
    (run,) = stored(tmp_path)
    assert run.status == "errors"
    assert run.metrics["failed"].value > 0
    assert bench("-c", "1", "--max-error-rate", "0.9", "-n", "8").code == 0


def test_a_client_that_was_the_bottleneck(
    bench: Callable[..., Ran], verdict: ClientHealth, tmp_path: Path
) -> None:
    verdict.bound, verdict.reason = True, "it was slow"
    ran = bench("-c", "1", "--repeats", "1")
    assert ran.code == 6
    assert "it was slow" in ran.out
    assert stored(tmp_path)[0].status == "client_bound"


def test_result_files(bench: Callable[..., Ran], tmp_path: Path) -> None:
    out = tmp_path / "results"
    assert bench("-c", "2", "--repeats", "1", "--result-dir", str(out)).code == 0
    (path,) = out.iterdir()
    assert path.name.startswith("vllm-infqps-concurrency2-mock-")
    assert "ttfts" not in json.loads(path.read_text())
    more = ["--repeats", "1", "--result-dir", str(out), "--result-filename", "x.json"]
    assert bench("-c", "1,2", "--save-detailed", *more).code == 0
    names = {p.name for p in out.iterdir()} - {path.name}
    assert names == {"x-c1.json", "x-c2.json"}
    detailed = json.loads((out / "x-c1.json").read_text())
    assert len(detailed["ttfts"]) == 4
    assert all(detailed["generated_texts"])


def test_a_full_disk_loses_nothing(
    bench: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    def add(*_: Any) -> bool:
        raise HistoryError("cannot write the history: disk full; the run is saved as /tmp/x.json")

    monkeypatch.setattr(History, "add", add)
    ran = bench("-c", "1", "--repeats", "1", "--json", "--quiet")
    assert ran.code == 2
    assert "disk full; the run is saved as" in ran.err
    assert json.loads(ran.out)["completed"] == 4


def test_find_max(bench: Callable[..., Ran], server: MockServer, tmp_path: Path) -> None:
    server.behaviour = Behaviour(ttft_ms=2, itl_ms=1, slots=2)
    argv = ["--find-max", "-c", "1-8", "--slo", "ttft_p50=9ms,ttft_mean=9ms", "--max-runs", "4"]
    ran = bench(*argv, "-n", "16", "--output-len", "8", "--json")
    assert ran.code == 0, ran.err
    document = json.loads(ran.out)
    assert document["find_max"]["best"] in (1, 2, 3)
    assert len(document["runs"]) == len(document["find_max"]["points"]) <= 4
    assert len(stored(tmp_path)) == len(document["runs"])
    none = bench("--find-max", "-c", "1-4", "--slo", "ttft_p99=1ms", "--max-runs", "3")
    assert none.code == 3


def test_a_regression_is_confirmed_and_profiled(
    bench: Callable[..., Ran], server: MockServer, tmp_path: Path
) -> None:
    argv = ["-c", "2", "--gate", "--json", "--quiet", "--output-len", "16"]
    first = bench(*argv)
    assert first.code == 0
    assert json.loads(first.out)["atom"]["gate"]["status"] == "no baseline"
    server.behaviour = Behaviour(ttft_ms=40, itl_ms=8)
    second = bench(*argv, "--auto-profile")
    assert second.code == 3, second.err
    gate = json.loads(second.out)["atom"]["gate"]
    assert gate["status"] == "regression"
    assert gate["rerun_id"]
    runs = stored(tmp_path)
    assert len(runs) == 3
    assert server.profiling == ["/start_profile", "/stop_profile"]
    traced = [run for run in runs if any(a["kind"] == "trace" for a in run.artefacts)]
    assert [run.run_id for run in traced] == [gate["run_id"]]


def test_without_a_past_nothing_is_gated(bench: Callable[..., Ran]) -> None:
    for _ in range(2):
        ran = bench("-c", "1", "--repeats", "1", "--json", "--quiet")
        assert "gate" not in json.loads(ran.out)["atom"]


def test_a_dry_run_sends_nothing(bench: Callable[..., Ran], server: MockServer) -> None:
    ran = bench("-c", "1,4", "--dry-run", "--seed", "3")
    assert ran.code == 0
    assert "concurrency 1: 2 x 4 requests" in ran.out
    assert "input 16, output 4 tokens" in ran.out
    assert "prompt     0: token ids " in ran.out
    assert not [body for body in server.seen if body.get("stream")]
    gone = bench("--dry-run", url="http://127.0.0.1:1")
    assert gone.code == 0
    assert "not there now (no server answers" in gone.out


def test_a_server_that_goes_away_loses_nothing(
    bench: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summarize = metrics.summarize
    other = MockServer(FAST).__enter__()

    def last(*args: Any) -> Any:
        other.__exit__()
        return summarize(*args)

    monkeypatch.setattr(metrics, "summarize", last)
    ran = bench("-c", "1,2", "--json", url=other.url)
    assert ran.code == 4
    assert json.loads(ran.out)["completed"] == 4
    assert "problem: no server answers" in ran.err
    (run,) = stored(tmp_path)
    assert run.status == "interrupted"


MOCK_AS_RECIPE = """
import sys, time
sys.path[:0] = {path!r}
from mock_behaviour import Behaviour
from mock_server import MockServer
with MockServer(Behaviour(ttft_ms=2, itl_ms=1)) as server:
    print(f"00:00:00 INFO listening on {{server.url}}", flush=True)
    time.sleep({lives})
"""


def stand_in(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """`atom serve RECIPE` is this Python code."""
    argv = property(lambda _: ["-c", code])
    monkeypatch.setattr(server_process.RecipeServer, "argv", argv)


def test_a_recipe_s_server(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stand_in(monkeypatch, MOCK_AS_RECIPE.format(path=[str(Path(__file__).parent)], lives=60))
    recipe = tmp_path / "mine.toml"
    recipe.write_text("[bench]\nconcurrency = [2]\nrepeats = 1\n")
    ran = atom(capsys, "bench", str(recipe), *SMALL[:6], "-n", "4")
    assert ran.code == 0, ran.err
    (run,) = stored(tmp_path)
    assert run.name == "mine"
    assert run.load["concurrency"] == 2
    assert run.provenance["recipe"]["name"] == "mine"
    (log,) = [a["path"] for a in run.artefacts if a["kind"] == "log"]
    assert "listening on" in Path(log).read_text()


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (
            "import sys; sys.exit('atom: error: no such model')",
            "ended with exit code 1: no such model",
        ),
        ("import time; time.sleep(60)", "was not ready within 0.2 s"),
    ],
)
def test_a_recipe_s_server_that_does_not_come(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    code: str,
    says: str,
) -> None:
    stand_in(monkeypatch, code)
    recipe = tmp_path / "mine.toml"
    recipe.write_text("[bench]\nready_timeout_s = 0.2\n" if "sleep" in code else "")
    ran = atom(capsys, "bench", str(recipe), "--quiet")
    assert (ran.code, ran.out) == (2, "")
    assert says in ran.err
    assert ran.err.count("\n") == 1


def test_a_recipe_with_a_running_server_starts_none(
    bench: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stand_in(monkeypatch, "import sys; sys.exit('never')")
    recipe = tmp_path / "mine.toml"
    recipe.write_text("[bench]\nconcurrency = 2\n")
    assert bench(str(recipe)).code == 0
    assert stored(tmp_path)[0].load["concurrency"] == 2


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_keeps_what_was_measured(server: MockServer, tmp_path: Path, times: int) -> None:
    server.behaviour = Behaviour(ttft_ms=2, itl_ms=1 if times == 1 else 500)
    argv = ["--base-url", server.url, *SMALL, "-c", "2", "--duration", "60", "--warmup", "0"]
    argv[argv.index("-n") : argv.index("-n") + 2] = []
    process = subprocess.Popen(
        [sys.executable, "-m", "atom.cli", "bench", *argv, "--json", "--output-len", "50"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(ATOM_HISTORY=str(tmp_path / "h.db")),
    )
    with process:
        # Requests of the measured pass, beyond those that ask for lengths.
        long = [0]

        def running() -> bool:
            long[0] = sum(body.get("max_tokens") == 50 for body in server.seen)
            return long[0] >= (6 if times == 1 else 2)

        eventually(running)
        process.send_signal(signal.SIGINT)
        if times == 2:
            assert process.stderr is not None
            while "once more ends at once" not in process.stderr.readline():
                pass
            process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    if times == 1:
        assert json.loads(out)["atom"]["status"] == "interrupted"
        (run,) = stored(tmp_path)
        assert run.metrics["completed"].value >= 4
    else:
        assert stored(tmp_path) == []
