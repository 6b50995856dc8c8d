"""Scores through a real server are those of lm-eval's `hf` model on the same weights.

On a tiny random checkpoint in float32, a few documents of each bundled task. gsm8k's prompts are
longer than its context, so that cutting from the left is compared, too. `benchmarks/eval_parity.py`
does the same on real weights and whole tasks; its judgement is tested here.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from cli_helpers import serving

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import eval_ours
import eval_parity
import eval_stock

TASKS = tuple(eval_stock.SOURCES)
LIMITS = {"gsm8k": 2}
LIMIT = 5
NEW_TOKENS = 24


@pytest.fixture(scope="module")
def checkpoint() -> Path:
    return tiny.tiny_checkpoint("llama3")


@pytest.fixture(scope="module")
def theirs(checkpoint: Path) -> eval_parity.Side:
    """lm-eval's tasks, few-shot choice, `hf` model and metrics, on the bundled rows."""
    import datasets
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM

    datasets.disable_progress_bars()
    model = HFLM(pretrained=str(checkpoint), dtype="float32", device="cpu", batch_size=4)
    sides = []
    for name in TASKS:
        tasks = eval_stock.stock_tasks([name], eval_stock.DATA)
        task = tasks["tasks"][name]
        task.set_fewshot_seed(1234)
        if task.OUTPUT_TYPE == "generate_until":
            task.set_config("generation_kwargs", {"max_gen_toks": NEW_TOKENS}, update=True)
        else:
            task.set_config("num_fewshot", 0)
        limit = LIMITS.get(name, LIMIT)
        found = evaluator.evaluate(model, tasks, limit=limit, bootstrap_iters=0)
        answers = eval_stock.answers_of(found["samples"])
        sides.append(eval_parity.Side(answers, eval_parity.metrics_of(found["results"])))
    return eval_parity.joined(sides)


@pytest.fixture(scope="module")
def server(checkpoint: Path) -> Iterator[str]:
    with serving(str(checkpoint), "--dtype", "float32") as url:
        yield url


@pytest.fixture(scope="module")
def ours(server: str) -> eval_parity.Side:
    from atom.eval.client import connect
    from atom.eval.harness import evaluate
    from atom.eval.options import Options, TaskOptions
    from atom.eval.tasks import find_tasks
    from atom.eval.types import Endpoint

    options = Options(
        limit=LIMIT,
        max_gen_tokens=NEW_TOKENS,
        per_task={name: TaskOptions(limit=limit) for name, limit in LIMITS.items()},
    )
    endpoint = Endpoint(base_url=server, model=eval_ours.served_model(server))
    with connect(endpoint) as client:
        outcome = evaluate(find_tasks(TASKS, hub=False), client, options, lambda _: None)
    return eval_parity.Side(*eval_ours.side_of(outcome))


@pytest.mark.parametrize("task", TASKS)
def test_prompts_and_answers_are_equal(
    task: str, ours: eval_parity.Side, theirs: eval_parity.Side
) -> None:
    row = eval_parity.compare_task(ours.answers[task], theirs.answers[task], 1e-3)
    assert row["documents"] == LIMITS.get(task, LIMIT)
    assert row["prompts_differ"] == 0
    if task == "gsm8k":
        assert row["texts_equal"] == 1, row
        assert all(answer.text for answer in ours.answers[task])
    else:
        assert row["over"] == 0, row["worst"]
        assert row["greedy_differ"] == 0
        # Values that differ, so that equality says something.
        values = [value for answer in theirs.answers[task] for value in answer.logprobs]
        assert max(values) - min(values) > 1


@pytest.mark.parametrize("task", TASKS)
def test_scores_are_equal(task: str, ours: eval_parity.Side, theirs: eval_parity.Side) -> None:
    assert theirs.results[task]
    assert eval_parity.scores_differ(ours.results[task], theirs.results[task]) == []


def test_prompts_longer_than_the_context_were_compared(ours: eval_parity.Side) -> None:
    assert all(len(answer.prompt) > 1024 for answer in ours.answers["gsm8k"])


def answer(*values: float, greedy: bool = False, text: str | None = None) -> eval_stock.Answer:
    choices = [f" {index}" for index in range(len(values))]
    return eval_stock.Answer("Q", {}, choices, list(values), [greedy] * len(values), text)


def test_a_log_likelihood_that_is_off_is_found() -> None:
    right = [answer(-1.0, -2.0), answer(-3.0, -4.0)]
    wrong = [answer(-1.0, -2.0), answer(-3.0, -4.5)]
    row = eval_parity.compare_task(wrong, right, 1e-3)
    assert (row["loglikelihoods"], row["over"], row["delta_max"]) == (4, 1, 0.5)
    assert row["worst"] == {"doc_id": 1, "choice": 1, "ours": -4.5, "theirs": -4.0}
    assert eval_parity.compare_task(right, right, 1e-3)["over"] == 0


def test_one_that_is_not_a_number_is_found() -> None:
    row = eval_parity.compare_task([answer(math.nan)], [answer(-1.0)], 1e-3)
    assert row["over"] == 1


def test_another_prompt_choice_greedy_or_text_is_found() -> None:
    right = [answer(-1.0), answer(-1.0)]
    other = [answer(-1.0), answer(-1.0, greedy=True)._replace(prompt="Q ")]
    row = eval_parity.compare_task(other, right, 1e-3)
    assert (row["prompts_differ"], row["greedy_differ"]) == (1, 1)
    texts = [[answer(text="a"), answer(text=last)] for last in ("b", "c")]
    assert eval_parity.compare_task(*texts, 1e-3) == {
        "documents": 2,
        "prompts_differ": 0,
        "texts_equal": 0.5,
        "parted": [1],
    }


def test_scores_may_not_differ_but_a_perplexity_a_little() -> None:
    theirs = {"acc,none": 0.5, "perplexity,none": 100.0}
    assert eval_parity.scores_differ({"acc,none": 0.5, "perplexity,none": 100.05}, theirs) == []
    ours = {"acc,none": 0.5001, "perplexity,none": 101.0, "acc_norm,none": 1.0}
    assert eval_parity.scores_differ(ours, theirs) == [
        "acc_norm,none",
        "acc,none",
        "perplexity,none",
    ]


def test_where_two_texts_part_transformers_says_how_far_apart_the_tokens_are(
    checkpoint: Path,
) -> None:
    prompt = "Once"
    alphabet = json.loads((checkpoint / "tokenizer.json").read_text())["model"]["vocab"]
    logits = tiny.reference_logits(checkpoint, [alphabet[c] for c in "Onceab"])
    found = eval_parity.Explainer(checkpoint).explain(prompt, "abx", "aby")
    assert (found["tokens_before"], found["ours"], found["theirs"]) == (2, "x", "y")
    expected = float(logits[-1][alphabet["y"]] - logits[-1][alphabet["x"]])
    assert found["gap"]["float32"] == pytest.approx(expected, abs=1e-4)
    assert found["gap"]["float64"] == pytest.approx(expected, abs=1e-4)


def test_answers_survive_their_file(tmp_path: Path) -> None:
    answers: dict[str, Any] = {"t": [answer(-1.5), answer(text="said")]}
    path = tmp_path / "answers.json"
    eval_stock.write_answers(path, answers, limit=2)
    assert eval_stock.read_answers(path) == (answers, {"limit": 2})
