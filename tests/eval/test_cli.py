"""`atom eval` as a user meets it, against a server of known answers: results, codes, mistakes."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import Ran, atom
from scoring_server import Manners, ScoringServer

from atom.bench.history import History
from atom.bench.history.importers import read_results
from atom.bench.types import RunResult
from atom.eval import acceptance, serving, session
from atom.eval.client import link
from atom.eval.journal import find_unfinished
from atom.eval.records import read_samples
from atom.eval.types import Endpoint, Progress

HEARD = "mock-model"
ONCE = ("--max-retries", "0")


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [n for n in os.environ if n.startswith(("ATOM_", "OPENAI_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.setenv("ATOM_HISTORY", str(tmp_path / "h.db"))
    monkeypatch.setattr(link, "HEALTH_PAUSES_S", (0.0,))


@pytest.fixture
def server() -> Iterator[ScoringServer]:
    with ScoringServer(Manners(max_model_len=4096)) as made:
        yield made


@pytest.fixture
def evaluate(server: ScoringServer, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    def run(*argv: str, url: str = server.url) -> Ran:
        return atom(capsys, "eval", *argv, "--url", url)

    return run


def stored(path: Path) -> list[RunResult]:
    with History(path / "h.db") as history:
        return history.find()


def test_a_run_is_reported_kept_and_can_be_read(
    evaluate: Callable[..., Ran], tmp_path: Path
) -> None:
    ran = evaluate("copa", "--limit", "4", "--label", "mine", "--metadata", "a=1,b=2")
    assert ran.code == 0, ran.err
    assert "scoring" not in ran.out
    (run,) = stored(tmp_path)
    assert (run.kind, run.name, run.model, run.status) == ("eval", "mine", HEARD, "ok")
    assert run.provenance["metadata"] == {"a": "1", "b": "2"}
    assert run.provenance["server"]["kind"] == "atom"
    assert run.workload["tasks"]["copa"]["samples"] == 4
    value = run.metrics["copa/acc,none"]
    assert 0 <= value.low <= value.value <= value.high <= 1
    assert f"{value.value:.4f}" in ran.out
    assert "4 of 100" in ran.out
    assert f"next: atom eval show {run.run_id} --wrong" in ran.out
    with History(tmp_path / "h.db") as history:
        samples = read_samples(history, run.run_id)
    assert [s.doc_id for s in samples] == [0, 1, 2, 3]
    assert sum(s.metrics["acc,none"] for s in samples) / 4 == value.value
    assert find_unfinished(tmp_path / "eval") == []


def test_json_has_stdout_to_itself(evaluate: Callable[..., Ran]) -> None:
    ran = evaluate("copa", "--limit", "3", "--json", "--threshold", "copa=0.01")
    document = json.loads(ran.out)
    assert document["n-samples"]["copa"] == {"original": 100, "effective": 3}
    value = document["results"]["copa"]["acc,none"]
    assert document["atom"]["metrics"]["copa/acc,none"]["value"] == value
    assert document["atom"]["slo"] == {"copa/acc,none": 0.01}
    (told,) = document["atom"]["verdicts"]
    assert told["threshold"] == 0.01
    assert ran.code == (0 if value >= 0.01 else 3)
    assert "copa" in ran.err
    quiet = evaluate("copa", "--limit", "3", "--json", "--quiet")
    assert quiet.err == ""
    assert json.loads(quiet.out)["results"]["copa"]["acc,none"] == value


def test_below_its_threshold_is_exit_code_3(evaluate: Callable[..., Ran], tmp_path: Path) -> None:
    ran = evaluate("copa", "--limit", "4", "--threshold", "copa=1.1")
    assert ran.code == 3
    assert "below its threshold 1.1" in ran.out
    assert "noise" in ran.out
    (run,) = stored(tmp_path)
    assert (run.status, run.slo) == ("slo_missed", {"copa/acc,none": 1.1})


def test_a_recipe_s_tables_name_tasks_and_thresholds(
    evaluate: Callable[..., Ran], tmp_path: Path
) -> None:
    recipe = tmp_path / "tiny.toml"
    recipe.write_text('[eval]\nlimit = 2\n[eval.copa]\nthreshold = 1.5\nmetric = "acc"\n')
    ran = evaluate("--recipe", str(recipe))
    assert ran.code == 3
    (run,) = stored(tmp_path)
    assert (run.name, run.workload["tasks"]["copa"]["samples"]) == ("tiny", 2)
    assert run.provenance["recipe"]["name"] == "tiny"
    # A flag goes before it; the file may stand where tasks stand.
    assert evaluate(str(recipe), "--threshold", "0").code == 0


def test_a_baseline_that_is_a_run_leads_to_the_paired_test(
    evaluate: Callable[..., Ran], tmp_path: Path
) -> None:
    assert evaluate("lambada", "--limit", "2").code == 0
    (first,) = stored(tmp_path)
    ran = evaluate("lambada", "--limit", "2", "--baseline", f"lambada={first.run_id}")
    assert ran.code == 0, ran.err
    value = first.metrics["lambada_openai/acc,none"].value
    assert (
        f"equals its baseline {value:g} of {first.run_id}; of the same documents 0 won, 0 lost, "
        in ran.out
    )
    assert "McNemar's exact test p = 1" in ran.out
    (last,) = (run for run in stored(tmp_path) if run.run_id != first.run_id)
    assert f"atom eval compare {first.run_id} {last.run_id}" in ran.out
    (told,) = last.provenance["eval"]["baselines"].values()
    assert told["run_id"] == first.run_id
    assert first.metrics.keys() == last.metrics.keys()
    assert value == last.metrics["lambada_openai/acc,none"].value


def test_a_baseline_may_be_a_file(evaluate: Callable[..., Ran], tmp_path: Path) -> None:
    made = evaluate(
        "copa", "--limit", "2", "--json", "--quiet", "--history", str(tmp_path / "o.db")
    )
    path = tmp_path / "before.json"
    path.write_text(made.out)
    ran = evaluate("copa", "--limit", "2", "--baseline", f"copa={path}")
    assert ran.code == 0, ran.err
    run_id = json.loads(made.out)["atom"]["run_id"]
    assert f"of {run_id}, within the noise of two independent samples" in ran.out
    assert len(stored(tmp_path)) == 1


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (["copaa"], 2, "no task is called 'copaa': nearest are copa"),
        ([], 2, "no task is named: atom eval gsm8k"),
        (["copa", "--threshold", "arc_easy=1"], 2, "arc_easy is not evaluated here"),
        (["copa", "--baseline", "copa=20200101-1"], 2, "20200101-1"),
        (["copa", "--limit", "none"], 2, "--limit none: write a number of documents"),
        (["copa", "--model", "other"], 1, "has no model other"),
        (["copa", "--use_cache", "x"], 2, "--use-cache is refused: answers are kept"),
        (["copa", "--limt", "3"], 2, "unknown option --limt (did you mean --limit?)"),
        (["copa", "--resume"], 2, "nothing to resume: no unfinished evaluation of copa"),
        (["a.toml", "--recipe", "b.toml"], 2, "several recipes: a.toml, b.toml"),
        (["blimp_subset", "--chat"], 2, "chat"),
    ],
)
def test_mistakes_are_one_line(
    evaluate: Callable[..., Ran], tmp_path: Path, argv: list[str], code: int, says: str
) -> None:
    ran = evaluate(*argv)
    assert (ran.code, ran.out) == (code, "")
    lines = [line for line in ran.err.splitlines() if line.startswith("atom: error: ")]
    assert len(lines) == 1
    assert says in lines[0]
    assert stored(tmp_path) == []
    assert find_unfinished(tmp_path / "eval") == []


def test_nobody_there(evaluate: Callable[..., Ran]) -> None:
    ran = evaluate("copa", url="http://127.0.0.1:9")
    assert ran.code == 1
    assert "no server answers at http://127.0.0.1:9" in ran.err


def test_a_server_that_dies_leaves_its_answers_to_resume(
    evaluate: Callable[..., Ran], server: ScoringServer, tmp_path: Path
) -> None:
    flags = ["copa", "--limit", "8", "--batch-size", "1", "--concurrency", "1", *ONCE]
    server.manners.fault = lambda number: "hang up" if number >= 6 else None
    server.manners.health = 500
    ran = evaluate(*flags, "--threshold", "copa=0")
    assert ran.code == 1
    assert "--resume" in ran.err
    assert stored(tmp_path) == []
    (left,) = find_unfinished(tmp_path / "eval")
    assert left.answers > 0

    asked = len(server.asked)
    server.manners = Manners(max_model_len=4096)
    ran = evaluate("--resume", "--json")
    assert ran.code == 0, ran.err
    assert f"resuming {left.header.run_id}: {left.answers} answers are kept" in ran.err
    document = json.loads(ran.out)
    assert document["atom"]["run_id"] == left.header.run_id
    assert document["atom"]["slo"] == {"copa/acc,none": 0}  # the thresholds are the first run's
    assert document["atom"]["provenance"]["eval"]["kept"] == left.answers
    scored = [body for _, body in server.asked[asked:] if body.get("echo")]
    assert sum(len(body["prompt"]) for body in scored) == 16 - left.answers
    assert find_unfinished(tmp_path / "eval") == []

    undisturbed = evaluate(*flags, "--json", "--quiet")
    assert json.loads(undisturbed.out)["results"] == document["results"]


def test_resuming_with_other_settings_is_refused(
    evaluate: Callable[..., Ran], server: ScoringServer
) -> None:
    server.manners.fault = lambda number: "hang up" if number >= 6 else None
    server.manners.health = 500
    evaluate("copa", "--limit", "8", "--batch-size", "1", "--concurrency", "1", *ONCE)
    server.manners = Manners(max_model_len=4096)
    ran = evaluate("copa", "--limit", "9", "--resume")
    assert ran.code == 2
    assert "was asked otherwise: limit 8 -> 9" in ran.err
    told = evaluate("copa", "--limit", "8")
    assert told.code == 0
    assert "--resume would go on with it" in told.err


class Shown:
    """A display that keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.phases: list[str] = []

    def say(self, text: str, *, important: bool = False) -> None:
        self.said.append(text)

    def waiting(self, what: str, waited_s: float) -> None:
        self.said.append(what)

    def progress(self, progress: Progress, /) -> None:
        self.phases.append(progress.phase)


