"""Workbooks opened again: sheets, columns, merges, formats, and totals against the raw JSON."""

from __future__ import annotations

import csv
import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from hand_models import Row, llama, model_of, model_of_rows
from openpyxl.worksheet.worksheet import Worksheet
from synthetic import TraceBuilder

from atom.trace import workbook
from atom.trace.about import about_table
from atom.trace.breakdown import breakdown
from atom.trace.csvs import write_csvs
from atom.trace.errors import TraceError
from atom.trace.report import as_json, make_report
from atom.trace.tables import Chart, Column, Table, tables
from atom.trace.types import Analysis
from atom.trace.workbook import write_workbook

MAIN = [
    "cpu_module", "gpu_kernel", "duration_us", "pct%", "sum per module", "module_pct%",
    "avg duration_us", "avg sum per module",
]  # fmt: skip
SUMMARY = ["gpu_kernel", "calls", "total_duration_us", "avg_duration_us", "pct%"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prefill and six decode steps, and their workbooks."""
    folder = tmp_path_factory.mktemp("parse")
    run = TraceBuilder()
    llama(run, "prefill[bs=1 tok=512 ctx=512]", scale=4)
    for place in range(6):
        llama(run, f"decode[bs=32 tok=32 d=32 sk={place}]", scale=1 + place / 10, stray=place == 2)
    model = model_of(run, folder / "rank_0" / "llama.pt.trace.json.gz")
    for kind in ("prefill", "decode"):
        made = breakdown(model, kind, 3, 3 if kind == "decode" else "median")
        sheets = tables(made)
        sheets.append(about_table(made, Analysis([model]), sheets))
        write_workbook(sheets, folder / f"{kind}_breakdown.xlsx")
        write_csvs(kind, sheets, folder)
    return folder


def header(sheet: Worksheet) -> list[Any]:
    return [cell.value for cell in sheet[1] if cell.value is not None]


def rows_of(sheet: Worksheet) -> list[dict[str, Any]]:
    names = header(sheet)
    body = sheet.iter_rows(min_row=2, max_col=len(names), values_only=True)
    return [dict(zip(names, row, strict=True)) for row in body]


def same(shown: Any, want: Any) -> bool:
    """Of a cell and the value it was given; openpyxl writes 16 digits, and no empty text."""
    if isinstance(want, float):
        return bool(shown == pytest.approx(want, rel=1e-14))
    return bool(shown == (want if want != "" else None))


def raw_kernels(folder: Path, label: str, scope: str = "") -> list[dict[str, Any]]:
    """GPU events of one step, straight from the file: those whose launch lies within the step's
    annotation, and within one that begins with `scope`."""
    with gzip.open(folder / "rank_0" / "llama.pt.trace.json.gz") as file:
        events = json.load(file)["traceEvents"]
    marks = [e for e in events if e.get("cat") == "user_annotation"]

    def within(launch: dict[str, Any], mark: dict[str, Any]) -> bool:
        return bool(mark["ts"] <= launch["ts"] < mark["ts"] + mark["dur"])

    launches = {
        e["args"]["correlation"]
        for e in events
        if e.get("cat") == "cuda_runtime"
        and any(within(e, m) for m in marks if m["name"] == label)
        and (not scope or any(within(e, m) for m in marks if m["name"].startswith(scope)))
    }
    return [
        event
        for event in events
        if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")
        and event["args"]["correlation"] in launches
    ]


@pytest.mark.parametrize(
    ("kind", "label"),
    [("prefill", "prefill[bs=1 tok=512 ctx=512]"), ("decode", "decode[bs=32 tok=32 d=32 sk=2]")],
)
def test_totals_equal_the_sums_of_the_json(folder: Path, kind: str, label: str) -> None:
    book = openpyxl.load_workbook(folder / f"{kind}_breakdown.xlsx")
    events = raw_kernels(folder, label)
    total = sum(event["dur"] for event in events)
    assert rows_of(book["step"])[-1]["duration_us"] == pytest.approx(total, abs=1e-6)
    summary = rows_of(book["kernel_summary"])
    assert summary[-1]["total_duration_us"] == pytest.approx(total, abs=1e-6)
    assert summary[-1]["calls"] == len(events)
    by_name: dict[str, float] = {}
    for event in events:
        by_name[event["name"]] = by_name.get(event["name"], 0) + event["dur"]
    assert sorted(row["total_duration_us"] for row in summary[:-1]) == pytest.approx(
        sorted(by_name.values())
    )
    layer = raw_kernels(folder, label, "model.layers.3.")
    main = rows_of(book[kind])
    assert len(main) == len(layer) + 1
    of_layer = sum(event["dur"] for event in layer)
    assert main[-1]["duration_us"] == pytest.approx(of_layer, abs=1e-6)
    assert main[-1]["sum per module"] == pytest.approx(of_layer, abs=1e-6)


def test_sheets_and_columns_are_the_seeds_first(folder: Path) -> None:
    for kind in ("prefill", "decode"):
        book = openpyxl.load_workbook(folder / f"{kind}_breakdown.xlsx")
        assert book.sheetnames[:2] == [kind, "kernel_summary"]
        assert book.sheetnames[2:7] == ["modules", "layers", "step", "steps", "match"]
        assert book.sheetnames[-2:] == ["about", "chart_data"]
        assert header(book[kind])[:8] == MAIN
        assert header(book["kernel_summary"])[:5] == SUMMARY
        last = rows_of(book[kind])[-1]
        assert (last["cpu_module"], last["pct%"], last["module_pct%"]) == ("TOTAL", 100, 100)
        totals = [row["total_duration_us"] for row in rows_of(book["kernel_summary"])[:-1]]
        assert totals == sorted(totals, reverse=True)


def test_modules_are_merged_over_their_kernels(folder: Path) -> None:
    sheet = openpyxl.load_workbook(folder / "decode_breakdown.xlsx")["decode"]
    merged = sorted(str(cells) for cells in sheet.merged_cells.ranges)
    # Rows 2-3: norm and projection, rows 4-6: attention; the others are single kernels.
    assert merged == sorted(
        f"{column}{first}:{column}{last}" for first, last in ((2, 3), (4, 6)) for column in "AEFH"
    )
    assert sheet["A2"].value == "input_layernorm+self_attn.qkv_proj"
    assert sheet["A7"].value == "self_attn.o_proj"
    sums = [row["sum per module"] for row in rows_of(sheet)[:-1]]
    assert sum(value for value in sums if value) == pytest.approx(
        rows_of(sheet)[-1]["sum per module"]
    )


def test_formatted_for_reading(folder: Path) -> None:
    book = openpyxl.load_workbook(folder / "decode_breakdown.xlsx")
    for name in book.sheetnames[:-1]:
        assert book[name].freeze_panes == "B2"
        assert book[name]["A1"].font.bold
    main = book["decode"]
    assert main["C2"].number_format == "#,##0.00"
    assert main["D2"].number_format == "0.0"
    assert main.column_dimensions["B"].width > 30
    rules = [str(found.sqref) for found in main.conditional_formatting]
    assert rules == ["C2:C10", "F2:F10"]
    charts = {name: len(book[name]._charts) for name in book.sheetnames}
    assert {name for name, count in charts.items() if count} == {
        "decode", "kernel_summary", "modules", "layers", "steps"
    }  # fmt: skip
    assert book["chart_data"].sheet_state == "hidden"


def test_charts_show_the_tables_figures(folder: Path) -> None:
    book = openpyxl.load_workbook(folder / "decode_breakdown.xlsx")
    values = book["decode"]._charts[0].series[0].val.numRef.f
    sheet, cells = values.replace("'", "").replace("$", "").split("!")
    assert sheet == "chart_data"
    drawn = [cell.value for (cell,) in book[sheet][cells]]
    assert sum(drawn) == pytest.approx(rows_of(book["decode"])[-1]["duration_us"])
    assert drawn == sorted(drawn, reverse=True)


def test_the_step_shown_is_in_bold(folder: Path) -> None:
    sheet = openpyxl.load_workbook(folder / "decode_breakdown.xlsx")["steps"]
    bold = [row[0].value for row in sheet.iter_rows(min_row=2) if row[0].font.bold]
    assert bold == [3]


def test_about_says_what_is_shown(folder: Path) -> None:
    found = rows_of(openpyxl.load_workbook(folder / "decode_breakdown.xlsx")["about"])
    text = "\n".join(f"{row['what']}: {row['value']}" for row in found)
    assert "shown: Step 3: decode[bs=32 tok=32 d=32 sk=2]" in text
    assert "the 5 layers of group A (1-5)" in text
    assert "note: 1 kernel without a module, 1.56 us" in text
    assert "column avg duration_us: mean over the layers of the group (decode)" in text


def test_names_are_text_whatever_they_are(tmp_path: Path) -> None:
    names = ["=1+1", "+cmd", "bell\x07", "half\ud800", "x" * 40_000]
    rows = [Row(0, 0, name, name, 10 * i, 5) for i, name in enumerate(names)]
    made = breakdown(model_of_rows(rows, ["decode"], [1]), "decode", 0)
    write_workbook(tables(made), tmp_path / "a.xlsx")
    sheet = openpyxl.load_workbook(tmp_path / "a.xlsx")["decode"]
    kernels = [sheet.cell(row, 2) for row in range(2, 7)]
    assert {cell.data_type for cell in kernels} == {"s"}
    shown = [cell.value for cell in kernels]
    assert shown[:4] == ["=1+1", "+cmd", "bell�", "half�"]
    assert shown[4] == "x" * 32_766 + "…"
    files = write_csvs("decode", tables(made), tmp_path)
    assert "x" * 40_000 in files[0].read_text(encoding="utf-8")


def test_more_rows_than_a_sheet_holds_are_cut_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workbook, "MAX_ROWS", 12)
    columns = (Column("n", "n", "int", "number"),)
    table = Table("many", columns, rows=[[n] for n in range(20)], runs=[(8, 9), (9, 15)])
    table.total = [190]
    table.charts = [Chart("n", "n", "n", [("a", 1.0)])]
    write_workbook([table], tmp_path / "a.xlsx")
    book = openpyxl.load_workbook(tmp_path / "a.xlsx")
    assert [row[0] for row in book["many"].iter_rows(values_only=True)] == ["n", *range(10), 190]
    title = book["many"]._charts[0].title.tx.rich.p
    assert "The first 10 of 20 rows; --csv has all." in [run.t for p in title for run in p.r]


def test_a_file_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    made = breakdown(model_of_rows([Row(0, 0, "m", "k", 0, 5)], ["decode"], [1]), "decode")
    for write in (
        lambda: write_workbook(tables(made), tmp_path / "no" / "a.xlsx"),
        lambda: write_csvs("decode", tables(made), tmp_path / "no"),
    ):
        with pytest.raises(TraceError, match="cannot be written: No such file or directory"):
            write()


def test_csv_columns_add_up(folder: Path) -> None:
    with (folder / "decode_breakdown.csv").open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    sheet = openpyxl.load_workbook(folder / "decode_breakdown.xlsx")["decode"]
    total = rows_of(sheet)[-1]
    assert list(found[0]) == header(sheet)
    assert all(row["cpu_module"] not in ("", "TOTAL") for row in found)
    for column in ("duration_us", "pct%", "sum per module", "avg duration_us"):
        assert sum(float(row[column] or 0) for row in found) == pytest.approx(total[column])
    assert (folder / "decode_kernel_summary.csv").exists()


def test_json_sheets_and_csv_have_one_source(folder: Path, tmp_path: Path) -> None:
    run = TraceBuilder()
    llama(run, "decode[bs=32 tok=32 d=32]")
    report = make_report(Analysis([model_of(run, tmp_path / "a.json")]))
    write_workbook(report.sheets[0], tmp_path / "a.xlsx")
    document = json.loads(json.dumps(as_json(report)))
    sheets = document["breakdowns"][0]["sheets"]
    book = openpyxl.load_workbook(tmp_path / "a.xlsx")
    assert list(sheets) == [n for n in book.sheetnames if n not in ("about", "chart_data")]
    for name, sheet in sheets.items():
        shown = rows_of(book[name])
        if sheet["total"] is not None:
            total = [v for v in shown.pop().values() if v is not None]
            assert all(map(same, total, sheet["total"].values()))
        merged = {c for cells in book[name].merged_cells.ranges for c in cells.cells}
        for number, (row, cells) in enumerate(zip(sheet["rows"], shown, strict=True), 2):
            for column, (want, got) in enumerate(zip(row.values(), cells.values(), strict=True), 1):
                assert same(got, want) or (number, column) in merged
    assert document["missing"] == ["no prefill_breakdown.xlsx: there is 1 decode step"]


def test_ranks_stand_side_by_side(tmp_path: Path) -> None:
    models = []
    for rank in range(2):
        run = TraceBuilder(rank=rank, world_size=2)
        llama(run, "decode[bs=32 tok=32 d=32]", scale=1 + rank)
        models.append(model_of(run, tmp_path / f"rank_{rank}" / "a.json"))
    report = make_report(Analysis(models), rank=1)
    table = next(sheet for sheet in report.sheets[0] if sheet.name == "ranks")
    assert [row["rank"] for row in table.objects()] == [1, 0]
    slow, fast = (row["busy_us"] for row in table.objects())
    assert slow == pytest.approx(2 * fast)  # type: ignore[operator]
    assert [row["layer"] for row in table.objects()] == [3, 3]
    with pytest.raises(TraceError, match="--rank 7: the traces are of rank 0, 1"):
        make_report(Analysis(models), rank=7)


def test_a_rank_without_the_layer_shows_its_own_and_says_which() -> None:
    models = []
    for rank in range(2):
        rows = [Row(0, 4 * rank + place, "m", "k", 10 * place, 5) for place in range(4)]
        model = model_of_rows(rows, ["decode"], [1])
        models.append(replace(model, trace=replace(model.trace, rank=rank)))
    report = make_report(Analysis(models), layer=2)
    table = next(sheet for sheet in report.sheets[0] if sheet.name == "ranks")
    assert [(row["rank"], row["layer"]) for row in table.objects()] == [(0, 2), (1, 7)]
