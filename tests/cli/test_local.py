"""`atom run` on the engine in process, with the embedded model."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_helpers import atom_process

from atom.cli.answers import Question
from atom.cli.local import LocalAnswerer
from atom.config import resolve
from atom.errors import NeverFitError, RequestError

GREEDY = {"temperature": 0.0, "max_tokens": 12}
CAPITAL = ({"role": "user", "content": "What is the capital of France?"},)


@pytest.fixture(scope="module")
def answerer(embedded_gguf: Path) -> Iterator[LocalAnswerer]:
    # float32: the margins of greedy choices are the model's, not a quantised kernel's.
    flags = {"device": "cpu", "dtype": "float32", "max_num_seqs": 1, "max_model_len": 256}
    flags["level"] = 0
    made = LocalAnswerer(resolve(None, {}, {"model": str(embedded_gguf), **flags}))
    yield made
    made.close()


def ask(answerer: LocalAnswerer, **sampling: object) -> str:
    return "".join(answerer.stream(Question(messages=CAPITAL, sampling={**GREEDY, **sampling})))


def test_an_answer(answerer: LocalAnswerer) -> None:
    assert "Paris" in ask(answerer)
    usage = answerer.usage
    assert usage.finish_reason in ("stop", "length")
    assert 1 < usage.completion_tokens <= 12
    assert usage.prompt_tokens > 8


def test_a_continued_text(answerer: LocalAnswerer) -> None:
    question = Question(text="The capital of France is", sampling=GREEDY)
    assert "Paris" in "".join(answerer.stream(question))
    assert answerer.usage.prompt_tokens < 8


def test_stop_strings_end_it_and_are_not_shown(answerer: LocalAnswerer) -> None:
    assert "Paris" not in ask(answerer, stop=["Paris"])
    assert answerer.usage.finish_reason == "stop"


def test_the_same_seed_gives_the_same_text(answerer: LocalAnswerer) -> None:
    first, second, other = (ask(answerer, temperature=1.5, seed=s) for s in (1, 1, 2))
    assert first == second != other


def test_ctrl_c_stops_the_answer_and_the_next_one_is_whole(answerer: LocalAnswerer) -> None:
    before = signal.getsignal(signal.SIGINT)
    pieces = answerer.stream(Question(messages=CAPITAL, sampling=GREEDY))
    next(pieces)
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        list(pieces)
    assert signal.getsignal(signal.SIGINT) is before
    answerer._llm.core.check_invariants()
    assert "Paris" in ask(answerer)


def test_an_answer_that_is_dropped_leaves_nothing_behind(answerer: LocalAnswerer) -> None:
    pieces = answerer.stream(Question(messages=CAPITAL, sampling=GREEDY))
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    assert not answerer._llm.core.has_work
    assert answerer._llm.core.stats().num_used_blocks == 0
    assert "Paris" in ask(answerer)


def test_wrong_questions_leave_it_fit(answerer: LocalAnswerer) -> None:
    with pytest.raises(NeverFitError):
        ask(answerer, max_tokens=10_000)
    with pytest.raises(RequestError, match="top_p"):
        ask(answerer, top_p=7.0)
    assert "Paris" in ask(answerer)


def test_the_command(embedded_gguf: Path) -> None:
    argv = ["run", str(embedded_gguf), "-p", "What is the capital of France?", "--temperature", "0"]
    settings = ["--max_tokens", "12", "--json", "--max-model-len", "256", "--level", "0"]
    ran = atom_process(*argv, *settings)
    assert (ran.code, ran.err) == (0, "")
    answer = json.loads(ran.out)
    assert "Paris" in answer["text"]
    assert answer["ttft_s"] > 0
