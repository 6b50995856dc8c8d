"""What is around an evaluation: its display, its form in the history and in lm-eval's files."""

from __future__ import annotations

import io
import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from eval_runs import FLEXIBLE, STRICT, choice_sample, gsm8k_sample
from rich.console import Console

from atom.bench.metrics import from_result_json
from atom.eval import live, lm_eval_files, report, results
from atom.eval.errors import EvalError
from atom.eval.session import Report
from atom.eval.types import EvalOutcome, Progress, Score, TaskResult
from atom.eval.verdict import Baseline, Judged

MOMENT = datetime(2026, 11, 21, 12, 0, tzinfo=timezone.utc)


def score(value: float, higher: bool = True) -> Score:
    return Score(value, 0.05, value - 0.1, value + 0.1, higher)


def outcome(**changed: Any) -> EvalOutcome:
    facts: dict[str, Any] = {
        "tasks": [
            TaskResult(
                "gsm8k", "task", "generate_until", 2, 1319, 5, "3.0",
                {STRICT: score(0.0), FLEXIBLE: score(0.5)}, FLEXIBLE, "p1",
            ),
            TaskResult(
                "choices", "group", "", 2, 10, 0, "1.0", {"acc,none": score(0.5)}, "acc,none",
                members=["arc_easy"],
            ),
        ],
        "samples": [gsm8k_sample(0, True), gsm8k_sample(1, False), choice_sample(0, True)],
        "config": {"limit": 2, "seed": 1234},
        "duration_s": 12.5,
        "answers": 7,
        "kept": 2,
        "prompt_tokens": 1000,
        "output_tokens": 50,
        "versions": {"lm_eval": "0.4.13"},
        "notes": ["a note of the client"],
    }  # fmt: skip
    return EvalOutcome(**{**facts, **changed})


def facts(**changed: Any) -> results.Facts:
    known: dict[str, Any] = {
        "run_id": "20261121-120000-abcdef",
        "name": "tiny",
        "model": "org/tiny",
        "started_at": MOMENT.isoformat(),
        "seed": 1234,
        "load": {"concurrency": 32},
        "provenance": {"server": {"kind": "atom"}, "packages": {"numpy": "2"}},
    }
    return results.Facts(**{**known, **changed})


def document(found: EvalOutcome) -> dict[str, Any]:
    return lm_eval_files.results_document(
        found,
        model="org/tiny",
        base_url="http://user:secret@host:1",
        chat=False,
        date=MOMENT.timestamp(),
    )


def judged(value: float = 0.5, **changed: Any) -> Judged:
    return Judged(task="gsm8k", metric=FLEXIBLE, score=score(value), **changed)


def test_a_run_of_the_history_holds_what_was_found() -> None:
    found = outcome()
    given = facts(legacy=document(found), server={"acceptance_rate": 0.6, "preemptions": 1.0})
    run = results.run_result(found, [judged(threshold=0.6)], given)
    assert list(run.metrics) == [
        f"gsm8k/{STRICT}", f"gsm8k/{FLEXIBLE}", "choices/acc,none", "acceptance_rate",
    ]  # fmt: skip
    assert run.metrics[f"gsm8k/{FLEXIBLE}"].low == 0.4
    assert (run.status, run.slo) == ("slo_missed", {f"gsm8k/{FLEXIBLE}": 0.6})
    assert run.workload["tasks"]["gsm8k"]["main_metric"] == FLEXIBLE
    assert run.workload["tasks"]["choices"]["members"] == ["arc_easy"]
    assert (run.workload["limit"], run.repeats[0].seed) == (2, 1234)
    assert run.provenance["packages"] == {"numpy": "2", "lm_eval": "0.4.13"}
    assert run.repeats[0].server["preemptions"] == 1.0
    whole = Report(run, found, [judged(threshold=0.6)], {}).as_json()
    del whole["atom"]["verdicts"], whole["atom"]["problems"]
    assert from_result_json(json.loads(json.dumps(whole))) == run


def test_the_seed_is_no_part_of_the_experiment_but_the_limit_is() -> None:
    def name(**config: Any) -> str:
        found = outcome(config=config)
        return results.run_result(found, [], facts()).fingerprint

    assert name(limit=2, seed=1) == name(limit=2, seed=2)
    assert name(limit=2) != name(limit=3)


def test_lm_eval_s_document() -> None:
    found = document(outcome())
    assert found["results"]["gsm8k"] == {
        "alias": "gsm8k",
        STRICT: 0.0,
        "exact_match_stderr,strict-match": 0.05,
        FLEXIBLE: 0.5,
        "exact_match_stderr,flexible-extract": 0.05,
    }
    assert found["groups"].keys() == {"choices"}
    assert found["group_subtasks"] == {"choices": ["arc_easy"]}
    assert found["n-samples"] == {"gsm8k": {"original": 1319, "effective": 2}}
    assert (found["versions"]["gsm8k"], found["n-shot"]["gsm8k"]) == (3.0, 5)
    assert "secret" not in json.dumps(found)


