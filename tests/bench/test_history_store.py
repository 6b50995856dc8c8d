"""The history file: what goes in comes out, found again, by many at once, whatever goes wrong."""

from __future__ import annotations

import json
import math
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
from history_helpers import FIRST, make_records, make_run
from hypothesis import given, settings
from hypothesis import strategies as st

from atom.bench.errors import BenchError
from atom.bench.history import History, HistoryError, default_path, new_run_id, schema
from atom.bench.history.importers import read_results
from atom.bench.history.store import VARIABLE
from atom.bench.types import Interval, RunResult


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "history.db"


def test_a_run_comes_back_equal_with_its_samples(path: Path) -> None:
    run = make_run(legacy={"itls": [[0.1, 0.2], [0.3]], "errors": [""], "request_rate": "inf"})
    records = [make_records(600), make_records(3)]
    with History(path) as history:
        assert history.add(run, records) is True
        assert history.get(run.run_id) == run
        assert history.repeats_with_records(run.run_id) == [0, 1]
        assert [list(history.records(run.run_id, repeat)) for repeat in (0, 1)] == records
        assert list(history.records(run.run_id, 2)) == []


def test_the_list_of_runs_leaves_out_what_is_long(path: Path) -> None:
    run = make_run(legacy={"itls": [[0.1]], "completed": 1})
    with History(path) as history:
        history.add(run)
        (found,) = history.find()
        assert found.legacy == {"completed": 1}
        assert history.get(run.run_id).legacy == run.legacy


numbers = st.floats(allow_nan=True, allow_infinity=True)
texts = st.text(st.characters(exclude_categories=("Cs",)))


def same(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))


@settings(max_examples=60, deadline=None)
@given(
    ends=st.tuples(numbers, numbers, numbers),
    name=texts,
    notes=st.lists(texts, max_size=3),
    extra=st.dictionaries(texts, texts | st.integers(-(2**53), 2**53) | st.booleans(), max_size=3),
)
def test_any_number_and_any_text_survive(
    tmp_path_factory: pytest.TempPathFactory,
    ends: tuple[float, float, float],
    name: str,
    notes: list[str],
    extra: dict[str, object],
) -> None:
    run = make_run(
        name=name, notes=notes, provenance=extra, metrics={"p99_ttft_ms": Interval(*ends)}
    )
    with History(tmp_path_factory.mktemp("any") / "h.db") as history:
        history.add(run)
        found = history.get(run.run_id)
    interval = found.metrics.pop("p99_ttft_ms")
    assert all(map(same, ends, (interval.value, interval.low, interval.high)))
    run.metrics.pop("p99_ttft_ms")
    assert found == run


def test_what_json_cannot_hold_does_not_lose_the_run(path: Path) -> None:
    """A bug of ours elsewhere, found after an hour of measuring."""
    odd = {"path": Path("/x"), "scalar": np.int64(3), "huge": 10**30, 5: "key", "half": "a\ud800"}
    (record,) = make_records(1)
    record.token_times_s, record.sent_s = [math.nan], math.inf
    run = make_run(name="half \ud800", provenance=odd)
    run.repeats[0].metrics["p99_ttft_ms"] = np.float64(1.5)
    with History(path) as history:
        history.add(run, [[record]])
        found = history.get(run.run_id)
        (sample,) = history.records(run.run_id, 0)
    assert found.name == "half ?"
    assert found.provenance == {
        **{"path": "/x", "scalar": 3, "huge": str(10**30), "5": "key", "half": "a?"}
    }
    assert found.repeats[0].metrics["p99_ttft_ms"] == 1.5
    assert math.isnan(sample.token_times_s[0])
    assert sample.sent_s == math.inf


def test_adding_twice_is_adding_once(path: Path) -> None:
    run = make_run()
    with History(path) as history:
        assert history.add(run) is True
        assert history.add(run, [make_records(2)]) is False
        assert history.count() == 1
        assert len(list(history.records(run.run_id, 0))) == 2, "samples that it lacked are taken"
        assert history.add(run, [make_records(5)]) is False
        assert len(list(history.records(run.run_id, 0))) == 2


