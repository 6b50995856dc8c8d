"""Runs as an Excel workbook: sheets runs, metrics, repeats, provenance and a chart.

Written row by row (openpyxl's write-only mode), so that thousands of runs need little memory.
Numbers are numbers, moments are dates in UTC, and no text becomes a formula.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO, Any

from openpyxl import Workbook
from openpyxl.cell import WriteOnlyCell
from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE
from openpyxl.chart import Reference, ScatterChart, Series
from openpyxl.styles import Alignment, Font, PatternFill
from openpyxl.utils import get_column_letter

from atom.bench import names
from atom.bench.errors import BenchError
from atom.bench.history import flat
from atom.bench.history.runs import parse_moment
from atom.bench.types import RunResult

MAX_ROWS = 1_048_576  # of a sheet, by Excel's format
MAX_TEXT = 32_767  # of a cell, likewise
MAX_SERIES = 12  # more are not told apart
DATE = "yyyy-mm-dd hh:mm:ss"
WIDTHS = {
    **{"run_id": 27, "started_at": 20, "name": 26, "model": 36, "commit": 14, "command": 60},
    **{"metric": 34, "label": 36, "key": 34, "value": 60, "recipe": 20, "gpu": 24, "cpu": 30},
    **{"fingerprint": 15, "sweep_id": 24, "dataset": 16, "driver": 16, "server": 12},
}
LABELS = {"started_at": "started (UTC)"}
_HEADER = {"font": Font(bold=True, color="FFFFFF"), "fill": PatternFill("solid", fgColor="1F3864")}


def write_workbook(runs: Sequence[RunResult], out: IO[bytes]) -> int:
    """Write the workbook; returns how many runs. Raises `BenchError` where a sheet is too small."""
    runs = flat.by_series(runs)
    book = Workbook(write_only=True)
    book.properties.creator = "atom bench export"
    try:
        columns = _add_runs(book, runs)
        _add_metrics(book, runs)
        _add_repeats(book, runs)
        _add_provenance(book, runs)
    except BenchError:
        for sheet in book.worksheets:  # else its half-written parts complain when they are freed
            sheet.close()
        raise
    _add_chart(book, runs, columns)
    book.save(out)
    return len(runs)


class _Sheet:
    """One sheet: a bold, frozen header with filters, then rows."""

    def __init__(self, book: Workbook, title: str, columns: Sequence[str]) -> None:
        self.sheet = book.create_sheet(title)
        self.columns = list(columns)
        self.rows = 1
        self.sheet.freeze_panes = "B2"
        for position, name in enumerate(columns, 1):
            letter = get_column_letter(position)
            self.sheet.column_dimensions[letter].width = WIDTHS.get(name, max(11, len(name) + 3))
        self.sheet.append([self._header(name) for name in columns])

    def _header(self, name: str) -> Any:
        cell = WriteOnlyCell(self.sheet, LABELS.get(name, name))
        cell.font, cell.fill = _HEADER["font"], _HEADER["fill"]
        cell.alignment = Alignment(vertical="center")
        return cell

    def add(self, values: Iterable[tuple[Any, str]]) -> None:
        """A row of (value, number format)."""
        self.rows += 1
        if self.rows > MAX_ROWS:
            raise BenchError(
                f"the sheet {self.sheet.title} would have more than {MAX_ROWS:,} rows: export "
                "fewer runs (--since, --limit) or CSV"
            )
        self.sheet.append([self._cell(value, form) for value, form in values])

    def _cell(self, value: Any, form: str) -> Any:
        if value is None or value == "":
            return None
        if isinstance(value, float) and not math.isfinite(value):
            value = str(value)
        if isinstance(value, str):
            text = ILLEGAL_CHARACTERS_RE.sub("\ufffd", value)[:MAX_TEXT]
            if not text.startswith(("=", "#")):
                return text
            cell = WriteOnlyCell(self.sheet, text)
            cell.data_type = "s"  # "=1+1" is a model's name here, no formula, "#N/A" no error
            return cell
        cell = WriteOnlyCell(self.sheet, value)
        if form:
            cell.number_format = form
        return cell

    def close(self) -> None:
        last = get_column_letter(len(self.columns))
        self.sheet.auto_filter.ref = f"A1:{last}{self.rows}"


def _moment(text: str) -> Any:
    """Excel knows no time zones: UTC without saying so."""
    moment = parse_moment(text)
    return text if moment is None else moment.replace(tzinfo=None, microsecond=0)


def _add_runs(book: Workbook, runs: Sequence[RunResult]) -> list[str]:
    metrics = [name for name in flat.metric_names(runs) if name in flat.HEADLINE]
    scores = [name for name in flat.metric_names(runs) if not names.is_name(name)]
    shown = [*metrics, *scores]
    heads = list(flat.identity(runs[0])) if runs else ["run_id"]
    sheet = _Sheet(book, "runs", [*heads, *shown])
    for run in runs:
        row = flat.identity(run)
        row["started_at"] = _moment(row["started_at"])
        values = [(v, DATE if k == "started_at" else "") for k, v in row.items()]
        for name in shown:
            found = run.metrics.get(name)
            values.append((found and found.value, flat.unit_format(name)))
        sheet.add(values)
    sheet.close()
    return sheet.columns


def _add_metrics(book: Workbook, runs: Sequence[RunResult]) -> None:
    columns = ("run_id", "name", "load", "metric", "label", "value", "low", "high", "unit")
    sheet = _Sheet(book, "metrics", columns)
    sheet.sheet.column_dimensions["F"].width = 14
    order = flat.metric_names(runs)
    for run in runs:
        who = flat.identity(run)
        for name in order:
            found = run.metrics.get(name)
            if found is None:
                continue
            form = flat.unit_format(name)
            numbers = [(number, form) for number in (found.value, found.low, found.high)]
            texts = [(who[key], "") for key in ("run_id", "name", "load")]
            told = [(name, ""), (names.label(name), "")]
            sheet.add([*texts, *told, *numbers, (names.unit(name), "")])
    sheet.close()


def _add_repeats(book: Workbook, runs: Sequence[RunResult]) -> None:
    order = flat.metric_names(runs)
    heads = ("run_id", "repeat", "seed", "started_at", "duration_s", "errors", "client_bound")
    sheet = _Sheet(book, "repeats", [*heads, *order])
    for run in runs:
        for position, repeat in enumerate(run.repeats):
            errors = "; ".join(f"{cause}: {count}" for cause, count in repeat.errors.items())
            watched = repeat.health.bound if repeat.health.workers else None
            row = [(run.run_id, ""), (position, ""), (repeat.seed, "")]
            row += [(_moment(repeat.started_at), DATE), (repeat.duration_s, "#,##0.00")]
            row += [(errors, ""), (watched, "")]
            row += [(repeat.metrics.get(name), flat.unit_format(name)) for name in order]
            sheet.add(row)
    sheet.close()


def _add_provenance(book: Workbook, runs: Sequence[RunResult]) -> None:
    sheet = _Sheet(book, "provenance", ("run_id", "key", "value"))
    for run in runs:
        tree: Mapping[str, Any] = {
            "load": run.load,
            "workload": run.workload,
            **run.provenance,
            "slo": run.slo,
            "notes": run.notes,
            "artefacts": run.artefacts,
        }
        for key, value in flat.leaves(tree):
            for name, piece in _pieces(key, value):
                sheet.add([(run.run_id, ""), (name, ""), (piece, "")])
    sheet.close()


def _pieces(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """A text that is too long for one cell goes over several rows."""
    if not isinstance(value, str) or len(value) <= MAX_TEXT:
        yield key, value
        return
    count = math.ceil(len(value) / MAX_TEXT)
    for part in range(count):
        yield f"{key} ({part + 1}/{count})", value[part * MAX_TEXT : (part + 1) * MAX_TEXT]


def _add_chart(book: Workbook, runs: Sequence[RunResult], columns: Sequence[str]) -> None:
    """Throughput against speed per user, one series a name; for runs that have both."""
    x_name, y_name = "output_throughput_per_user", "output_throughput"
    if x_name not in columns or y_name not in columns:
        return
    x, y = columns.index(x_name) + 1, columns.index(y_name) + 1
    data = book["runs"]
    chart = ScatterChart()
    chart.title = "Output throughput against speed per user"
    chart.style, chart.height, chart.width = 13, 12, 24
    chart.scatterStyle = "lineMarker"
    chart.x_axis.title, chart.y_axis.title = "tok/s per user (1/TPOT)", "output tok/s"
    # openpyxl marks axes as deleted unless told, and Excel then draws none.
    chart.x_axis.delete = chart.y_axis.delete = False
    for name, first, last in list(_spans(runs, x_name, y_name))[:MAX_SERIES]:
        xs = Reference(data, min_col=x, min_row=first, max_row=last)
        ys = Reference(data, min_col=y, min_row=first, max_row=last)
        series = Series(ys, xs, title=ILLEGAL_CHARACTERS_RE.sub("\ufffd", name))
        series.marker.symbol = "circle"
        series.graphicalProperties.line.noFill = True
        chart.series.append(series)
    if chart.series:
        sheet = book.create_sheet("chart")
        sheet.add_chart(chart, "A1")


def _spans(runs: Sequence[RunResult], *needed: str) -> Iterator[tuple[str, int, int]]:
    """(name, first row, last row) in the sheet of runs, for names with the needed metrics."""
    row = 2
    while row - 2 < len(runs):
        first = runs[row - 2]
        end = row
        while end - 2 < len(runs) and (runs[end - 2].kind, runs[end - 2].name) == (
            first.kind,
            first.name,
        ):
            end += 1
        if any(all(n in run.metrics for n in needed) for run in runs[row - 2 : end - 2]):
            yield first.name, row, end - 1
        row = end
