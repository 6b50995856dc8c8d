"""Two evaluations compared: pairing, verdicts, what speaks against them, and what is printed."""

from __future__ import annotations

import io
import json
import math
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_helpers import atom
from eval_runs import FLEXIBLE, SHOT, STRICT, choice_sample, eval_run, gsm8k_sample
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from atom.bench.history import History
from atom.bench.types import Interval, RunResult
from atom.eval.compare import EvalComparison, compare
from atom.eval.mcnemar import exact_p
from atom.eval.pairs import pair
from atom.eval.picture import print_comparison
from atom.eval.records import add_run, by_task
from atom.eval.types import Sample

Make = Callable[..., Sample]


def answered(right: str, make: Make = gsm8k_sample) -> list[Sample]:
    """One sample for each letter: "+" is right, "-" wrong."""
    return [make(number, letter == "+") for number, letter in enumerate(right)]


def compared(a: list[Sample], b: list[Sample], **facts: object) -> EvalComparison:
    return compare(eval_run(a), eval_run(b, 1), by_task(a), by_task(b), **facts)  # type: ignore[arg-type]


def test_counts_shares_and_the_questions_that_changed() -> None:
    found = compared(answered("+++++-----"), answered("++---++---"))
    (task,) = found.tasks
    main = task.main
    assert (main.metric, task.n, main.lost, main.won) == (FLEXIBLE, 10, 3, 2)
    assert (main.a, main.b) == (0.5, 0.4)
    assert main.change is not None
    assert main.change.value == pytest.approx(-0.1)
    assert main.p_value == exact_p(3, 2)
    assert [change.a_doc for change in task.lost] == [2, 3, 4]
    assert [(change.a_doc, change.a_said, change.b_said) for change in task.won] == [
        (5, "6", "5"), (6, "7", "6"),
    ]  # fmt: skip
    assert task.lost[0].question == "Question: What is 2?\nAnswer:"
    assert task.lost[0].target == "2"
    assert found.verdict == "undecided"


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [
        ("+" * 6 + "-" * 94, "-" * 100, "worse"),  # 6 lost, none won: p = 0.031
        ("+" * 5 + "-" * 95, "-" * 100, "undecided"),  # p = 0.0625
        ("-" * 100, "+" * 6 + "-" * 94, "better"),
        ("+-" * 500, "+-" * 500, "same"),
        ("+-" * 25, "+-" * 25, "undecided"),  # fifty equal answers leave room for five points
    ],
)
def test_verdicts(a: str, b: str, verdict: str) -> None:
    found = compared(answered(a), answered(b))
    assert found.verdict == found.tasks[0].main.verdict == verdict
    assert (verdict in found.sentence) or verdict == "undecided"


def test_a_wider_margin_makes_the_same_of_the_undecided() -> None:
    samples = answered("+-" * 25)
    assert compared(samples, samples, margin=0.06).verdict == "same"


def test_many_tasks_are_one_family() -> None:
    """A task at p = 0.031 alone is worse; beside three tasks where nothing changed it is not."""
    a, b = answered("+" * 6 + "-" * 94), answered("-" * 100)
    assert compared(a, b).verdict == "worse"
    others = [gsm8k_sample(n, n % 2 == 0, task=f"t{t}") for t in range(3) for n in range(100)]
    found = compared([*a, *others], [*b, *others])
    main = found.tasks[0].main
    assert main.p_value == pytest.approx(2 * 0.5**6)
    assert main.adjusted_p == pytest.approx(4 * 2 * 0.5**6)
    assert (main.verdict, found.verdict) == ("undecided", "undecided")


def test_worse_on_one_task_and_better_on_another_is_a_trade_off() -> None:
    a = answered("+" * 20 + "-" * 20) + answered("-" * 40, choice_sample)
    b = answered("-" * 40) + answered("+" * 20 + "-" * 20, choice_sample)
    found = compared(a, b)
    assert found.verdict == "trade-off"
    assert found.sentence == "B is better on arc_easy and worse on gsm8k"


