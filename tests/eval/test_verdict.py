"""Scores against thresholds and baselines: which side, and whether noise explains it."""

from __future__ import annotations

import math

import pytest

from atom.eval import acceptance
from atom.eval.errors import EvalError
from atom.eval.settings import Expectation
from atom.eval.types import Score, TaskResult
from atom.eval.verdict import Baseline, Judged, judge, truncated_tasks

STRICT, FLEXIBLE = "exact_match,strict-match", "exact_match,flexible-extract"


def score(value: float, half: float = 0.02, higher: bool = True) -> Score:
    return Score(value, half / 1.96, value - half, value + half, higher)


def result(task: str = "gsm8k", **metrics: Score) -> TaskResult:
    found = metrics or {STRICT: score(0.5), FLEXIBLE: score(0.6)}
    named = {name.replace("__", ","): value for name, value in found.items()}
    return TaskResult(
        task, "task", "generate_until", 100, 200, 5, "3", named, main_metric=next(iter(named))
    )


def nobody(text: str, task: str, metric: str) -> Baseline:
    raise EvalError(f"no run {text}")


@pytest.mark.parametrize(
    ("value", "threshold", "higher", "state", "word"),
    [
        (0.50, 0.40, True, "ok", "ok"),
        (0.50, 0.49, True, "ok", "ok, within noise"),
        (0.50, 0.497, True, "ok", "ok, at risk"),
        (0.50, 0.50, True, "ok", "ok, at risk"),
        (0.50, 0.51, True, "below", "below, within noise"),
        (0.50, 0.60, True, "below", "below"),
        (0.50, 0.60, False, "ok", "ok"),
        (0.50, 0.40, False, "below", "below"),
    ],
)
def test_a_side_and_its_noise(
    value: float, threshold: float, higher: bool, state: str, word: str
) -> None:
    one = Judged(task="t", metric="m,none", score=score(value, higher=higher), threshold=threshold)
    assert (one.state, one.word()) == (state, word)
    assert one.beyond_noise is (abs(value - threshold) > 0.02)


def test_sentences_say_by_how_much_and_whether_it_is_noise() -> None:
    def said(value: float, threshold: float, higher: bool = True) -> str:
        given = score(value, higher=higher)
        return Judged(task="t", metric="m", score=given, threshold=threshold).sentence()

    assert said(0.5, 0.6) == (
        "t/m 0.5000 is 0.1000 below its threshold 0.6, more than the noise "
        "(95% interval 0.4800 to 0.5200)"
    )
    assert said(0.5, 0.51).endswith("within the noise (95% interval 0.4800 to 0.5200)")
    assert said(0.5, 0.4).startswith("t/m 0.5000 is 0.1000 above its threshold 0.4")
    assert said(9.0, 8.0, False).startswith("t/m 9.0000 is 1.0000 above its threshold 8")
    assert said(7.0, 8.0, False).startswith("t/m 7.0000 is 1.0000 below its threshold 8")
    assert "at its threshold" in said(0.5, 0.5)
    bare = Judged(task="t", metric="m", score=Score(0.5, None, None, None), threshold=0.6)
    assert bare.sentence().endswith("(its noise is not known)")
    assert bare.word() == "below"


def test_the_main_metric_is_what_a_threshold_means() -> None:
    judged, problems = judge([result()], [Expectation(task="gsm8k", threshold=0.55)], nobody)
    assert problems == []
    assert [(one.metric, one.state) for one in judged] == [(STRICT, "below")]


def test_a_named_metric_is_judged_beside_the_main_one() -> None:
    wanted = Expectation(task="gsm8k", metric=FLEXIBLE, threshold=0.55)
    judged, _ = judge([result()], [wanted], nobody)
    assert {one.metric: one.state for one in judged} == {STRICT: "none", FLEXIBLE: "ok"}


def test_a_metric_without_its_filter_is_the_first_of_that_name() -> None:
    wanted = Expectation(task="gsm8k", metric="exact_match", threshold=0.45)
    judged, _ = judge([result()], [wanted], nobody)
    assert [(one.metric, one.state) for one in judged] == [(STRICT, "ok")]


def test_what_cannot_be_judged_is_a_problem_and_no_result_is_lost() -> None:
    wrong = [
        Expectation(task="gsm8k", metric="accuracy", threshold=0.5, where="--threshold"),
        Expectation(task="arc_easy", threshold=0.5, where="--threshold"),
        Expectation(task="copa", threshold=0.5, where="r.toml:3", asked=False),
        Expectation(task="gsm8k", baseline="gone", where="--baseline"),
    ]
    judged, problems = judge([result()], wrong, nobody)
    assert [one.metric for one in judged] == [STRICT]
    assert problems == [
        f"--threshold: gsm8k has no metric accuracy; it has {STRICT}, {FLEXIBLE}",
        "--threshold arc_easy: it was not evaluated",
        "no run gone",
    ]


def test_a_baseline_that_is_a_number_has_recovery_and_no_noise() -> None:
    (one, *_), _ = judge([result()], [Expectation(task="gsm8k", baseline=0.4)], nobody)
    assert one.recovery == pytest.approx(1.25)
    assert one.difference == pytest.approx(0.1)
    assert one.difference_noise() is None
    assert one.state == "none"


def test_a_baseline_that_is_a_run_adds_both_noises() -> None:
    def found(text: str, task: str, metric: str) -> Baseline:
        assert (text, task, metric) == ("2026", "gsm8k", STRICT)
        return Baseline(value=0.52, stderr=0.03, run_id="20261121-1")

    (one, *_), _ = judge([result()], [Expectation(task="gsm8k", baseline="2026")], found)
    noise = one.difference_noise()
    assert noise == pytest.approx(1.959964 * math.hypot(0.02 / 1.96, 0.03))
    assert one.as_json()["baseline_run"] == "20261121-1"


def test_cut_answers_are_told_from_one_in_a_hundred_on() -> None:
    few, many = result(), result()
    few.truncated, many.truncated = 1, 2
    said = "gsm8k: {} of 100 answers were cut at the token limit"
    advice = ", so the score may be too low; raise --max-gen-tokens"
    assert truncated_tasks([result(), few, many]) == [said.format(1), said.format(2) + advice]


def test_accepted_drafts() -> None:
    assert acceptance.problem(None, {}) == ""
    assert acceptance.problem(0.6, {"acceptance_rate": 0.6}) == ""
    assert "59.9%, at least 60.0%" in acceptance.problem(0.6, {"acceptance_rate": 0.599})
    assert "tells nothing about draft tokens" in acceptance.problem(0.6, {})
    assert acceptance.told({}) == ""
    said = acceptance.told({"acceptance_rate": 0.61, "accept_length": 1.9})
    assert said == "61.0% of the draft tokens accepted, 1.90 tokens per forward pass"


def test_acceptance_is_of_what_happened_between_two_scrapes() -> None:
    before = {"draft_tokens": 100.0, "accepted_tokens": 90.0, "drafts": 50.0}
    after = {"draft_tokens": 300.0, "accepted_tokens": 190.0, "drafts": 150.0}
    found = acceptance.figures(before, after)
    assert found["acceptance_rate"] == pytest.approx(0.5)
    assert found["accept_length"] == pytest.approx(2.0)
    assert acceptance.figures({}, after) == {}
