"""The journal: what was added is there after any crash, and nothing else is."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atom.eval.errors import EvalError
from atom.eval.journal import Header, Journal, find_unfinished, item_key, journal_folder
from atom.eval.types import Generated, GenerateItem, Scored, ScoreItem

HEADER = Header("run-1", ["arc_easy"], "http://localhost:8000", "m", {"limit": 10})

scored = st.builds(Scored, st.floats(-1e4, 0), st.booleans())
texts = st.text()  # line ends of all kinds and other scripts among them
generated = st.builds(
    Generated, texts, st.sampled_from(["stop", "length", None]), st.none() | st.integers(0, 99)
)
answers = st.dictionaries(st.sampled_from([f"{n:032x}" for n in range(40)]), scored | generated)


def held(journal: Journal) -> dict[str, Scored | Generated]:
    keys = [f"{n:032x}" for n in range(40)]
    found = {key: journal.scored(key) or journal.generated(key) for key in keys}
    return {key: answer for key, answer in found.items() if answer is not None}


@settings(max_examples=60, deadline=None)
@given(st.lists(answers, max_size=5), st.lists(answers, max_size=3), st.data())
def test_what_was_whole_at_the_crash_is_there(
    tmp_path_factory: pytest.TempPathFactory,
    batches: list[dict[str, Scored | Generated]],
    later: list[dict[str, Scored | Generated]],
    data: st.DataObject,
) -> None:
    folder = tmp_path_factory.mktemp("journal")
    sizes: list[tuple[int, str, Scored | Generated]] = []  # the file's size after each answer
    with Journal.create(folder, HEADER) as journal:
        begin = journal.path.stat().st_size
        for batch in batches:
            for key, answer in batch.items():
                journal.add({key: answer})
                sizes.append((journal.path.stat().st_size, key, answer))
    path = journal.path
    end = data.draw(st.integers(begin, path.stat().st_size), label="torn at")
    os.truncate(path, end)
    expected = {key: answer for size, key, answer in sizes if size <= end}
    with Journal.open(path) as journal:
        assert held(journal) == expected
        assert len(journal) == len(expected)
        for batch in later:
            journal.add(batch)
            expected |= batch
        assert held(journal) == expected
    with Journal.open(path) as journal:
        assert held(journal) == expected
        # Its creation was dated by the clock; all else is as it was given.
        assert journal.header.digest == HEADER.digest
        assert journal.header.run_id == "run-1"


def test_a_damaged_line_loses_one_answer(tmp_path: Path) -> None:
    with Journal.create(tmp_path, HEADER) as journal:
        for n in range(3):
            journal.add({f"{n:032x}": Scored(-1.0 - n, True)})
    lines = journal.path.read_bytes().splitlines(keepends=True)
    lines[2] = b"\0" * (len(lines[2]) - 1) + b"\n"
    journal.path.write_bytes(b"".join(lines))
    with Journal.open(journal.path) as journal:
        assert held(journal) == {f"{0:032x}": Scored(-1.0, True), f"{2:032x}": Scored(-3.0, True)}


def test_one_writer(tmp_path: Path) -> None:
    with Journal.create(tmp_path, HEADER) as journal:
        with pytest.raises(EvalError, match="another atom eval is writing"):
            Journal.open(journal.path)
        assert find_unfinished(tmp_path)[0].busy
    assert not find_unfinished(tmp_path)[0].busy
    Journal.open(journal.path).close()
    with pytest.raises(EvalError, match=r"run-1\.journal exists: go on with that run"):
        Journal.create(tmp_path, HEADER)


def test_the_list_is_newest_first_and_passes_over_other_files(tmp_path: Path) -> None:
    for run, day in (("b", 2), ("a", 3), ("c", 1)):
        made = Header(run, ["copa"], "u", "m", {}, f"2026-11-0{day}T00:00:00+00:00")
        with Journal.create(tmp_path, made) as journal:
            journal.add({item_key("score", "m", [day]): Scored(-1.0, False)})
    (tmp_path / "notes.journal").write_text("not one\n")
    (tmp_path / "cut.journal").write_text('{"run_id":"cut","ta')
    found = find_unfinished(tmp_path)
    assert [(one.header.run_id, one.answers, one.busy) for one in found] == [
        ("a", 1, False),
        ("b", 1, False),
        ("c", 1, False),
    ]
    assert find_unfinished(tmp_path / "nowhere") == []


def test_it_is_removed_when_the_run_is_stored(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path / "deep" / "er", HEADER)
    journal.remove()
    assert not journal.path.exists()
    with pytest.raises(EvalError, match=r"there is no journal .* nothing to resume"):
        Journal.open(journal.path)
    Journal.create(tmp_path / "deep" / "er", HEADER).close()


def test_what_is_no_journal_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.journal"
    path.write_text("hello\n")
    with pytest.raises(EvalError, match="no journal of an evaluation: remove it"):
        Journal.open(path)
    path.write_text(
        json.dumps({**json.loads('{"run_id":"r","tasks":[],"server":"","model":""}'), "format": 99})
        + "\n"
    )
    with pytest.raises(EvalError, match="written by another version of atom"):
        Journal.open(path)


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EvalError, match=r"cannot make the folder .*file: File exists"):
        Journal.create(tmp_path / "file", HEADER)


def test_settings_that_differ_are_named() -> None:
    other = Header("run-2", ["arc_easy", "copa"], "elsewhere", "m", {"limit": 20, "chat": True})
    assert HEADER.differences(other) == [
        "chat nothing -> True",
        "limit 10 -> 20",
        "tasks arc_easy -> arc_easy, copa",
    ]
    assert HEADER.digest != other.digest
    moved = Header("run-3", ["arc_easy"], "elsewhere", "m", {"limit": 10})
    assert HEADER.differences(moved) == []
    assert HEADER.digest == moved.digest


def test_a_key_is_of_what_was_asked() -> None:
    key = item_key("score", "m", ScoreItem([1, 2], (3,)))
    assert key == item_key("score", "m", ScoreItem((1, 2), [3]))
    others = [
        item_key("score", "m", ScoreItem([1], [2, 3])),
        item_key("score", "n", ScoreItem([1, 2], [3])),
        item_key("generate", "m", ScoreItem([1, 2], [3])),
        item_key("score", "m", ScoreItem([1, 2], [3]), 1),
    ]
    assert len({key, *others}) == 5
    one = GenerateItem(prompt="p", extra={"top_p": 0.5, "top_k": 3})
    same = GenerateItem(prompt="p", extra={"top_k": 3, "top_p": 0.5})
    assert item_key("generate", "m", one) == item_key("generate", "m", same)
    # A file from today is understood tomorrow.
    assert key == "a3dcf236c33c03e95b0332be60b195b5"


def test_journals_lie_beside_the_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert journal_folder(tmp_path / "h.db") == tmp_path / "eval"
    monkeypatch.setenv("ATOM_HISTORY", str(tmp_path / "data" / "history.db"))
    assert journal_folder() == tmp_path / "data" / "eval"