def test_identical_shares_may_hide_many_changes() -> None:
    found = compared(answered("+-" * 50), answered("-+" * 50))
    main = found.tasks[0].main
    assert (main.a, main.b, main.p_value) == (0.5, 0.5, 1.0)
    assert (main.lost, main.won) == (50, 50)
    assert main.verdict == "undecided", "all answers changed: that is not the same"


def test_perplexities_are_compared_by_log_likelihood() -> None:
    rng = random.Random(0)
    a = [
        choice_sample(n, True, task="lambada", metrics={"perplexity,none": rng.gauss(-2.0, 1.0)})
        for n in range(400)
    ]
    b = [
        choice_sample(
            n, True, task="lambada",
            metrics={"perplexity,none": s.metrics["perplexity,none"] - 0.1 + rng.gauss(0, 0.2)},
        )
        for n, s in enumerate(a)
    ]  # fmt: skip
    main = compared(a, b).tasks[0].main
    mean = math.fsum(s.metrics["perplexity,none"] for s in a) / 400
    assert main.a == pytest.approx(math.exp(-mean))
    assert main.change is not None
    assert main.change.value == pytest.approx(main.b / main.a)
    assert main.change.low < math.exp(0.1) < main.change.high
    assert main.verdict == "worse", "a larger perplexity is worse"


@pytest.mark.parametrize("lower", [False, True])
def test_the_direction_is_the_tasks(lower: bool) -> None:
    rng = random.Random(1)
    a = [gsm8k_sample(n, True, metrics={"score,none": rng.random()}) for n in range(100)]
    b = [
        gsm8k_sample(n, True, metrics={"score,none": s.metrics["score,none"] + rng.random()})
        for n, s in enumerate(a)
    ]
    told = {"eval": {"lower_is_better": ["gsm8k/score,none"]}} if lower else {}
    found = compare(
        eval_run(a, provenance=told), eval_run(b, 1, provenance=told), by_task(a), by_task(b)
    )
    assert found.verdict == ("worse" if lower else "better")


def test_infinite_scores_are_not_tested() -> None:
    a = [gsm8k_sample(n, True, metrics={"perplexity,none": -1.0}) for n in range(5)]
    b = [gsm8k_sample(n, True, metrics={"perplexity,none": -math.inf}) for n in range(5)]
    main = compared(a, b).tasks[0].main
    assert (main.b, main.p_value, main.verdict) == (math.inf, None, "undecided")


# Pairing


def test_pairs_by_document_then_by_hash_then_by_question() -> None:
    a = [gsm8k_sample(n, True) for n in range(4)]
    b = [
        gsm8k_sample(3, True, doc_hash="of another file"),  # the same question
        gsm8k_sample(1, True, doc_id=7),  # the same document at another place
        gsm8k_sample(0, True),
        gsm8k_sample(9, True),
    ]
    found = pair(a, b)
    assert [(p.a.doc_id, p.b.doc_hash) for p in found.pairs] == [
        (0, b[2].doc_hash), (1, b[1].doc_hash), (3, "of another file"),
    ]  # fmt: skip
    assert ([s.doc_id for s in found.only_a], [s.doc_id for s in found.only_b]) == ([2], [9])
    notes = " ".join(found.notes)
    assert "1 of 3 pairs were found by question" in notes
    assert "1 samples of A and 1 of B have no partner" in notes


def test_equal_questions_twice_in_a_run_are_not_guessed() -> None:
    a = [gsm8k_sample(1, True, doc_id=n, doc_hash=f"a{n}") for n in range(2)]
    b = [gsm8k_sample(1, True, doc_id=n, doc_hash=f"b{n}") for n in range(2)]
    assert pair(a, b).pairs == []
    kept = [gsm8k_sample(1, True, doc_id=n) for n in range(2)]
    assert [(p.a.doc_id, p.b.doc_id) for p in pair(kept, kept).pairs] == [(0, 0), (1, 1)]


