"""Events into columns: numbers of a chunk in numpy arrays at once, names as indices."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

import msgspec
import numpy as np
from msgspec import Raw
from numpy.typing import NDArray

from atom.trace.reader import event as ev
from atom.trace.types import I64, NONE

UNKNOWN = np.iinfo(np.int64).min  # a time that is none
_DIGITS = re.compile(r"-?\d+")
_TEXT_BYTES = 192 << 20  # of shapes; what goes beyond is left out, with a warning


class Strings(dict[str, int]):
    """Name -> its index, given at first sight."""

    def __missing__(self, key: str) -> int:
        index = self[key] = len(self)
        return index

    def of(self, value: ev.Scalar) -> int:
        """Also of numbers; -1 for null."""
        return NONE if value is None else self[value if isinstance(value, str) else str(value)]


class Texts:
    """Groups of raw JSON values -> the index of one compact object that holds them."""

    def __init__(self, keys: Sequence[str], strings: Strings) -> None:
        self._keys = [f'"{key}":'.encode() for key in keys]
        self._strings = strings
        self._known: dict[tuple[bytes, ...], int] = {(b"",) * len(keys): NONE}
        self._bytes = 0
        self.left_out = 0

    def indices(self, rows: list[tuple[bytes, ...]]) -> list[int]:
        """One per row of values; -1 if it has none."""
        known = self._known
        return [known[row] if row in known else self._new(row) for row in rows]

    def _new(self, row: tuple[bytes, ...]) -> int:
        size = sum(map(len, row))
        if self._bytes + size > _TEXT_BYTES:
            self.left_out += 1
            return NONE
        self._bytes += 2 * size
        pairs = zip(self._keys, row, strict=True)
        text = b"{%b}" % b",".join(key + value for key, value in pairs if value)
        index = self._known[row] = self._strings[msgspec.json.format(text, indent=-1).decode()]
        return index


def integers(values: list[Any]) -> I64:
    """-1 for what is missing or no number."""
    try:
        return np.array(values, dtype=np.int64)
    except (TypeError, ValueError, OverflowError):
        return np.array([_integer(value) for value in values], dtype=np.int64)


def _integer(value: ev.Scalar) -> int:
    if isinstance(value, str):
        found = _DIGITS.search(value)  # "stream 7"
        value = int(found.group()) if found else NONE
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return NONE
    return int(value) if -(2**63) <= value < 2**63 else NONE


def _floats(values: list[Any]) -> NDArray[np.float64]:
    try:
        return np.array(values, dtype=np.float64)  # null becomes nan
    except (TypeError, ValueError, OverflowError):
        return np.array([_float(value) for value in values], dtype=np.float64)


def _float(value: ev.Scalar) -> float:
    try:
        return math.nan if value is None else float(value)
    except (ValueError, OverflowError):
        return math.nan


def nanoseconds(microseconds: list[Any]) -> I64:
    """Rounded once, to the nearest; `UNKNOWN` for what is no number."""
    found = _floats(microseconds)
    bad = ~np.isfinite(found) | (np.abs(found) > 9e15)
    if bad.any():
        found = np.where(bad, 0.0, found)
    # The product with 1000 may lie between two ns above 2**42 us; the parts' do not.
    whole = np.floor(found)
    result = whole.astype(np.int64) * 1000 + np.rint((found - whole) * 1000).astype(np.int64)
    if bad.any():
        result[bad] = UNKNOWN
    return result


def exact_nanoseconds(raws: list[Raw]) -> I64:
    """The same from the digits, for clocks that a float64 cannot hold."""
    return np.array([_exact(bytes(raw).strip(b'"')) for raw in raws], dtype=np.int64)


def _exact(text: bytes) -> int:
    whole, _, fraction = text.partition(b".")
    if whole.isdigit() and len(whole) < 17 and (fraction.isdigit() or not fraction):
        if len(fraction) <= 3:
            return int(whole) * 1000 + int(fraction.ljust(3, b"0"))
        return int(whole) * 1000 + int(fraction[:3]) + (fraction[3:4] >= b"5")
    try:
        value = Decimal(text.decode("ascii", "replace")) * 1000
        return round(value) if abs(value) < 9 * 10**18 else UNKNOWN
    except (InvalidOperation, ValueError, OverflowError):
        return UNKNOWN


class Table:
    """Columns that grow by chunks."""

    def __init__(self, **dtypes: Any) -> None:
        self._dtypes = {name: np.dtype(dtype) for name, dtype in dtypes.items()}
        self._parts: dict[str, list[NDArray[Any]]] = {name: [] for name in dtypes}

    def add(self, **columns: Any) -> None:
        """One chunk's; all of one length."""
        for name, dtype in self._dtypes.items():
            self._parts[name].append(np.asarray(columns[name]).astype(dtype, copy=False))

    def take(self, name: str) -> NDArray[Any]:
        """A whole column; the table gives it up."""
        parts = self._parts.pop(name)
        return np.concatenate(parts) if parts else np.empty(0, self._dtypes[name])

    def finish(self, change: Callable[[str, NDArray[Any]], NDArray[Any]]) -> dict[str, Any]:
        """All columns that are left, each changed, one after the other to bound the memory."""
        return {name: change(name, self.take(name)) for name in list(self._parts)}