def test_a_user_who_stops_keeps_what_was_answered(
    server: ScoringServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from atom.cli.eval_run import _request
    from atom.eval.errors import EvalStopped

    stop, shown = threading.Event(), Shown()

    def tenth_stops(number: int) -> None:
        if number == 9:
            server.manners.hold = threading.Event()
            stop.set()

    server.manners.fault = tenth_stops
    flags = {"base_url": server.url, "limit": "40", "concurrency": "1", "batch_size": "1"}
    request = _request(["copa"], None, flags, None, False)
    with pytest.raises(EvalStopped, match="--resume") as caught:
        session.Evaluation(request, shown, stop).run()
    assert caught.value.exit_code == 130
    (left,) = find_unfinished(tmp_path / "eval")
    assert left.answers == 9
    assert "scoring" in shown.phases
    assert server.manners.hold is not None
    server.manners.hold.set()
    ran = atom(capsys, "eval", "--resume", "--json", "--quiet")
    assert json.loads(ran.out)["atom"]["provenance"]["eval"]["kept"] == left.answers


def test_keys_and_headers_are_never_kept(
    evaluate: Callable[..., Ran], server: ScoringServer, tmp_path: Path
) -> None:
    server.manners.key = "hunter2"
    server.manners.fault = lambda number: "hang up" if number >= 6 else None
    server.manners.health = 500
    secret = ["--api-key", "hunter2", "--header", "X-Token=hunter3"]
    argv = ["copa", "--limit", "8", "--batch-size", "1", "--concurrency", "1", *ONCE]
    assert evaluate(*argv, *secret).code == 1
    server.manners = Manners(max_model_len=4096, key="hunter2")
    kept = b"".join(path.read_bytes() for path in (tmp_path / "eval").iterdir())
    assert b"hunter" not in kept
    assert "wants an API key" in evaluate("--resume").err
    ran = evaluate("--resume", *secret, "--json")
    assert ran.code == 0, ran.err
    assert "hunter" not in ran.out + ran.err


def test_lm_eval_s_files_are_written_and_taken_in(
    evaluate: Callable[..., Ran], tmp_path: Path
) -> None:
    ran = evaluate("copa", "--limit", "3", "--output_path", str(tmp_path / "out"), "--log_samples")
    assert ran.code == 0, ran.err
    folder = tmp_path / "out" / HEARD
    (results,) = folder.glob("results_*.json")
    (samples,) = folder.glob("samples_copa_*.jsonl")
    assert str(results) in ran.out
    (run,) = stored(tmp_path)
    (loaded,) = read_results(results)
    assert loaded.run.model == run.model
    assert loaded.run.metrics["copa/acc,none"].value == run.metrics["copa/acc,none"].value
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    assert [line["doc_id"] for line in lines] == [0, 1, 2]
    assert all(len(line["resps"]) == 2 for line in lines)
    assert sum(line["acc"] for line in lines) / 3 == run.metrics["copa/acc,none"].value


def test_accepted_drafts_stand_beside_the_scores(
    evaluate: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pages = [
        {"draft_tokens": 0.0, "accepted_tokens": 0.0, "drafts": 0.0},
        {"draft_tokens": 200.0, "accepted_tokens": 50.0, "drafts": 100.0},
    ]

    def scrape(endpoint: Endpoint) -> dict[str, float]:
        return pages.pop(0)

    monkeypatch.setattr(acceptance, "scrape", scrape)
    ran = evaluate("copa", "--limit", "2", "--min-acceptance", "0.5")
    assert ran.code == 3
    assert "25.0% of the draft tokens accepted, 1.50 tokens per forward pass" in ran.out
    assert "25.0%, at least 50.0% are asked for" in ran.out
    (run,) = stored(tmp_path)
    assert run.metrics["acceptance_rate"].value == 0.25
    assert run.metrics["accept_length"].value == 1.5
    assert (run.status, run.slo["acceptance_rate"]) == ("slo_missed", 0.5)


class FakeRecipeServer:
    """A recipe's server, of which only the process is made up."""

    url = ""
    dead: str | None = None
    entered: list[Any]

    def __init__(self, recipe: Path, log: Path, **facts: Any) -> None:
        self.log = log
        self.stopped = facts["stopped"]
        self.entered.append((recipe, facts["args"]))

    def __enter__(self) -> FakeRecipeServer:
        assert self.stopped() is False
        return self

    def __exit__(self, *_: object) -> None:
        self.entered.append("stopped")

    def died(self) -> str | None:
        return self.dead


@pytest.fixture
def recipe_server(server: ScoringServer, monkeypatch: pytest.MonkeyPatch) -> type[FakeRecipeServer]:
    made = type("Made", (FakeRecipeServer,), {"url": server.url, "entered": []})
    monkeypatch.setattr(serving, "RecipeServer", made)
    return made


def test_a_recipe_s_server_is_started_and_stopped(
    recipe_server: type[FakeRecipeServer], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    recipe = tmp_path / "tiny.toml"
    recipe.write_text("[eval.copa]\nlimit = 2\n")
    argv = ["eval", "--recipe", str(recipe), "--server-args", "--dtype float32"]
    ran = atom(capsys, *argv)
    assert ran.code == 0, ran.err
    assert recipe_server.entered == [(recipe, ["--dtype", "float32"]), "stopped"]
    (run,) = stored(tmp_path)
    assert run.load["server_args"] == "--dtype float32"
    assert [a["kind"] for a in run.artefacts] == ["log"]


def test_why_a_recipe_s_server_died_is_what_is_told(
    recipe_server: type[FakeRecipeServer],
    server: ScoringServer,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    recipe = tmp_path / "tiny.toml"
    recipe.write_text("[eval.copa]\nlimit = 8\n")
    server.manners.fault = lambda number: "hang up"
    server.manners.health = 500
    recipe_server.dead = "the server of tiny.toml ended by SIGKILL"
    ran = atom(capsys, "eval", "--recipe", str(recipe), *ONCE)
    assert ran.code == 1
    assert "atom: error: the server of tiny.toml ended by SIGKILL; " in ran.err
    assert recipe_server.entered[-1] == "stopped"


def test_a_recipe_that_is_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    ran = atom(capsys, "eval", "copa", "--recipe", str(tmp_path / "no.toml"))
    assert ran.code == 2
    assert "cannot read the recipe" in ran.err


def test_data_that_is_missing_ends_the_wait_for_a_server(
    recipe_server: type[FakeRecipeServer],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    from atom.bench.server_process import Stopped
    from atom.eval import tasks
    from atom.eval.errors import EvalError

    def missing(*_: object, **__: object) -> None:
        raise EvalError("its data set is not there")

    def never_ready(self: FakeRecipeServer) -> FakeRecipeServer:
        deadline = threading.Event()
        for _ in range(1000):
            if self.stopped():
                raise Stopped
            deadline.wait(0.01)
        raise AssertionError("nobody ended the wait")

    monkeypatch.setattr(tasks, "load_tasks", missing)
    monkeypatch.setattr(recipe_server, "__enter__", never_ready)
    recipe = tmp_path / "tiny.toml"
    recipe.write_text("[eval.copa]\n")
    ran = atom(capsys, "eval", "--recipe", str(recipe))
    assert (ran.code, ran.err.splitlines()[-1]) == (2, "atom: error: its data set is not there")
