"""Exports: JSON without loss, CSV and XLSX read back as a reader would."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import openpyxl
import pytest
from history_helpers import LM_EVAL, SERVING, make_records, make_run, make_samples, write

from atom.bench.errors import BenchError
from atom.bench.history import History, workbook
from atom.bench.history.export import export, format_of, write_text
from atom.bench.history.importers import read_results
from atom.bench.types import Interval

HOSTILE = ["=1+1", "#N/A", "@cmd", "+x", "-y", "a\x00b\x0bc"]
HOSTILE += ['quote"', "комма,comma", "\ttab", "x" * 300]


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    speeds = {
        "output_throughput": Interval(1234.5, 1200.0, 1260.0),
        "output_throughput_per_user": Interval(50.0, 49.0, 51.0),
        "error_rate": Interval(0.25, 0.2, 0.3),
        "mean_ttft_ms": Interval(12.25, float("-inf"), float("inf")),
    }
    with History(tmp_path / "h.db") as made:
        for number in range(4):
            run = make_run(
                number,
                metrics=speeds,
                legacy={"itls": [[0.1]], "completed": number},
                load={"mode": "closed", "concurrency": 2**number},
                provenance={"recipe": {"name": "r", "text": "#" * 70_000}, "driver": "D 1"},
            )
            made.add(run, [make_records(number)], {"gsm8k": make_samples(100 * number)})
        for number, name in enumerate(HOSTILE, 10):
            made.add(make_run(number, name=name, model=name))
        made.add(read_results(write(tmp_path / "e.json", LM_EVAL))[0].run)
        yield made


@pytest.mark.parametrize("kind", ["json", "jsonl"])
@pytest.mark.parametrize("records", [False, True])
def test_json_loses_nothing(history: History, tmp_path: Path, kind: str, records: bool) -> None:
    path = tmp_path / f"out.{kind}"
    count = export(history, history.find(), path, kind, records=records)
    json.loads(path.read_text().split("\n")[0] if kind == "jsonl" else path.read_text())
    with History(tmp_path / "second.db") as second:
        for loaded in read_results(path):
            second.add(*loaded)
        assert second.count() == history.count() == count
        for run in history.find():
            assert second.get(run.run_id) == history.get(run.run_id)
            for repeat in range(1):
                stored = list(history.records(run.run_id, repeat)) if records else []
                assert list(second.records(run.run_id, repeat)) == stored
            tasks = history.evaluated(run.run_id) if records else {}
            assert second.evaluated(run.run_id) == tasks
            for task in tasks:
                asked = list(history.evaluations(run.run_id, task))
                assert list(second.evaluations(run.run_id, task)) == asked


def test_csv(history: History) -> None:
    out = io.StringIO()
    runs = history.find()
    write_text(history, runs, out, "csv")
    rows = list(csv.DictReader(io.StringIO(out.getvalue())))
    assert [row["run_id"] for row in rows] == [run.run_id for run in runs]
    (third,) = [row for row in rows if row["concurrency"] == "4"]
    assert float(third["output_throughput"]) == 1234.5
    assert float(third["output_throughput_low"]) == 1200.0
    assert float(third["mean_ttft_ms_high"]) == float("inf")
    assert third["started_at"] == "2026-11-01T14:00:00.000000Z"
    scores = [row["gsm8k/exact_match,strict-match"] for row in rows]
    assert sorted(scores)[-1] == "0.94"
    assert len(rows[0]) == len(set(rows[0])), "no column twice"
    names = [row["name"] for row in rows]
    assert not any(name.startswith(("=", "+", "-", "@", "\t")) for name in names)
    assert "'=1+1" in names
    assert 'quote"' in names


@pytest.fixture
def book(history: History, tmp_path: Path) -> Path:
    path = tmp_path / "out.xlsx"
    assert export(history, history.find(), path, "xlsx") == history.count()
    return path


def table(sheet: Any) -> list[dict[str, Any]]:
    heads, *rows = sheet.iter_rows(values_only=True)
    return [dict(zip(heads, row, strict=True)) for row in rows]


def test_the_workbook_reads_back(history: History, book: Path) -> None:
    sheets = openpyxl.load_workbook(book)
    assert sheets.sheetnames == ["runs", "metrics", "repeats", "provenance", "chart"]
    runs = {row["run_id"]: row for row in table(sheets["runs"])}
    assert len(runs) == history.count()
    second = runs[make_run(1).run_id]
    assert second["started (UTC)"] == datetime(2026, 11, 1, 13)
    assert second["concurrency"] == 2
    assert second["output_throughput"] == 1234.5
    measured = [row for row in table(sheets["metrics"]) if row["run_id"] == make_run(1).run_id]
    assert {row["metric"]: (row["value"], row["low"], row["high"]) for row in measured} == {
        "output_throughput": (1234.5, 1200.0, 1260.0),
        "output_throughput_per_user": (50.0, 49.0, 51.0),
        "error_rate": (0.25, 0.2, 0.3),
        "mean_ttft_ms": (12.25, "-inf", "inf"),
    }
    (repeat,) = [row for row in table(sheets["repeats"]) if row["run_id"] == make_run(1).run_id]
    assert (repeat["seed"], repeat["duration_s"], repeat["client_bound"]) == (1, 12.5, False)
    told = [row for row in table(sheets["provenance"]) if row["run_id"] == make_run(1).run_id]
    facts = {row["key"]: row["value"] for row in told}
    assert facts["driver"] == "D 1"
    pieces = [facts[f"recipe.text ({n}/3)"] for n in (1, 2, 3)]
    assert "".join(pieces) == "#" * 70_000, "longer than a cell may be, yet whole"


def test_the_workbook_is_pleasant(book: Path) -> None:
    sheets = openpyxl.load_workbook(book)
    for sheet in sheets.worksheets[:4]:
        assert sheet.freeze_panes == "B2"
        assert sheet["A1"].font.bold
        assert sheet.auto_filter.ref.endswith(str(sheet.max_row))
        widths = [sheet.column_dimensions[cell.column_letter].width for cell in sheet[1]]
        assert all(
            width >= len(str(cell.value)) for width, cell in zip(widths, sheet[1], strict=True)
        )
    heads = {cell.value: cell.column for cell in sheets["runs"][1]}
    row = next(r for r in sheets["runs"].iter_rows(min_row=2) if r[0].value == make_run(1).run_id)
    assert row[heads["error_rate"] - 1].number_format == "0.00%"
    assert row[heads["output_throughput"] - 1].number_format == "#,##0.00"
    assert row[heads["started (UTC)"] - 1].is_date


def test_no_text_becomes_a_formula(book: Path) -> None:
    sheets = openpyxl.load_workbook(book)
    for sheet in sheets.worksheets:
        for row in sheet.iter_rows():
            assert all(cell.data_type not in "fe" for cell in row)
    names = {row["name"] for row in table(sheets["runs"])}
    assert {"=1+1", "#N/A", "@cmd", "a\ufffdb\ufffdc"} <= names


def test_the_chart_shows_runs_that_are_there(book: Path) -> None:
    space = {"c": "http://schemas.openxmlformats.org/drawingml/2006/chart"}
    with zipfile.ZipFile(book) as parts:
        (chart,) = [name for name in parts.namelist() if name.startswith("xl/charts/chart")]
        tree = ElementTree.fromstring(parts.read(chart))
    (series,) = tree.iterfind(".//c:ser", space)  # one: the only name with both metrics
    sheet = openpyxl.load_workbook(book)["runs"]
    heads = {"xVal": "output_throughput_per_user", "yVal": "output_throughput"}
    for axis, head in heads.items():
        place = series.findtext(f"c:{axis}//c:f", "", space)
        cells = [row[0] for row in sheet[place.rpartition("!")[2].replace("$", "")]]
        assert sheet.cell(1, cells[0].column).value == head
        shown = {sheet.cell(cell.row, 1).value for cell in cells}
        assert {make_run(number).run_id for number in range(4)} <= shown
        assert {sheet.cell(cell.row, 4).value for cell in cells} == {"tiny"}


def test_a_sheet_that_would_overflow_is_said(
    history: History, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workbook, "MAX_ROWS", 10)
    path = write(tmp_path / "old.xlsx", "the old one")
    with pytest.raises(BenchError, match="more than 10 rows"):
        export(history, history.find(), path, "xlsx")
    assert path.read_text() == "the old one", "a file is replaced by a whole one only"
    assert not list(tmp_path.glob(".old*"))


def test_exporting_runs_without_metrics(tmp_path: Path) -> None:
    tree = {**SERVING, "completed": 0}
    with History(tmp_path / "h.db") as history:
        history.add(make_run(metrics={}, repeats=[]))
        history.add(read_results(write(tmp_path / "r.json", tree))[0].run)
        for kind in ("json", "csv", "xlsx"):
            assert export(history, history.find(), tmp_path / f"o.{kind}", kind) == 2


@pytest.mark.parametrize(
    ("path", "given", "expected"),
    [
        (None, None, "json"),
        (None, "csv", "csv"),
        ("a.XLSX", None, "xlsx"),
        ("a.txt", "jsonl", "jsonl"),
        ("a.json", "csv", "csv"),
    ],
)
def test_the_format(path: str | None, given: str | None, expected: str) -> None:
    assert format_of(Path(path) if path else None, given) == expected


def test_formats_that_are_not(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="--format pdf: choose one of json"):
        format_of(None, "pdf")
    with pytest.raises(BenchError, match="the ending names no format"):
        format_of(Path("a.pdf"), None)


def test_places_that_are_not(history: History, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"cannot write .*: No such file or directory"):
        export(history, history.find(), tmp_path / "no" / "x.json", "json")
    with pytest.raises(BenchError, match="is the history itself"):
        export(history, history.find(), history.path, "json")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(BenchError, match=r"cannot write .*folder.json"):
        export(history, history.find(), tmp_path / "folder.json", "json")
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".folder")]
