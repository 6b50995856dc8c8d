"""Statistics of weighted samples. Sorted once; nothing here knows what a request is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Owners = NDArray[np.int64]


class Sample(NamedTuple):
    """Values in milliseconds, each standing for `weights` tokens (None: for one thing each)."""

    values: Array  # [n]
    weights: Array | None  # [n]
    owners: Owners  # [n] the request each value belongs to: what resampling draws

    @property
    def total(self) -> float:
        return float(len(self.values) if self.weights is None else self.weights.sum())


def pool(samples: Sequence[Sample], sizes: Sequence[int]) -> Sample:
    """All samples as one; `sizes` are the numbers of requests, so that owners stay apart."""
    assert len(samples) == len(sizes)
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    weighted = any(s.weights is not None for s in samples)
    return Sample(
        np.concatenate([s.values for s in samples]),
        np.concatenate([_weights(s) for s in samples]) if weighted else None,
        np.concatenate([s.owners + start for s, start in zip(samples, starts, strict=False)]),
    )


def _weights(sample: Sample) -> Array:
    return np.ones(len(sample.values)) if sample.weights is None else sample.weights


class Sorted(NamedTuple):
    """A sample in ascending order with its running weight; what percentiles are read from."""

    values: Array
    weights: Array | None
    running: Array | None


def ascending(sample: Sample) -> Sorted:
    order = np.argsort(sample.values, kind="stable")
    values = sample.values[order]
    if sample.weights is None:
        return Sorted(values, None, None)
    weights = sample.weights[order]
    return Sorted(values, weights, np.cumsum(weights))


def percentile(sample: Sorted, percent: float) -> float:
    """Linear interpolation between order statistics (type 7, numpy's default, vLLM's choice).

    With whole weights it equals `numpy.percentile(numpy.repeat(values, weights), percent)`.
    """
    if sample.running is None:
        return float(np.percentile(sample.values, percent))
    total = float(sample.running[-1])
    place = max(total - 1.0, 0.0) * percent / 100.0
    below = float(np.floor(place))
    last = len(sample.values) - 1
    # The value at position p of the repeated list is the first whose running weight exceeds p.
    # Running sums of fractions carry rounding errors; a whole weight must not lose its position.
    slack = 1e-9 * max(total, 1.0)
    first, second = np.searchsorted(sample.running, [below + slack, below + 1 + slack], "right")
    low, high = sample.values[min(first, last)], sample.values[min(second, last)]
    return float(low + (high - low) * (place - below))


def mean(sample: Sorted) -> float:
    return float(np.average(sample.values, weights=sample.weights))


def std(sample: Sorted) -> float:
    """Of the population, as numpy's default and the original's."""
    centre = mean(sample)
    return float(np.sqrt(np.average((sample.values - centre) ** 2, weights=sample.weights)))


def describe(sample: Sample, percentiles: Sequence[float]) -> dict[str, float]:
    """mean, median, std and p<percent> of a sample that is not empty."""
    from atom.bench.names import percentile_name

    assert len(sample.values)
    made = ascending(sample)
    result = {"mean": mean(made), "median": percentile(made, 50.0), "std": std(made)}
    result.update({percentile_name(p): percentile(made, p) for p in percentiles})
    return result


def empty(weighted: bool = False) -> Sample:
    none: Any = np.empty(0)
    return Sample(none, none if weighted else None, np.empty(0, dtype=np.int64))