def test_lm_eval_s_lines_of_samples() -> None:
    made, choices = gsm8k_sample(1, False), choice_sample(0, True)
    lines = list(lm_eval_files.sample_lines([made, choices]))
    by_filter = {line["filter"]: line for line in lines[:2]}
    assert by_filter["flexible-extract"]["filtered_resps"] == ["2"]
    assert by_filter["strict-match"]["filtered_resps"] == ["[invalid]"]
    assert by_filter["strict-match"]["resps"] == [[" It is 2."]]
    assert by_filter["flexible-extract"]["exact_match"] == 0.0
    (choice,) = lines[2:]
    assert choice["metrics"] == ["acc", "acc_norm"]
    assert choice["target"] == "1"
    assert choice["resps"][1] == [["-2.0", "False"]]
    assert choice["filtered_resps"][1] == ["-2.0", "False"]
    assert choice["arguments"]["gen_args_1"] == {"arg_0": choices.prompt, "arg_1": " the second"}


def test_files_have_the_model_s_folder(tmp_path: Path) -> None:
    found = outcome()
    paths = lm_eval_files.write(tmp_path, document(found), found.samples, MOMENT)
    assert [path.parent.name for path in paths] == ["org__tiny"] * 3
    assert paths[0].name == "results_2026-11-21T12-00-00.json"
    assert len(paths[1].read_text().splitlines()) == 4  # two documents, two filters


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_asked(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EvalError, match=r"--output .*file"):
        lm_eval_files.check_folder(tmp_path / "file")
    lm_eval_files.check_folder(None)


def printed(width: int, one: Judged, **changed: Any) -> str:
    found = outcome(**changed)
    made = facts(legacy={}, notes=["cut answers"])
    shown = Report(results.run_result(found, [one], made), found, [one], {}, stored=True)
    out = io.StringIO()
    report.print_report(Console(file=out, width=width, highlight=False), shown)
    return out.getvalue()


@pytest.mark.parametrize("width", [80, 100, 140, 4096])
def test_the_report_fits_and_says_everything(width: int) -> None:
    baseline = Baseline(value=0.6, stderr=0.05, run_id="20261120-1")
    text = printed(width, judged(threshold=0.55, baseline=baseline))
    assert all(len(line) <= width for line in text.splitlines())
    flat = " ".join(text.split())
    for words in (
        "2 of 1,319", "flexible-extract", "0.5000", "0.0500", "≥ 0.55", "0.6000 (83.3%)",
        "is 0.0500 below its threshold 0.55, within the noise", "of 20261120-1",
        "note: a note of the client", "note: cut answers", "7 answers (2 kept)",
        "next: atom eval show 20261121-120000-abcdef --wrong",
        "atom eval compare 20261120-1 20261121-120000-abcdef",
    ):  # fmt: skip
        assert words in flat, words


def test_columns_that_nothing_stands_in_are_left_out() -> None:
    text = printed(140, judged())
    assert "Filter" in text
    assert "Threshold" not in text
    assert "Baseline" not in text


def progress(done: int = 0, **changed: Any) -> Progress:
    known: dict[str, Any] = {
        "phase": "scoring",
        "total": 100,
        "kept": 0,
        "retries": 0,
        "elapsed_s": 2.0,
        "tokens": 0,
        "detail": "copa",
    }
    return Progress(done=done, **{**known, **changed})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (progress(0), "0/100 (0%)"),
        (progress(40), "40/100 (40%), 20/s, about 3 s left"),
        # What a journal gave costs no time: it does not count for the speed.
        (progress(40, kept=36), "40/100 (40%), 36 kept, 2/s, about 30 s left"),
        (progress(100, tokens=5000), "100/100 (100%), 50/s, 2,500 tok/s"),
        (progress(3, total=None, retries=2), "3, 1.5/s, 2 retries"),
    ],
)
def test_progress_in_words(given: Progress, words: str) -> None:
    assert live.counts(given) == words


def test_the_time_left_runs_down_between_batches() -> None:
    pace = live.Pace()
    said = []
    for elapsed_s, done in ((1.0, 0), (2.0, 20), (3.0, 20), (4.0, 20), (8.0, 80)):
        now = progress(done, elapsed_s=elapsed_s)
        said.append(live.counts(now, pace.take(now)).partition(", ")[2])
    assert said == [
        "",
        "10/s, about 8 s left",
        "10/s, about 7 s left",
        "10/s, about 6 s left",
        "10/s, about 2 s left",
    ]
    other = progress(20, detail="gsm8k", elapsed_s=1.0)
    assert pace.take(other) == 1.0


def test_a_pipe_gets_a_line_every_ten_seconds() -> None:
    out, now = io.StringIO(), [0.0]
    shown = live.PlainDisplay(Console(file=out, width=200), lambda: now[0])
    for moment in (0.0, 9.0, 10.5, 12.0, 21.0):
        now[0] = moment
        shown.progress(progress(int(moment)))
    assert out.getvalue().splitlines() == [
        "scoring copa: 10/100 (10%), 5/s, about 18 s left",
        "scoring copa: 21/100 (21%), 10/s, about 8 s left",
    ]


def test_a_terminal_gets_one_bar() -> None:
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=True, color_system=None)
    with live.LiveDisplay(console) as shown:
        shown.say("[brackets] are text")
        shown.progress(progress(50))
    assert "[brackets] are text" in out.getvalue()
    assert "50/100 (50%)" in out.getvalue()


def test_quiet_says_only_what_matters() -> None:
    out = io.StringIO()
    shown = live.QuietDisplay(Console(file=out, width=80), lambda: 1e9)
    shown.say("starting")
    shown.waiting("the server", 3.0)
    shown.progress(progress(1))
    shown.say("it broke", important=True)
    assert out.getvalue() == "it broke\n"
