"""Tables into CSV files, one per sheet, under the sheets' column names.

No TOTAL rows: every column of sums adds up to its total. Full precision, UTF-8, "\\n".
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from atom.trace.errors import TraceError
from atom.trace.tables import Table


def csv_name(kind: str, table: Table) -> str:
    """E.g. decode_breakdown.csv, decode_kernel_summary.csv."""
    return f"{kind}_{'breakdown' if table.name == kind else table.name}.csv"


def write_csvs(kind: str, tables: Sequence[Table], folder: Path) -> list[Path]:
    """Write all tables; returns the files. Raises `TraceError` if one cannot be written."""
    return [_write(table, folder / csv_name(kind, table)) for table in tables]


def _write(table: Table, path: Path) -> Path:
    try:
        with path.open("w", encoding="utf-8", errors="replace", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow([column.header for column in table.columns])
            writer.writerows(table.rows)
    except OSError as error:
        raise TraceError(f"{path} cannot be written: {error.strerror or error}") from error
    return path
