"""Tables into an .xlsx for reading: widths, frozen header, merged modules, data bars, charts.

Names from a trace are text, whatever they begin with; openpyxl would take "=..." for a formula.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atom.trace.errors import TraceError
from atom.trace.tables import Cell, Chart, Column, Table

if TYPE_CHECKING:
    from openpyxl.workbook import Workbook
    from openpyxl.worksheet.worksheet import Worksheet

MAX_ROWS = 1_048_576  # of a sheet
MAX_CELL = 32_767  # characters
_FORMATS = {"us": "#,##0.00", "pct": "0.0", "int": "#,##0"}
_WIDTHS = {"us": 12.0, "pct": 9.0, "int": 9.0}
_WIDEST = {"text": 44.0, "name": 60.0, "prose": 110.0}
_CHART_COLUMNS = 17
_CHART_DATA = "chart_data"
# What XML 1.0 cannot hold.
_ILLEGAL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]|[\ud800-\udfff]")
_FONT = "Calibri"
_DARK, _BAND, _RULE, _BLUE = "1F3864", "F3F6FB", "B4C0D4", "5B8DD6"


def write_workbook(tables: Sequence[Table], path: Path) -> None:
    """Write one sheet per table. Raises `TraceError` if the file cannot be written."""
    from openpyxl import Workbook

    book = Workbook()
    book.remove(book.active)
    for table in tables:
        _sheet(book, table)
    if _CHART_DATA in book.sheetnames:  # behind the others, hidden: what the charts draw
        data = book[_CHART_DATA]
        book.move_sheet(data, len(book.sheetnames))
        data.sheet_state = "hidden"
    try:
        book.save(path)
    except OSError as error:
        raise TraceError(f"{path} cannot be written: {error.strerror or error}") from error


def _sheet(book: Workbook, table: Table) -> None:
    sheet = book.create_sheet(table.name)
    _header(sheet, table.columns)
    room = MAX_ROWS - 2
    rows = table.rows[:room]
    if len(rows) < len(table.rows):
        table.notes.insert(0, f"The first {room:,} of {len(table.rows):,} rows; --csv has all.")
    starts = {first for first, _ in table.runs}
    for index, row in enumerate(rows):
        _row(sheet, table, index, row, starts)
    for first, last in table.runs:
        if last > first and last < len(rows):
            _merge(sheet, table.columns, first, last)
    if table.total is not None:
        _total(sheet, table, len(rows) + 2)
    _widths(sheet, table)
    for place, column in enumerate(table.columns, 1):
        if column.bar and rows:
            _bars(sheet, place, len(rows) + 1)
    sheet.freeze_panes = "B2"
    sheet.sheet_view.zoomScale = 90
    sheet.sheet_view.showGridLines = False
    if not table.runs and rows:
        sheet.auto_filter.ref = f"A1:{_letter(len(table.columns))}{len(rows) + 1}"
    sheet.page_setup.orientation = "landscape"
    sheet.page_setup.paperSize = sheet.PAPERSIZE_A3
    sheet.page_setup.fitToWidth, sheet.page_setup.fitToHeight = 1, 0
    sheet.sheet_properties.pageSetUpPr.fitToPage = True
    sheet.print_title_rows = "1:1"
    _place_charts(book, sheet, table)


def _header(sheet: Worksheet, columns: Sequence[Column]) -> None:
    from openpyxl.styles import Alignment, Font, PatternFill

    for place, column in enumerate(columns, 1):
        cell = sheet.cell(1, place, column.header)
        cell.font = Font(_FONT, bold=True, color="FFFFFF")
        cell.fill = PatternFill("solid", start_color=_DARK)
        side = "left" if column.kind in _WIDEST else "right"
        indent = 1 if column.kind in _WIDEST else 0
        cell.alignment = Alignment(
            horizontal=side, vertical="center", wrap_text=True, indent=indent
        )
    sheet.row_dimensions[1].height = 32


def _row(sheet: Worksheet, table: Table, index: int, row: Sequence[Cell], starts: set[int]) -> None:
    from openpyxl.styles import Alignment, Border, Font, Side

    number = index + 2
    indent = Alignment(horizontal="left", vertical="top", indent=1)
    wrapped = Alignment(horizontal="left", vertical="top", indent=1, wrap_text=True)
    rule = Border(top=Side("thin", color=_RULE)) if index in starts else None
    strong = Font(_FONT, bold=True) if index in table.strong else None
    inside_run = bool(table.runs) and index not in starts
    for place, (column, value) in enumerate(zip(table.columns, row, strict=True), 1):
        if column.per_run and inside_run:
            value = None  # the merged cell's first row holds it
        cell = sheet.cell(number, place)
        if value is not None:
            _fill(cell, column, value)
            if column.kind in _WIDEST:
                cell.alignment = wrapped if column.kind == "prose" else indent
            if column.kind == "prose":  # programs do not fit a row to wrapped text by themselves
                lines = 1 + len(str(value)) // int(_WIDEST["prose"])
                sheet.row_dimensions[number].height = 15.0 * lines
        if rule is not None:
            cell.border = rule
        if strong is not None:
            cell.font = strong


def _fill(cell: Any, column: Column, value: Cell) -> None:
    if isinstance(value, str):
        cell.value = _text(value)
        cell.data_type = "s"
    else:
        cell.value = value
        cell.number_format = _FORMATS.get(column.kind, "General")


def _text(value: str) -> str:
    clean = _ILLEGAL.sub("�", value)
    return clean if len(clean) <= MAX_CELL else clean[: MAX_CELL - 1] + "…"


def _merge(sheet: Worksheet, columns: Sequence[Column], first: int, last: int) -> None:
    from openpyxl.styles import Alignment

    for place, column in enumerate(columns, 1):
        if column.per_run:
            sheet.merge_cells(
                start_row=first + 2, end_row=last + 2, start_column=place, end_column=place
            )
            side = "left" if column.kind in _WIDEST else "right"
            cell = sheet.cell(first + 2, place)
            indent = 1 if column.kind in _WIDEST else 0
            cell.alignment = Alignment(
                horizontal=side, vertical="center", wrap_text=True, indent=indent
            )


def _total(sheet: Worksheet, table: Table, number: int) -> None:
    from openpyxl.styles import Alignment, Border, Font, PatternFill, Side

    assert table.total is not None
    for place, (column, value) in enumerate(zip(table.columns, table.total, strict=True), 1):
        cell = sheet.cell(number, place)
        if value is not None:
            _fill(cell, column, value)
            if column.kind in _WIDEST:
                cell.alignment = Alignment(horizontal="left", indent=1)
        cell.font = Font(_FONT, bold=True)
        cell.fill = PatternFill("solid", start_color=_BAND)
        cell.border = Border(top=Side("medium", color=_DARK))


def _widths(sheet: Worksheet, table: Table) -> None:
    for place, column in enumerate(table.columns):
        width = _WIDTHS.get(column.kind, 10.0)
        if column.kind in _WIDEST:
            shown = [str(row[place]) for row in table.rows[:2000] if row[place]]
            longest = max([len(text) for text in shown] + [len(column.header)])
            width = min(longest + 2.5, _WIDEST[column.kind])
        else:
            width = max(width, max(len(word) for word in column.header.split()) + 3.0)
        sheet.column_dimensions[_letter(place + 1)].width = width


def _bars(sheet: Worksheet, place: int, last: int) -> None:
    from openpyxl.formatting.rule import DataBarRule

    letter = _letter(place)
    rule = DataBarRule("num", 0, "max", color=_BLUE, showValue=True)
    sheet.conditional_formatting.add(f"{letter}2:{letter}{last}", rule)


def _place_charts(book: Workbook, sheet: Worksheet, table: Table) -> None:
    """Charts beside or under the table, with the notes in the first one's title.

    Cells hold the table and nothing else, so that a program reads the sheet as it is.
    """
    column = 1 if table.below else len(table.columns) + 2
    row = len(table.rows) + 4 if table.below else 2
    notes, last = table.notes, len(table.rows) + 2
    for chart in table.charts:
        sheet.add_chart(_chart(book, chart, notes), f"{_letter(column)}{row}")
        row += 2 + int(_height(chart, notes) * 2)
        notes, last = [], max(last, row)
    # What flows out of the last column, and the width of a chart beside it, are no page's width.
    wide = len(table.columns) + (0 if table.below or not table.charts else _CHART_COLUMNS)
    sheet.print_area = f"A1:{_letter(wide)}{last}"


def _height(chart: Chart, notes: Sequence[str]) -> float:
    """cm; a line of the title holds about 120 characters."""
    lines = sum(1 + len(note) // 120 for note in notes)
    return (3.0 + 0.55 * len(chart.rows) if chart.style == "bar" else 8.0) + 0.45 * lines


def _chart(book: Workbook, chart: Chart, notes: Sequence[str]) -> Any:
    """A chart whose numbers stand in the hidden sheet: its order is not the table's."""
    from openpyxl.chart import BarChart, LineChart, Reference
    from openpyxl.chart.shapes import GraphicalProperties

    data = book[_CHART_DATA] if _CHART_DATA in book.sheetnames else book.create_sheet(_CHART_DATA)
    column = data.max_column + 1 if data["A1"].value is not None else 1
    for index, (label, value) in enumerate([(chart.title, None), *chart.rows], 1):
        cell = data.cell(index, column, _text(label))
        cell.data_type = "s"
        data.cell(index, column + 1, chart.title if value is None else value)
    made: Any = LineChart() if chart.style == "line" else BarChart()
    values = Reference(data, min_col=column + 1, min_row=1, max_row=len(chart.rows) + 1)
    made.add_data(values, titles_from_data=True)
    made.set_categories(Reference(data, min_col=column, min_row=2, max_row=len(chart.rows) + 1))
    made.title, made.legend = _title([chart.title, *notes]), None
    made.width, made.height = 26.0 if notes else 18.0, _height(chart, notes)
    made.plot_visible_only = False
    made.x_axis.delete = made.y_axis.delete = False
    made.y_axis.majorGridlines.spPr = GraphicalProperties(ln=_line("D9D9D9"))
    made.y_axis.number_format, made.y_axis.scaling.min = "#,##0.#", 0
    series = made.series[0]
    if chart.style == "line":
        series.graphicalProperties.line.solidFill = _BLUE
        series.graphicalProperties.line.width = 15_000
        series.smooth = False
    else:
        made.type, made.gapWidth = chart.style, 40
        series.graphicalProperties.solidFill = _BLUE
    if chart.style == "bar":
        made.x_axis.scaling.orientation = "maxMin"  # the first row on top
        made.y_axis.crosses = "max"
    return made


def _title(lines: Sequence[str]) -> Any:
    """Several lines; LibreOffice draws all of them as the first, so they have one style."""
    from openpyxl.chart.title import title_maker
    from openpyxl.drawing.text import CharacterProperties

    made = title_maker("\n".join(_text(" ".join(line.split())) for line in lines))
    made.overlay = False
    for paragraph in made.tx.rich.p:
        style = CharacterProperties(sz=900, b=False)
        for run in paragraph.r:
            run.rPr = style
    return made


def _line(color: str) -> Any:
    from openpyxl.drawing.line import LineProperties

    return LineProperties(solidFill=color)


def _letter(place: int) -> str:
    from openpyxl.utils import get_column_letter

    return str(get_column_letter(place))
