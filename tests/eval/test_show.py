"""Evaluations as people read them: the list, a run's scores, its samples; lm-eval's files, too."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import atom
from eval_runs import FLEXIBLE, SHOT, STRICT, choice_sample, eval_run, gsm8k_sample
from rich.console import Console

from atom.bench.errors import BenchError
from atom.bench.history import History
from atom.bench.history.importers import read_results
from atom.eval.records import add_run, read_samples
from atom.eval.select import is_right
from atom.eval.show import print_sample
from atom.eval.stored import find
from atom.eval.types import Sample
from atom.eval.wording import said


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A run of two tasks, 10 of 30 and 15 of 30 wrong, beside a benchmark run."""
    path = tmp_path / "h.db"
    samples = [gsm8k_sample(n, n % 3 != 0) for n in range(30)]
    samples += [choice_sample(n, n % 2 == 0) for n in range(30)]
    with History(path) as history:
        add_run(history, eval_run(samples, slo={f"gsm8k/{FLEXIBLE}": 0.7}), samples)
        history.add(eval_run(samples, 1, kind="bench"))
    return path


def show(capsys: pytest.CaptureFixture[str], stored: Path, *arguments: str) -> str:
    ran = atom(capsys, "eval", "show", *arguments, "--history", str(stored))
    assert (ran.code, ran.err) == (0, ""), ran.err
    return ran.out