def brute_force(runs: list[RunResult], **asked: str) -> list[str]:
    """`find` by its description."""

    def fits(run: RunResult) -> bool:
        server, recipe = run.provenance["server"], run.provenance.get("recipe") or {}
        facts = {
            "kind": run.kind == asked.get("kind"),
            "model": asked.get("model") in (run.model, run.model.split("/")[-1]),
            "fingerprint": run.fingerprint == asked.get("fingerprint"),
            "sweep_id": run.sweep_id == asked.get("sweep_id"),
            "commit": server["commit"].startswith(asked.get("commit", "")),
            "recipe": recipe.get("name") == asked.get("recipe"),
        }
        return all(facts[key] for key in asked)

    newest = sorted(runs, key=lambda run: run.run_id, reverse=True)
    return [run.run_id for run in newest if fits(run)]


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"kind": "eval"},
        {"model": "tiny"},
        {"model": "org/tiny"},
        {"model": "iny"},
        {"fingerprint": "f1"},
        {"sweep_id": "s2"},
        {"commit": "ab"},
        {"commit": "abc1"},
        {"recipe": "r1"},
        {"kind": "bench", "recipe": "r1", "commit": "ab", "fingerprint": "f1"},
    ],
    ids=str,
)
def test_find_is_what_it_says(path: Path, asked: dict[str, str]) -> None:
    runs = [
        make_run(
            number,
            kind="eval" if number % 5 == 0 else "bench",
            model=("org/tiny", "org/other", "tiny")[number % 3],
            fingerprint=f"f{number % 2}",
            sweep_id=f"s{number % 4}" if number % 4 else "",
            provenance={
                "server": {"kind": "atom", "commit": ("abc123", "abd456", "")[number % 3]},
                "recipe": {"name": f"r{number % 2}", "sha256": "0" * 64},
            },
        )
        for number in range(24)
    ]
    with History(path) as history:
        for run in (*runs[12:], *runs[:12]):  # not in the order of time
            history.add(run)
        found = [run.run_id for run in history.find(**asked)]  # type: ignore[arg-type]
        assert found == brute_force(runs, **asked)
        assert [run.run_id for run in history.find(**asked, limit=2)] == found[:2]  # type: ignore[arg-type]


def test_find_by_recipe_takes_names_files_and_hashes(path: Path) -> None:
    recipe = {"name": "fast", "path": "recipes/fast.toml", "sha256": "abcdef0123456789"}
    run = make_run(provenance={"recipe": recipe})
    with History(path) as history:
        history.add(run)
        history.add(make_run(1))
        for text in ("fast", "recipes/fast.toml", "abcdef01"):
            assert [r.run_id for r in history.find(recipe=text)] == [run.run_id]
        for text in ("fas", "abc", "other.toml"):
            assert history.find(recipe=text) == []


def test_since_takes_moments_and_spans(path: Path) -> None:
    now = datetime.now(timezone.utc)
    old, new = make_run(0), make_run(1, run_id=new_run_id(now))
    new.repeats[0].started_at = now.isoformat()
    with History(path) as history:
        history.add(old)
        history.add(new)
        for since in ("2h", "90m", now - timedelta(hours=1), (now - timedelta(1)).isoformat()):
            assert [run.run_id for run in history.find(since=since)] == [new.run_id]
        assert len(history.find(since=FIRST - timedelta(days=1))) == 2
        with pytest.raises(BenchError, match="--since yesterday: write a date"):
            history.find(since="yesterday")


def test_a_beginning_of_an_id_is_enough_while_it_is_the_only_one(path: Path) -> None:
    with History(path) as history:
        for number in range(6):
            history.add(make_run(0, run_id=f"20261101-120000-{number}abcde"))
        history.add(make_run(1))
        assert history.get("20261101-13").run_id == make_run(1).run_id
        assert history.get("20261101-120000-3").run_id == "20261101-120000-3abcde"
        with pytest.raises(HistoryError, match=r"begins several runs: .*, \.\.\.; give more"):
            history.get("20261101-12")
        for missing in ("nope", "", "%", "2026110_"):
            with pytest.raises(HistoryError, match=r"no run|begins several"):
                history.get(missing)


def test_a_whole_id_is_no_beginning(path: Path) -> None:
    with History(path) as history:
        history.add(make_run(run_id="20261101-120000-aaaaaa"))
        history.add(make_run(run_id="20261101-120000-aaaaaabb"))
        assert history.get("20261101-120000-aaaaaa").run_id == "20261101-120000-aaaaaa"


