"""Repeats in a sequence: the period that covers most of it, and where it holds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atom.trace.types import I32, I64

_NEARLY = 0.95  # of the best coverage: then the shorter period is the truth, the longer a multiple
MAX_PERIOD = 8192
_SHORT = 2048  # sequences of which every period is tried
_GRAM = 12  # elements that must recur at a distance before it is tried as a period
_OCCURRENCES = 4  # of a gram within one period, looked over
_TRIED = 48


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
    found: list[tuple[int, int]] = []
    best = 0
    for period in _periods(x, min(len(x) // least, MAX_PERIOD)):
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


def _periods(x: I32, longest: int) -> list[int]:
    """Periods worth trying, ascending: of a long sequence the commonest distances between equal
    grams, since in a run almost every gram recurs one period later."""
    if len(x) <= _SHORT:
        return list(range(1, longest + 1))
    _, number = np.unique(x, return_inverse=True)
    number = number.reshape(-1).astype(np.uint64)
    gram = np.zeros(len(x) - _GRAM + 1, np.uint64)
    for at in range(_GRAM):  # overflow is as good a hash as any: a period is verified
        gram = gram * np.uint64(0x9E3779B97F4A7C15) + number[at : at + len(gram)] + np.uint64(1)
    order = np.argsort(gram, kind="stable")
    ordered = gram[order]
    distances = [
        (order[step:] - order[:-step])[ordered[step:] == ordered[:-step]]
        for step in range(1, _OCCURRENCES + 1)
    ]
    counts = np.bincount(np.concatenate(distances), minlength=1)[: longest + 1]
    common = np.argsort(-counts, kind="stable")[:_TRIED]
    return sorted(common[counts[common] > 0].tolist())


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