def test_the_list_has_evaluations_only(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = atom(capsys, "eval", "list", "--history", str(stored)).out
    assert out.count("20261121-12") == 1
    rows = [line.split() for line in out.splitlines()]
    assert rows[1][2:] == ["gsm8k", FLEXIBLE, "0.6667", "±0.1599", "30", "0.7", "below", "5"]
    assert rows[2] == ["arc_easy", "acc,none", "0.5000", "±0.1685", "30", "5"]
    told = json.loads(atom(capsys, "eval", "list", "--json", "--history", str(stored)).out)
    assert [run["kind"] for run in told] == ["eval"]
    nothing = atom(capsys, "eval", "list", "--task", "mmlu", "--history", str(stored))
    assert (nothing.code, nothing.out) == (0, "")
    assert "no evaluation in" in nothing.err


def test_without_options_the_scores_are_shown(
    stored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = show(capsys, stored)
    assert re.search(rf"gsm8k +30 +5 +{FLEXIBLE} +0\.6667 +0\.\d+ +0\.\d+ +0\.7 below", out)
    assert "acc_norm,none" in out
    assert "--wrong shows the samples" in out


def test_wrong_samples_are_told_by_the_main_metric(
    stored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = show(capsys, stored, "--wrong", "--task", "gsm8k", "--limit", "3")
    assert re.findall(r"^gsm8k (\d+) +wrong", out, re.M) == ["0", "3", "6"]
    assert f"gsm8k: 3 of 10 wrong samples shown; 30 in all, by {FLEXIBLE}" in out
    by_strict = show(capsys, stored, "--wrong", "--task", "gsm8k", "--metric", STRICT)
    assert "10 of 30 wrong samples shown, by" in by_strict
    right = show(capsys, stored, "--right", "--limit", "0")
    assert "gsm8k: 20 of 20 right samples shown" in right
    assert "arc_easy: 15 of 15 right samples shown" in right


def test_a_sample_that_was_generated(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = show(capsys, stored, "--wrong", "--task", "gsm8k", "--limit", "1")
    assert out.splitlines()[:8] == [
        f"gsm8k 0  wrong  {FLEXIBLE} 0  {STRICT} 0",
        "  question Question: What is 0?",
        "           Answer:",
        "  target   It is 0.",
        "           #### 0",
        "  answer    It is 1.",
        "  filter   flexible-extract: 1",
        "  filter   strict-match: [invalid]",
    ]
    whole = show(capsys, stored, "--task", "gsm8k", "--sample", "0")
    assert whole.splitlines()[1] == f"  prompt   {SHOT.splitlines()[0]}"


def test_a_sample_of_choices(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = show(capsys, stored, "--task", "arc_easy", "--sample", "1")
    rows = [line.split() for line in out.splitlines()]
    assert ["chosen", "-4.000", "-0.444", "the", "first"] in rows
    assert ["right", "-6.000", "-0.600", "the", "second"] in rows
    assert ["-7.000", "-0.700", "the", "fourth"] in rows


def test_choices_by_length_are_told_apart() -> None:
    """acc takes the short one, acc_norm the long one."""
    answers = [
        {"text": " ab", "logprob": -2.0, "is_greedy": False},
        {"text": " abcdefgh", "logprob": -4.0, "is_greedy": False},
    ]
    sample = choice_sample(1, False, answers=answers, gold=1, chosen=0)
    assert (said(sample, "acc,none"), said(sample, "acc_norm,none")) == ("ab", "abcdefgh")
    out = io.StringIO()
    print_sample(Console(file=out, width=80, no_color=True), sample, "acc,none")
    rows = [line.split() for line in out.getvalue().splitlines()]
    assert ["chosen", "-2.000", "-1.000", "ab"] in rows
    assert ["right,", "chosen", "per", "char", "-4.000", "-0.500", "abcdefgh"] in rows


def test_what_was_said_is_what_the_metrics_filter_made_of_it() -> None:
    sample = gsm8k_sample(3, True, filtered={"strict-match": "[invalid]", "flexible-extract": "3"})
    assert said(sample) == said(sample, FLEXIBLE) == "3"
    assert said(sample, STRICT) == "[invalid]"


def test_grep_looks_at_questions_and_answers(
    stored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = show(capsys, stored, "--grep", r"what is 1\d\?", "--limit", "0")
    assert re.findall(r"^gsm8k (\d+)", out, re.M) == [str(n) for n in range(10, 20)]
    assert "arc_easy" not in out
    ran = atom(capsys, "eval", "show", "--grep", "0 [+] 0", "--history", str(stored))
    assert "no sample has" in ran.err, "the examples are not searched: all prompts share them"


def test_samples_as_json(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(show(capsys, stored, "--wrong", "--json", "--limit", "2"))
    gsm8k, arc = found["samples"]
    assert (gsm8k["task"], gsm8k["total"], gsm8k["matching"]) == ("gsm8k", 30, 10)
    assert [sample["doc_id"] for sample in gsm8k["shown"]] == [0, 3]
    assert arc["shown"][0]["answers"][1]["logprob"] == -6.0
    assert json.loads(show(capsys, stored, "--json"))["samples"] == {"gsm8k": 30, "arc_easy": 30}


@pytest.mark.parametrize("width", [80, 100])
def test_long_texts_are_folded_and_cut(width: int) -> None:
    sample = gsm8k_sample(1, False, answers=[{"text": "word " * 400}], finish_reason="length",
                          output_tokens=256)  # fmt: skip
    out = io.StringIO()
    print_sample(Console(file=out, width=width, no_color=True), sample, FLEXIBLE)
    said = out.getvalue()
    assert max(map(len, said.splitlines()[1:])) <= width
    assert "(800 more characters; --full shows all)" in said
    assert "cut at the token limit (256 tokens)" in said
    whole = io.StringIO()
    print_sample(Console(file=whole, width=width, no_color=True), sample, FLEXIBLE, full=True)
    assert whole.getvalue().count("word") == 400


def test_brackets_are_no_markup() -> None:
    out = io.StringIO()
    sample = gsm8k_sample(1, False, prompt="[red]what?[/red] \x1b[2J", answers=[{"text": "[/b]"}])
    print_sample(Console(file=out, width=80), sample, FLEXIBLE)
    assert "[red]what?[/red]" in out.getvalue()
    assert "\x1b[2J" not in out.getvalue(), "no answer of a model steers the terminal"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--sample", "3"], "--sample 3: of which task. Add --task gsm8k or arc_easy"),
        (["--sample", "99", "--task", "gsm8k"], "gsm8k has 30 samples, 0 to 29"),
        (["--task", "gsm"], r"has samples of gsm8k, arc_easy \(did you mean gsm8k\?\)"),
        (["--wrong", "--metric", "f1", "--task", "gsm8k"], "--metric f1: gsm8k has exact_match"),
        (["--wrong", "--right"], "are no sample"),
        (["--grep", "("], "not a regular expression"),
        (["20261121-13", "--wrong"], r"is no evaluation \(kind bench\)"),
    ],
)
def test_mistakes_are_one_line(
    stored: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    ran = atom(capsys, "eval", "show", *arguments, "--history", str(stored))
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert re.search(told, ran.err), ran.err


def test_a_run_without_samples_says_what_it_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "h.db"
    with History(path) as history:
        history.add(eval_run([gsm8k_sample(1, True)]))
    assert "no samples are stored" in show(capsys, path)
    ran = atom(capsys, "eval", "show", "--wrong", "--history", str(path))
    assert ran.code == 2
    assert "lm-eval's --log_samples" in ran.err


@pytest.mark.parametrize(("value", "right"), [(1.0, True), (0.0, False), (0.4, None)])
def test_right_and_wrong(value: float, right: bool | None) -> None:
    sample = gsm8k_sample(1, True, metrics={"acc,none": value, "brier_score,none": 0.0})
    assert is_right(sample, "acc,none") is right
    assert is_right(sample, "brier_score,none") is None
    assert is_right(sample, "f1,none") is None


# lm-eval's files

DATE = "2026-11-21T19-19-04.321333"


def lm_eval_generated(number: int, chosen: str, value: float) -> dict[str, Any]:
    """A line of samples_gsm8k_*.jsonl as lm-eval 0.4.13 writes it: one for each filter."""
    return {
        "doc_id": number,
        "doc": {"question": f"What is {number}?", "answer": f"#### {number}"},
        "target": f"It is {number}.\n#### {number}",
        "arguments": {
            "gen_args_0": {
                "arg_0": f"{SHOT}Question: What is {number}?\nAnswer:",
                "arg_1": {"until": ["Question:"], "do_sample": False},
            }
        },
        "resps": [[" It is 7."]],
        "filtered_resps": ["7"],
        "filter": chosen,
        "metrics": ["exact_match"],
        "doc_hash": f"{number:064x}",
        "prompt_hash": "p",
        "target_hash": "t",
        "exact_match": value,
    }


def lm_eval_choice(number: int, gold: int) -> dict[str, Any]:
    """A line of a task of choices; scores are text, the target is the choice's number."""
    responses = [["-4.5", "False"], ["-2.25", "True"]]
    return {
        "doc_id": number,
        "doc": {"query": f"Which is {number}?"},
        "target": str(gold),
        "arguments": {
            f"gen_args_{i}": {"arg_0": f"Question: Which is {number}?\nAnswer:", "arg_1": text}
            for i, text in enumerate((" the first", " the second"))
        },
        "resps": [[response] for response in responses],
        "filtered_resps": responses,
        "filter": "none",
        "metrics": ["acc", "acc_norm", "f1"],
        "doc_hash": f"a{number:063x}",
        "prompt_hash": "p",
        "target_hash": "t",
        "acc": float(gold == 1),
        "acc_norm": gold == 1,
        "f1": [1, gold],
    }


def write_lines(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return path


@pytest.fixture
def lm_eval(tmp_path: Path) -> Path:
    """A folder as `lm-eval --output_path --log_samples` leaves it."""
    folder = tmp_path / "org__tiny"
    folder.mkdir()
    results = {
        "results": {
            "gsm8k": {FLEXIBLE: 0.5, "exact_match_stderr,flexible-extract": 0.1},
            "arc_easy": {"acc,none": 0.5, "acc_stderr,none": 0.1},
        },
        "group_subtasks": {"both": ["gsm8k", "arc_easy"], "gsm8k": []},
        "configs": {},
        "n-shot": {"gsm8k": 5, "arc_easy": 0},
        "n-samples": {"gsm8k": {"original": 1319, "effective": 4}},
        "config": {"model": "local-completions", "model_args": {"model": "org/tiny"}},
        "date": 1.79e9,
    }  # fmt: skip
    (folder / f"results_{DATE}.json").write_text(json.dumps(results))
    generated = [
        lm_eval_generated(n, chosen, float(chosen == "flexible-extract" and n % 2))
        for chosen in ("strict-match", "flexible-extract")
        for n in range(4)
    ]
    write_lines(folder / f"samples_gsm8k_{DATE}.jsonl", generated)
    write_lines(
        folder / f"samples_arc_easy_{DATE}.jsonl", [lm_eval_choice(n, n % 2) for n in (0, 1)]
    )
    write_lines(folder / "samples_gsm8k_2020-01-01T00-00-00.000000.jsonl", generated[:1])
    return folder


def test_samples_come_with_lm_evals_results(
    lm_eval: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "h.db"
    for told in ("1 run added", "0 runs added, 1 already there"):
        ran = atom(
            capsys, "bench", "import", str(lm_eval / f"results_{DATE}.json"), "--history", str(path)
        )
        assert told in ran.out
    with History(path) as history:
        (run,) = history.find()
        assert history.evaluated(run.run_id) == {"arc_easy": 2, "gsm8k": 4}
        assert run.workload["tasks"]["both"] == {"members": ["gsm8k", "arc_easy"]}
        gsm8k = read_samples(history, run.run_id, "gsm8k")
        assert gsm8k[1] == Sample(
            task="gsm8k",
            doc_id=1,
            doc_hash=f"{1:064x}",
            prompt=f"{SHOT}Question: What is 1?\nAnswer:",
            target="It is 1.\n#### 1",
            metrics={STRICT: 0.0, FLEXIBLE: 1.0},
            answers=[{"text": " It is 7."}],
            filtered={"strict-match": "7", "flexible-extract": "7"},
            doc={"question": "What is 1?", "answer": "#### 1"},
        )
        arc = read_samples(history, run.run_id, "arc_easy")
        assert arc[1].answers == [
            {"text": " the first", "logprob": -4.5, "is_greedy": False},
            {"text": " the second", "logprob": -2.25, "is_greedy": True},
        ]
        assert (arc[0].gold, arc[0].chosen, arc[0].target) == (0, 1, " the first")
        assert arc[1].metrics == {"acc,none": 1.0, "acc_norm,none": 1.0}


def test_samples_that_lacked_come_later(lm_eval: Path, tmp_path: Path) -> None:
    results, arc = lm_eval / f"results_{DATE}.json", lm_eval / f"samples_arc_easy_{DATE}.jsonl"
    text = arc.read_text()
    arc.unlink()
    with History(tmp_path / "h.db") as history:
        history.add(*read_results(results)[0])
        arc.write_text(text)
        (again,) = read_results(arc)
        assert history.add(*again) is False
        assert history.evaluated(again.run.run_id) == {"arc_easy": 2, "gsm8k": 4}


def test_samples_alone_are_a_run(lm_eval: Path) -> None:
    path = lm_eval / "samples_gsm8k_2020-01-01T00-00-00.000000.jsonl"
    (loaded,) = read_results(path, model="org/tiny")
    assert (loaded.run.kind, loaded.run.model) == ("eval", "org/tiny")
    assert loaded.run.metrics[f"gsm8k/{STRICT}"].value == 0.0
    assert loaded.run.run_id.startswith("20200101-000000-")


def test_a_run_of_lm_eval_is_compared_with_ours(
    lm_eval: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By its files, and by what was imported; documents of other files pair by their question."""
    path = tmp_path / "h.db"
    ours = [gsm8k_sample(n, n != 2, doc_hash=f"ours {n}" if n else f"{0:064x}") for n in range(5)]
    with History(path) as history:
        add_run(history, eval_run(ours), ours)
    samples = str(lm_eval / f"samples_gsm8k_{DATE}.jsonl")
    command = ("eval", "compare", samples, "last", "--task", "gsm8k", "--history", str(path))
    out = atom(capsys, *command).out
    assert re.search(r"gsm8k +4 +50\.00% +75\.00% +\+25\.00", out), out
    assert "3 of 4 pairs were found by question" in out
    assert "0 samples of A and 1 of B have no partner" in out
    assert atom(capsys, "bench", "list", "--json", "--history", str(path)).out.count("run_id") == 1


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("[1, 2]", "not a sample of lm-eval"),
        ('{"doc_id": 0}', "not a sample of lm-eval"),
        ("{", "not JSON"),
        (json.dumps({**lm_eval_choice(0, 1), "resps": [["x"]]}), None),
        (json.dumps({**lm_eval_choice(0, 1), "doc_id": "one"}), "a damaged sample"),
        (json.dumps({**lm_eval_choice(0, 1), "resps": [[["-1", "True"]]]}), "a damaged sample"),
        (json.dumps({**lm_eval_choice(0, 1), "arguments": [[]]}), "a damaged sample"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path: Path, line: str, told: str | None) -> None:
    path = tmp_path / f"samples_t_{DATE}.jsonl"
    path.write_text(line)
    if told is None:
        assert read_results(path)[0].evaluated["t"][0]["answers"] == [{"text": "x"}]
        return
    with pytest.raises(BenchError, match=told) as caught:
        read_results(path)
    assert "\n" not in str(caught.value)


def test_last_and_names_mean_evaluations(stored: Path) -> None:
    with History(stored) as history:
        newest = find(history, "last")
        assert newest.run.kind == "eval"
        assert newest.counts == {"gsm8k": 30, "arc_easy": 30}, "in the run's order"
        for text in ("org/tiny", "tiny", newest.run.run_id[:12]):
            assert find(history, text).run.run_id == newest.run.run_id