def test_artefacts_are_noted_once(path: Path, tmp_path: Path) -> None:
    run = make_run(legacy={"itls": [[1.0]]})
    with History(path) as history:
        history.add(run)
        for _ in range(2):
            history.attach(run.run_id, "trace", tmp_path / "t.json.gz")
        found = history.get(run.run_id)
        assert found.artefacts == [{"kind": "trace", "path": str(tmp_path / "t.json.gz")}]
        assert found.legacy == run.legacy
        with pytest.raises(HistoryError, match="no run 2"):
            history.attach("2nope", "trace", "x")


def test_reading_what_is_not_there_makes_nothing(path: Path) -> None:
    with History(path) as history:
        assert history.find() == []
        assert history.count() == 0
        assert history.ids("") == []
        with pytest.raises(HistoryError, match="no run x"):
            history.get("x")
    assert not path.parent.exists()


def test_the_stamp_changes_with_the_history(path: Path) -> None:
    with History(path) as history:
        stamps = [history.stamp()]
        history.add(make_run(0))
        stamps.append(history.stamp())
        with History(path) as other:
            other.add(make_run(1))
        stamps.append(history.stamp())
        assert len(set(stamps)) == 3
        history.find()
        assert history.stamp() == stamps[-1]


def test_where_the_history_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    assert default_path() == tmp_path / ".local/share/atom/history.db"
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert default_path() == tmp_path / "data/atom/history.db"
    monkeypatch.setenv(VARIABLE, "~/h.db")
    assert default_path() == tmp_path / "h.db"


ADDER = """
import sys
sys.path.insert(0, sys.argv[3])
from pathlib import Path
from history_helpers import make_records, make_run
from atom.bench.history import History
with History(Path(sys.argv[1])) as history:
    for number in range(10):
        run = make_run(number, run_id=f"20261101-120000-{int(sys.argv[2]):03x}{number:03x}")
        history.add(run, [make_records(3)])
        assert history.get(run.run_id) == run
"""


def test_many_processes_make_and_fill_one_history(path: Path) -> None:
    command = [sys.executable, "-c", ADDER, str(path)]
    helpers = str(Path(__file__).parent)
    adders = [subprocess.Popen([*command, str(n), helpers]) for n in range(4)]
    assert [adder.wait(60) for adder in adders] == [0] * 4
    with History(path) as history:
        runs = history.find()
        assert len({run.run_id for run in runs}) == len(runs) == 40
        assert all(len(list(history.records(run.run_id, 0))) == 3 for run in runs[:5])


