"""Whether two sets of steps differ by more than their own spread. Numbers only.

Welch's t of the steps' values, Benjamini-Hochberg over the rows of a table. The spread is that of
the steps within one trace: clocks and other starts of the process are not in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Verdict = Literal["slower", "faster", "same", "undecided"]

ALPHA = 0.01  # of the slower and faster in one table, the share that may be chance
CONFIDENCE = 0.95  # of the intervals
MARGIN = 0.02  # of A's time: "same" is within it
FLOOR = 0.5  # of the margin: a real difference below it is still "same"


@dataclass(frozen=True, slots=True)
class Changes:
    """B's means less A's, for [K] columns; nanoseconds."""

    a: F64
    b: F64
    half: F64  # half of the 95 % interval of the difference; NaN with fewer than two steps a side
    p: F64  # chance of such a difference without a cause, after Benjamini-Hochberg; NaN unknown

    @property
    def delta(self) -> F64:
        return self.b - self.a

    def verdict(self, i: int) -> Verdict:
        a, delta, half = float(self.a[i]), float(self.b[i] - self.a[i]), float(self.half[i])
        margin = MARGIN * abs(a)
        if delta == 0 and not half > margin:
            return "same"
        if np.isnan(self.p[i]):
            return "undecided"
        if self.p[i] <= ALPHA and abs(delta) >= FLOOR * margin:
            return "slower" if delta > 0 else "faster"
        return "same" if abs(delta) + half <= margin else "undecided"


def changes(a: I64 | F64, b: I64 | F64) -> Changes:
    """Of values [steps of A, K] and [steps of B, K]."""
    mean_a, mean_b = a.mean(axis=0), b.mean(axis=0)
    count_a, count_b = len(a), len(b)
    unknown = np.full(mean_a.shape, np.nan)
    if min(count_a, count_b) < 2:
        return Changes(mean_a, mean_b, unknown, unknown)
    from scipy.special import stdtr, stdtrit

    part_a = a.var(axis=0, ddof=1) / count_a
    part_b = b.var(axis=0, ddof=1) / count_b
    error = np.sqrt(part_a + part_b)
    with np.errstate(divide="ignore", invalid="ignore"):
        # Satterthwaite's degrees of freedom; without any spread they do not matter.
        loose = part_a**2 / (count_a - 1) + part_b**2 / (count_b - 1)
        df = np.where(loose > 0, (part_a + part_b) ** 2 / loose, count_a + count_b - 2)
        t = np.abs(mean_b - mean_a) / error
    p = np.where(error > 0, 2 * stdtr(df, -t), np.where(mean_a == mean_b, 1.0, 0.0))
    half = np.where(error > 0, stdtrit(df, 0.5 + CONFIDENCE / 2) * error, 0.0)
    return Changes(mean_a, mean_b, half, adjusted(p))


def adjusted(p: F64) -> F64:
    """Benjamini and Hochberg (1995): those below q are a list of which at most q is false."""
    order = np.argsort(p)[::-1]
    factor = len(p) / np.arange(len(p), 0, -1)
    result = np.empty_like(p)
    result[order] = np.minimum(1.0, np.minimum.accumulate(p[order] * factor))
    return result