@settings(max_examples=60, deadline=None)
@given(
    a=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), max_size=8),
    b=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), max_size=8),
)
def test_pairing_loses_nothing_and_pairs_nothing_twice(
    a: list[tuple[int, int]], b: list[tuple[int, int]]
) -> None:
    left, right = (
        [gsm8k_sample(asked, True, doc_id=n, doc_hash=str(hashed)) for n, (asked, hashed) in
         enumerate(side)]
        for side in (a, b)
    )  # fmt: skip
    found = pair(left, right)
    for side, only, place in ((left, found.only_a, 0), (right, found.only_b, 1)):
        seen = [id(p[place]) for p in found.pairs] + [id(sample) for sample in only]
        assert sorted(seen) == sorted(id(sample) for sample in side)
    for p in found.pairs:
        assert p.a.doc_hash == p.b.doc_hash or p.a.prompt == p.b.prompt


def test_other_prompts_are_said() -> None:
    a = answered("+-" * 10)
    b = [gsm8k_sample(n, n % 2 == 0, prompt=s.prompt.removeprefix(SHOT)) for n, s in enumerate(a)]
    (task,) = compared(a, b).tasks
    assert task.n == 20
    assert "20 of 20 prompts are not the same text" in " ".join(task.notes)


# What else speaks against it


def run_with(samples: list[Sample], number: int = 0, **task: object) -> RunResult:
    run = eval_run(samples, number)
    run.workload["tasks"]["gsm8k"].update(task)
    return run


def test_settings_that_differ_are_listed_and_unknown_ones_are_not() -> None:
    samples = answered("+-" * 5)
    a = run_with(samples, num_fewshot=5, generation={"until": ["Question:"]})
    b = run_with(samples, 1, num_fewshot=3, generation={"until": ["Question:", "</s>"]})
    del b.workload["tasks"]["gsm8k"]["version"]
    a.workload["chat_template_sha"], b.workload["chat_template_sha"] = "aa", "bb"
    found = compare(a, b, by_task(samples), by_task(samples))
    assert {d.what for d in found.differences} == {
        "chat_template_sha", "gsm8k: num_fewshot", "gsm8k: generation.until",
    }  # fmt: skip


def test_settings_of_servers_that_we_started_are_compared() -> None:
    samples = answered("+-" * 5)
    told = [
        {"server": {"kind": "atom", "config": {"model": {"dtype": dtype}, "seed": 0}}}
        for dtype in ("float32", "bfloat16")
    ]
    runs = [eval_run(samples, n, provenance=told[n]) for n in (0, 1)]
    found = compare(*runs, by_task(samples), by_task(samples))
    assert [(d.what, d.a, d.b) for d in found.differences] == [
        ("server: model.dtype", "float32", "bfloat16")
    ]


