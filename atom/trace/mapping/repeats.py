"""Repeats in a sequence: the period that covers most of it, and where it holds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atom.trace.types import I32, I64

_NEARLY = 0.95  # of the best coverage: then the shorter period is the truth, the longer a multiple
MAX_PERIOD = 4096
_MOST_WORK = 200_000_000  # comparisons; longer sequences are judged by what fits


@dataclass(frozen=True, slots=True)
class Repeat:
    """`period` holds within each run [start, end): x[i] == x[i + period] there."""

    period: int
    start: I64
    end: I64
    covered: int


def find_repeat(x: I32, marked: NDArray[np.bool_], least: int = 3) -> Repeat | None:
    """The period that covers most of `x` with runs of at least `least` repeats of which each has
    a marked element; of nearly equal ones the shortest. `None` if nothing repeats."""
    longest = min(len(x) // least, MAX_PERIOD, max(_MOST_WORK // max(len(x), 1), 64))
    found: list[tuple[int, int]] = []
    best = 0
    for period in range(1, longest + 1):
        start, end = runs(x, period, least)
        if not len(start):
            continue
        covered = _covered(marked, start, end, period)
        if covered:
            found.append((period, covered))
            best = max(best, covered)
    for period, covered in found:
        if covered >= _NEARLY * best:
            start, end = runs(x, period, least)
            keep = _has_mark(marked, start, period)
            return Repeat(period, start[keep], end[keep], covered)
    return None


def runs(x: I32, period: int, least: int) -> tuple[I64, I64]:
    """Maximal [start, end) with at least `least` repeats of the period."""
    equal = x[period:] == x[:-period]
    breaks = np.flatnonzero(~equal)
    low = np.concatenate([[0], breaks + 1])
    high = np.concatenate([breaks, [len(equal)]])
    keep = high - low >= (least - 1) * period
    return low[keep].astype(np.int64), (high[keep] + period).astype(np.int64)


def _has_mark(marked: NDArray[np.bool_], start: I64, period: int) -> NDArray[np.bool_]:
    before = np.concatenate([[0], np.cumsum(marked)])
    return np.asarray(before[start + period] > before[start])


def _covered(marked: NDArray[np.bool_], start: I64, end: I64, period: int) -> int:
    keep = _has_mark(marked, start, period)
    return int((end[keep] - start[keep]).sum())
