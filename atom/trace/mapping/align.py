"""Alignment of two sequences of kernels: every cheapest one at once, so that doubt is seen.

The cheapest ways to turn one sequence into the other (Needleman and Wunsch 1970) are found in a
band round the diagonal (Ukkonen 1985), which is widened until no cheaper way can leave it. A row
gets a partner only if all cheapest ways give it one of the same place (module); a kernel that
might as well be the extra one, or belong to two modules, gets none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atom.trace.types import I32, I64, NONE

GAP = 2  # a kernel that only one side has
SAME = 0
ALIAS = 1  # known to be the same work under two names
FAMILY = 2  # the same function with other constants: another tile size
CLASS = 3  # the same class of work; still cheaper than one gap on each side
NEVER = 1 << 20

_CELLS = 8_000_000  # of one table; beyond, the sequences are too different to be worth it
_FIRST_BAND = 16


@dataclass(frozen=True, slots=True)
class Alignment:
    """[n] for each element of the first sequence."""

    partner: I64  # index into the second sequence; -1: none, or not certain
    doubtful: NDArray[np.bool_]  # without partner because cheapest ways disagree
    cost: int
    gaps: int  # at most so many elements of either side have no partner; 0: none has


def align(a: I32, b: I32, place: I32, cost: I32 | None = None) -> Alignment | None:
    """Partners of `a` in `b`; `None` if the two are too different to be aligned in bounded memory.

    Elements are equal if their numbers are, or `cost[x, y]` says what it takes to let `x` of `a`
    stand for `y` of `b` (numbers are then row and column); `place` [len(b)] is what must agree.
    """
    assert len(place) == len(b), (len(place), len(b))
    if not len(a) or not len(b):
        nobody = np.full(len(a), NONE, np.int64)
        return Alignment(nobody, np.zeros(len(a), bool), GAP * (len(a) + len(b)), len(a) + len(b))
    apart = abs(len(a) - len(b))
    slack = _FIRST_BAND
    while True:
        band = _Band(len(a), len(b), slack)
        if band.cells > _CELLS:
            return None
        table = _step_costs(a, b, cost, band)
        forward = _forward(table, band)
        best = int(forward[len(a), band.last])
        if best < GAP * (apart + 2 * (slack + 1)) or band.whole:
            break
        needed = best // GAP - apart
        slack = max(2 * slack, min(needed // 2 + 1, 4 * slack))
    backward = _forward(table[::-1, ::-1], band.reversed())[::-1, ::-1]
    return _agree(table, forward, backward, best, place, band, apart)


def align_but_one(a: I32, b: I32, place: I32) -> Alignment | None:
    """As `align` by equal numbers, where one side has a single element more; `None` if that is not
    all they differ in. Linear: the commonest damage, in every step another kernel."""
    if abs(len(a) - len(b)) != 1:
        return None
    n = min(len(a), len(b))
    ahead = _equal_length(a[:n] == b[:n])
    behind = _equal_length(a[len(a) - n :][::-1] == b[len(b) - n :][::-1])
    first, last = n - behind, ahead  # the odd one is any of [first, last] of the longer side
    if first > last:
        return None
    at = np.arange(len(a), dtype=np.int64)
    shift = len(b) - len(a)  # 1: b has one more
    doubtful = np.zeros(len(a), bool)
    partner = np.where(at < first, at, at + shift)
    if shift > 0:  # a[first:last] may be b's of the same index or of the next
        partner[first:last] = at[first:last]
        doubtful[first:last] = place[first:last] != place[first + 1 : last + 1]
    else:
        doubtful[first : last + 1] = last > first
        partner[first : last + 1] = NONE
    partner[doubtful] = NONE
    return Alignment(partner, doubtful, GAP, 1)


def _equal_length(equal: NDArray[np.bool_]) -> int:
    return len(equal) if equal.all() else int(np.argmin(equal))


class _Band:
    """Cells (i, j) with `low <= j - i <= high`; column k of row i is j = i + low + k."""

    def __init__(self, n: int, m: int, slack: int) -> None:
        self.n, self.m, self.slack = n, m, slack
        self.low = max(min(0, m - n) - slack, -n)
        self.high = min(max(0, m - n) + slack, m)
        self.width = self.high - self.low + 1
        self.first = -self.low  # column of (0, 0)
        self.last = m - n - self.low  # column of (n, m)

    @property
    def cells(self) -> int:
        return (self.n + 1) * self.width

    @property
    def whole(self) -> bool:
        return self.low == -self.n and self.high == self.m

    def reversed(self) -> _Band:
        """Of both sequences read backwards: diagonal d becomes m - n - d."""
        other = _Band(self.n, self.m, self.slack)
        other.low, other.high = self.m - self.n - self.high, self.m - self.n - self.low
        other.first, other.last = -other.low, self.m - self.n - other.low
        return other


def _step_costs(a: I32, b: I32, cost: I32 | None, band: _Band) -> I32:
    """[n, width]: what it takes to pair a[i] with b[j]; NEVER where j is none."""
    j = np.arange(band.n)[:, None] + (np.arange(band.width) + band.low)[None, :]
    inside = (j >= 0) & (j < band.m)
    other = b[np.clip(j, 0, band.m - 1)]
    same = np.where(other == a[:, None], SAME, NEVER)
    found = same if cost is None else cost[a[:, None], other]
    return np.where(inside, found, NEVER).astype(np.int32)


def _forward(table: I32, band: _Band) -> I32:
    """[n + 1, width]: cheapest cost of a[:i] against b[:j].

    Rows are kept less GAP for each column, so that gaps in `a` are a running minimum. Cells outside
    of the second sequence need no care: no step leads back from behind its end, and before its
    beginning all is NEVER.
    """
    steps = np.arange(band.width, dtype=np.int32) * GAP
    best = np.full((band.n + 1, band.width), NEVER, np.int32)
    columns = np.arange(band.width) + band.low
    best[0] = np.where((columns >= 0) & (columns <= band.m), columns * GAP, NEVER) - steps
    up = np.empty(band.width - 1, np.int32)
    for row, here, costs in zip(best[:-1], best[1:], table, strict=True):
        np.add(row, costs, out=here)
        np.add(row[1:], 2 * GAP, out=up)
        np.minimum(here[:-1], up, out=here[:-1])
        np.minimum.accumulate(here, out=here)
        np.minimum(here, NEVER, out=here)
    best += steps
    return best


def _agree(
    table: I32, forward: I32, backward: I32, best: int, place: I32, band: _Band, apart: int
) -> Alignment:
    """Partners on which all cheapest ways agree, as far as places go."""
    paired = (forward[:-1] + table + backward[1:]) == best  # (i, j) -> (i + 1, j + 1)
    # (i, j) -> (i + 1, j): one column to the left in the next row
    alone = ((forward[:-1, 1:] + GAP + backward[1:, :-1]) == best).any(axis=1)
    partner = np.full(band.n, NONE, np.int64)
    doubtful = np.zeros(band.n, bool)
    some = paired.any(axis=1)
    first = paired.argmax(axis=1) + band.low + np.arange(band.n)
    final = band.width - 1 - paired[:, ::-1].argmax(axis=1) + band.low + np.arange(band.n)
    single = some & (first == final)
    for i in np.flatnonzero(some & ~single):
        places = place[np.flatnonzero(paired[i]) + band.low + i]
        doubtful[i] = bool((places != places[0]).any())
    doubtful |= some & alone
    sure = some & ~doubtful
    partner[sure] = first[sure]
    straight = apart == 0 and bool((paired.sum(axis=1) == 1).all() and not alone.any())
    return Alignment(partner, doubtful, best, 0 if straight else max(best // GAP, apart))