def test_another_metric_may_be_judged_by(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("eval", "compare", "last~1", "last", "--history", str(stored), "--metric")
    for name in ("strict-match", STRICT):
        out = atom(capsys, *command, name).out
        assert "0 of 80 answered differently" in out
    ran = atom(capsys, *command, "f1")
    assert (ran.code, ran.out) == (2, "")
    assert "--metric f1: B has exact_match,flexible-extract" in ran.err


def test_cut_answers_are_said() -> None:
    a = answered("+-" * 10)
    b = [gsm8k_sample(n, False, finish_reason="length") for n in range(20)]
    assert compared(a, b).notes == ["gsm8k: 20 of 20 answers of B were cut at the token limit"]


def test_scores_without_samples_are_not_tested_but_said() -> None:
    samples = answered("+-" * 5)
    a, b = eval_run(samples), eval_run(samples, 1)
    for run, score in ((a, 0.5), (b, 0.6)):
        run.metrics["mmlu/acc,none"] = Interval(score, score, score)
        run.workload["tasks"]["mmlu"] = {"samples": 1000}
    found = compare(a, b, by_task(samples), by_task(samples))
    (told,) = found.untested
    assert "mmlu acc,none: 0.5000 in A, 0.6000 in B" in told
    assert re.search(r"\+5\.\d to \+14\.\d points", told), told
    nothing = compare(a, b, {}, {})
    assert nothing.verdict == "undecided"
    assert "nothing can be tested" in nothing.sentence


def test_a_group_is_its_members_taken_together() -> None:
    a = answered("+" * 4 + "-" * 6) + answered("+" * 3 + "-" * 7, choice_sample)
    b = answered("-" * 10) + answered("-" * 10, choice_sample)
    a, b = ([sample for sample in side if "acc,none" not in sample.metrics] for side in (a, b))
    a += [gsm8k_sample(n, n < 3, task="other") for n in range(10)]
    b += [gsm8k_sample(n, False, task="other") for n in range(10)]
    runs = [eval_run(a), eval_run(b, 1)]
    for run in runs:
        run.workload["tasks"]["both"] = {"members": ["gsm8k", "other"]}
    found = compare(*runs, by_task(a), by_task(b))
    group = found.tasks[-1]
    assert (group.task, group.group, group.n, group.main.lost) == ("both", True, 20, 7)
    assert group.main.verdict == "worse"
    assert found.verdict == "undecided", "the verdict is on the tasks, which it counts twice"


# In the terminal


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """Two runs: 30 of 80 lost, 4 won."""
    path = tmp_path / "h.db"
    a, b = answered("+" * 40 + "-" * 40), answered("+" * 10 + "-" * 66 + "+" * 4)
    with History(path) as history:
        add_run(history, eval_run(a), a)
        add_run(history, eval_run(b, 1), b)
    return path


@pytest.mark.parametrize("width", [80, 100, 140])
def test_what_is_printed_fits(width: int) -> None:
    text = "word " * 40
    a = [gsm8k_sample(n, n < 40, prompt=f"{text}{n}", target=text) for n in range(80)]
    b = [gsm8k_sample(n, n < 10, prompt=f"{text}{n}", target=text) for n in range(80)]
    out = io.StringIO()
    found = compared(a + answered("+-" * 9, choice_sample), b + answered("+-" * 9, choice_sample))
    print_comparison(Console(file=out, width=width, no_color=True), found, every_metric=True)
    said = out.getvalue()
    assert max(map(len, said.splitlines())) <= width
    assert "undecided" in said
    assert "worse: B is worse than A on gsm8k" in said
    assert "right in A, wrong in B (5 of 30)" in said
    assert ("lost  won" in said) is (width >= 100)


def test_compare_command(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran = atom(capsys, "eval", "compare", "last~1", "last", "--history", str(stored))
    assert (ran.code, ran.err) == (0, "")
    assert "50.00%  17.50%" in ran.out
    assert "34 of 80 answered differently (30 lost, 4 won)" in ran.out
    assert "worse: B is worse than A on gsm8k" in ran.out
    assert "--task gsm8k --sample 10 shows the first whole" in ran.out
    failing = ("eval", "compare", "last~1", "last", "--fail-on-worse", "--history", str(stored))
    assert atom(capsys, *failing).code == 3
    back = ("eval", "compare", "last", "last~1", "--fail-on-worse", "--history", str(stored))
    assert atom(capsys, *back).code == 0, "better is not worse"


def test_compare_as_json(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran = atom(capsys, "eval", "compare", "last~1", "last", "--json", "--history", str(stored))
    found = json.loads(ran.out)
    assert (found["schema"], found["verdict"]) == (1, "worse")
    (task,) = found["tasks"]
    assert (task["n"], len(task["lost"]), len(task["won"])) == (80, 30, 4)
    assert task["metrics"][0]["p_value"] == pytest.approx(exact_p(30, 4))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["last", "last"], "A and B are the same run"),
        (["last", "nothing"], "nothing: no evaluation of .* has this id"),
        (["last", "last~7"], "last~7: .* there are 2"),
        (["last~1", "last", "--task", "gsm"], r"--task gsm: A has gsm8k \(did you mean gsm8k\?\)"),
        (["last~1", "last", "--margin", "70%"], "--margin 70%: write a percentage"),
        (["last~1", "none.json"], "none.json: no such file"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(
    stored: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    ran = atom(capsys, "eval", "compare", *arguments, "--history", str(stored))
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert re.search(told, ran.err), ran.err