def test_threads_share_one_history(path: Path) -> None:
    failures: list[BaseException] = []

    def add(first: int) -> None:
        try:
            for number in range(first, first + 10):
                history.add(make_run(number))
                history.find(limit=3)
        except BaseException as error:
            failures.append(error)

    with History(path) as history:
        threads = [threading.Thread(target=add, args=(10 * n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert history.count() == 40


def test_people_can_ask_with_sqlite(path: Path) -> None:
    with History(path) as history:
        history.add(make_run(1))
    rows = sqlite3.connect(path).execute("SELECT metric, value, low, high FROM metrics").fetchall()
    assert rows == [("output_throughput", 101.0, 95.0, 105.0)]


# What can go wrong: one line, nothing lost.


def saved_run(error: HistoryError) -> RunResult:
    assert error.saved is not None
    assert str(error.saved) in str(error)
    assert "\n" not in str(error)
    ((run, records, _),) = read_results(error.saved)
    assert [len(r) for r in records] == [2]
    error.saved.unlink()
    return run


def test_another_programs_file_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE mine (x)")
    connection.close()
    before = path.read_bytes()
    with History(path) as history:
        with pytest.raises(HistoryError, match="is not a run history"):
            history.find()
        with pytest.raises(HistoryError, match="is not a run history; give another") as caught:
            history.add(make_run(), [make_records(2)])
    assert saved_run(caught.value) == make_run()
    assert path.read_bytes() == before


def test_a_text_file_is_no_history(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("hello " * 1000)
    with History(path) as history, pytest.raises(HistoryError, match="is not a run history"):
        history.check_writable()


def test_a_damaged_history_is_said_and_kept(path: Path) -> None:
    with History(path) as history:
        for number in range(40):
            history.add(make_run(number), [make_records(300)])
    data = bytearray(path.read_bytes())
    data[4096 : len(data) // 2] = b"\xa5" * (len(data) // 2 - 4096)
    path.write_bytes(data)
    with History(path) as history, pytest.raises(HistoryError, match=r"damaged.*recover") as caught:
        history.add(make_run(99), [make_records(2)])
    assert saved_run(caught.value) == make_run(99)


def test_a_newer_history_is_not_touched(path: Path) -> None:
    with History(path) as history:
        history.add(make_run())
    connection = sqlite3.connect(path)
    newer = len(schema.MIGRATIONS) + 2
    connection.execute(f"PRAGMA user_version = {newer}")
    connection.close()
    with History(path) as history:
        said = f"newer atom .version {newer} of the file, {newer - 2} is known"
        with pytest.raises(HistoryError, match=said):
            history.find()
        with pytest.raises(HistoryError, match="update atom or give another file") as caught:
            history.add(make_run(1), [make_records(2)])
    assert saved_run(caught.value) == make_run(1)


def test_a_full_disk_loses_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite's own error of a full disk, from a limit on the file's pages."""
    with History(path) as history:
        history.add(make_run(0))
    connect = schema._connect

    def full(name: str, *, uri: bool = False) -> sqlite3.Connection:
        connection = connect(name, uri=uri)
        connection.execute("PRAGMA max_page_count = 1")  # means: no more than there are
        return connection

    monkeypatch.setattr(schema, "_connect", full)
    run = make_run(1, provenance={"server": {}, "long": "x" * 200_000})
    with History(path) as history:
        with pytest.raises(HistoryError, match="disk is full; free some space") as caught:
            history.add(run, [make_records(2)])
        assert history.count() == 1, "half a run is none"
    assert saved_run(caught.value) == run


def test_where_no_file_can_be_the_run_goes_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with History(Path("/proc/none/history.db")) as history:
        with pytest.raises(HistoryError, match="cannot write the history /proc/none"):
            history.check_writable()
        with pytest.raises(HistoryError, match="atom bench import takes it in") as caught:
            history.add(make_run(), [make_records(2)])
    assert caught.value.saved == tmp_path / f"atom-run-{make_run().run_id}.json"
    assert saved_run(caught.value) == make_run()


def test_a_folder_is_no_history(tmp_path: Path) -> None:
    with History(tmp_path) as history, pytest.raises(HistoryError, match="is a folder"):
        history.find()


def test_migrations_run_once_and_whole(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with History(path) as history:
        history.add(make_run())
    old = schema.MIGRATIONS
    broken = (*old, ("CREATE TABLE extra (x)", "INSERT INTO nowhere VALUES (1)"))
    monkeypatch.setattr(schema, "MIGRATIONS", broken)
    with History(path) as history, pytest.raises(HistoryError, match="nowhere"):
        history.find()
    monkeypatch.setattr(schema, "MIGRATIONS", old)
    with History(path) as history:
        assert history.count() == 1, "a migration that failed left nothing behind"
    monkeypatch.setattr(schema, "MIGRATIONS", (*old, ("CREATE TABLE extra (x)",)))
    for _ in range(2):
        with History(path) as history:
            assert history.count() == 1, "reading migrates, too"
    tables = "SELECT name FROM sqlite_master WHERE name = 'extra'"
    assert len(sqlite3.connect(path).execute(tables).fetchall()) == 1


def read_as_nobody(path: Path) -> list[str]:
    """What a user without rights on the file and its folder reads and is told."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setuid(65534)
            with History(path) as history:
                said = [str(history.count())]
                try:
                    history.check_writable()
                except HistoryError as error:
                    said.append(str(error))
        except BaseException as error:
            said = [repr(error)]
        os.write(writing, json.dumps(said).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        found: list[str] = json.loads(pipe.read())
    os.waitpid(child, 0)
    return found


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # fork beside a thread
def test_a_history_that_may_only_be_read_is_read() -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        path = folder / "history.db"
        with History(path) as history:
            history.add(make_run())
        path.chmod(0o444)
        folder.chmod(0o555)
        count, said = read_as_nobody(path)
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)
    assert count == "1"
    assert "cannot write the history" in said
    assert "by this user" in said


def test_a_rescued_run_is_plain_json(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("no history" * 200)
    with History(path) as history, pytest.raises(HistoryError) as caught:
        history.add(make_run(metrics={"p99_ttft_ms": Interval(1.0, -math.inf, math.nan)}))
    assert caught.value.saved is not None
    tree = json.loads(caught.value.saved.read_text(), parse_constant=pytest.fail)
    assert tree["atom"]["metrics"]["p99_ttft_ms"] == {"value": 1.0, "low": "-inf", "high": "nan"}
