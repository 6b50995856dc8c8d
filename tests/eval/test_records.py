"""Samples of evaluations in the history: stored with their run, read again, taken in and out."""

from __future__ import annotations

import math
import sqlite3
from pathlib import Path

import pytest
from eval_runs import choice_sample, eval_run, gsm8k_sample
from hypothesis import given, settings
from hypothesis import strategies as st

from atom.bench.history import History, HistoryError, schema
from atom.bench.history.evaluations import SAMPLES_PER_BLOCK
from atom.bench.history.importers import read_results
from atom.eval.errors import EvalError
from atom.eval.records import add_run, read_samples, samples_of, store_samples
from atom.eval.types import Sample


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "history.db"


def two_tasks(count: int) -> list[Sample]:
    """More than a block of each, in mixed order."""
    return [
        make(number, number % 3 == 0)
        for number in range(count)
        for make in (gsm8k_sample, choice_sample)
    ]


def test_samples_come_back_equal_by_task(path: Path) -> None:
    samples = two_tasks(2 * SAMPLES_PER_BLOCK + 1)
    run = eval_run(samples)
    with History(path) as history:
        assert add_run(history, run, samples) is True
        assert history.get(run.run_id) == run
        for task in ("gsm8k", "arc_easy"):
            expected = [sample for sample in samples if sample.task == task]
            assert read_samples(history, run.run_id, task) == expected
        assert history.evaluated(run.run_id) == {"arc_easy": 129, "gsm8k": 129}
        assert len(read_samples(history, run.run_id)) == len(samples)
        assert read_samples(history, run.run_id, "copa") == []


def test_a_beginning_of_the_id_is_enough(path: Path) -> None:
    samples = two_tasks(2)
    run = eval_run(samples)
    with History(path) as history:
        add_run(history, run, samples)
        assert len(read_samples(history, run.run_id[:15])) == 4
        with pytest.raises(HistoryError, match="no run 2030"):
            read_samples(history, "2030")
    with History(path.with_name("none.db")) as history, pytest.raises(HistoryError, match="no run"):
        read_samples(history, run.run_id)


def test_adding_again_takes_only_what_lacks(path: Path) -> None:
    samples = two_tasks(70)
    run = eval_run(samples)
    gsm8k = [sample for sample in samples if sample.task == "gsm8k"]
    with History(path) as history:
        assert history.add(run) is True
        assert history.evaluated(run.run_id) == {}
        store_samples(history, run.run_id, gsm8k)
        store_samples(history, run.run_id, [*samples, *gsm8k])
        assert history.evaluated(run.run_id) == {"arc_easy": 70, "gsm8k": 70}
        assert read_samples(history, run.run_id, "gsm8k") == gsm8k


@settings(max_examples=50, deadline=None)
@given(
    logprob=st.floats(),
    text=st.text(st.characters(exclude_categories=("Cs",))),
    doc=st.dictionaries(st.text(max_size=3), st.floats(allow_nan=False) | st.booleans() | st.text(
        st.characters(exclude_categories=("Cs",)), max_size=3
    ), max_size=3),
)  # fmt: skip
def test_any_number_and_any_text_survive(
    tmp_path_factory: pytest.TempPathFactory, logprob: float, text: str, doc: dict[str, object]
) -> None:
    finite = {key: value for key, value in doc.items() if value not in (math.inf, -math.inf)}
    sample = choice_sample(
        1, True, prompt=text, doc=finite, answers=[{"text": text, "logprob": logprob}]
    )
    with History(tmp_path_factory.mktemp("any") / "h.db") as history:
        add_run(history, eval_run([sample]), [sample])
        (found,) = read_samples(history, eval_run([sample]).run_id)
    read = found.answers[0].pop("logprob")
    assert read == logprob or (math.isnan(read) and math.isnan(logprob))
    assert isinstance(read, float)
    assert found == choice_sample(1, True, prompt=text, doc=finite, answers=[{"text": text}])


def test_a_history_of_before_evaluations_is_migrated(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = two_tasks(3)
    first, second = eval_run(samples), eval_run(samples, 1)
    with monkeypatch.context() as before:
        before.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[:1])
        with History(path) as history:
            history.add(first)
    with History(path) as history:
        assert history.evaluated(first.run_id) == {}
        add_run(history, second, samples)
        assert history.get(first.run_id) == first
        assert len(read_samples(history, second.run_id)) == 6


def test_samples_go_with_their_run(path: Path) -> None:
    samples = two_tasks(3)
    with History(path) as history:
        add_run(history, eval_run(samples), samples)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("DELETE FROM runs")
    assert connection.execute("SELECT count(*) FROM evaluations").fetchone() == (0,)


def test_what_cannot_be_stored_is_saved_with_its_samples(path: Path) -> None:
    path.write_text("not a history, but long enough to be looked at: " * 20)
    samples = two_tasks(3)
    run = eval_run(samples)
    with History(path) as history, pytest.raises(HistoryError, match="not a run history") as caught:
        add_run(history, run, samples)
    assert caught.value.saved is not None
    (loaded,) = read_results(caught.value.saved)
    assert loaded.run == run
    with History(path.with_name("other.db")) as history:
        history.add(*loaded)
        assert read_samples(history, run.run_id, "gsm8k") == samples[::2]


def test_a_run_and_its_samples_are_stored_both_or_neither(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with History(path) as history:
        history.add(eval_run(two_tasks(1), 1))
    connect = schema._connect

    def full(name: str, *, uri: bool = False) -> sqlite3.Connection:
        connection = connect(name, uri=uri)
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        # Room for a run, but for few samples.
        connection.execute(f"PRAGMA max_page_count = {pages + 4}")
        return connection

    monkeypatch.setattr(schema, "_connect", full)
    samples = [gsm8k_sample(n, True, prompt=str(n**600)) for n in range(200)]
    with History(path) as history:
        history.add(eval_run(two_tasks(1), 2))
        with pytest.raises(HistoryError, match="disk is full"):
            add_run(history, eval_run(samples), samples)
        assert history.count() == 2


def test_a_damaged_sample_is_named() -> None:
    with pytest.raises(EvalError, match=r"run 1: sample 1 cannot be read: .*doc_id"):
        list(samples_of([{"task": "t", "doc_id": 0, "doc_hash": "", "prompt": "", "target": "",
                          "metrics": {}}, {"task": "t", "doc_id": "one"}], "run 1"))  # fmt: skip
