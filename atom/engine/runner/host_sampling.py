"""The sampler's heavy parts on CPU, a row at a time in numpy: draws and log-probabilities.

The same distributions and the same draws as `draw`, which serves devices. A row's logits stay in
the core's own cache, no thread pool is woken, and the host may look at values: so a filter first
narrows the vocabulary to candidates that surely hold all it keeps, and then looks only at those.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ids = NDArray[np.int64]

_DRAW_BLOCK = 256
_GROUP = 64


class RowParams(NamedTuple):
    """Of one row; a filter is off at top_k = 0, top_p = 1, min_p = 0."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    uniform: float


def sample(logits: Floats, params: RowParams, scratch: Floats) -> int:
    """A token id from logits [V], which are left as they are; `scratch` [V] is overwritten."""
    top = logits.max()
    if params.top_k or params.min_p > 0.0:
        ids, weights = _candidates(logits, float(top), params)
        total = float(weights.sum())
    else:
        weights = np.subtract(logits, top, out=scratch)
        weights *= np.float32(1.0 / params.temperature)
        np.exp(weights, out=weights)
        if params.top_p >= 1.0:
            return _draw(weights, params.uniform)
        total = float(weights.sum())
        # All that is below this together weighs less than what top_p may leave out.
        ids = np.flatnonzero(weights >= 0.99 * total * (1.0 - params.top_p) / len(weights))
        weights = weights[ids]
    if params.top_p < 1.0:
        kept = weights >= _top_p_floor(weights, params.top_p * total)
        ids, weights = ids[kept], weights[kept]
    return int(ids[_pick(weights, params.uniform)])


def _candidates(logits: Floats, top: float, params: RowParams) -> tuple[Ids, Floats]:
    """Ids, ascending, and weights of what min_p and top_k keep."""
    floor = -math.inf
    if params.min_p > 0.0:
        floor = top + params.temperature * math.log(params.min_p)
    if params.top_k:
        floor = max(floor, kth_largest(_tops(logits, params.top_k), params.top_k))
    ids = np.flatnonzero(logits >= np.float32(floor))
    values = logits[ids]
    if 0 < params.top_k < len(ids):
        kept = values >= kth_largest(values, params.top_k)
        ids, values = ids[kept], values[kept]
    values -= np.float32(top)
    values *= np.float32(1.0 / params.temperature)
    return ids, np.exp(values)


def _top_p_floor(weights: Floats, needed: float) -> float:
    """The largest weight such that those no smaller add up to `needed`; the least one if none."""
    descending = -np.sort(-weights)
    count = int(descending.cumsum(dtype=np.float64).searchsorted(needed)) + 1
    return float(descending[min(count, len(descending)) - 1])


def _draw(weights: Floats, uniform: float) -> int:
    """First a block, then a token in it, so that only sums are taken over the vocabulary."""
    whole = len(weights) // _DRAW_BLOCK * _DRAW_BLOCK
    sums = np.empty(-(-len(weights) // _DRAW_BLOCK), np.float64)
    weights[:whole].reshape(-1, _DRAW_BLOCK).sum(1, out=sums[: whole // _DRAW_BLOCK])
    if whole < len(weights):
        sums[-1] = weights[whole:].sum()
    ends = sums.cumsum()
    target = uniform * ends[-1]
    block = _first_above(ends, target)
    share = max(0.0, (target - ends[block] + sums[block]) / sums[block])
    start = block * _DRAW_BLOCK
    return start + _pick(weights[start : start + _DRAW_BLOCK], share)


def _pick(weights: Floats, share: float) -> int:
    """The first entry at which the running sum exceeds `share` of the total."""
    ends = weights.cumsum(dtype=np.float64)
    return _first_above(ends, share * float(ends[-1]))


def _first_above(ends: Doubles, target: float) -> int:
    """Never past the last entry that adds something."""
    past, last = ends.searchsorted(target, "right"), ends.searchsorted(ends[-1])
    return int(min(past, last))


def kth_largest(values: Floats, k: int) -> float:
    return float(np.partition(values, len(values) - k)[len(values) - k])


def _tops(values: Floats, k: int) -> Floats:
    """Some of `values`, at least k: the maxima of groups of `_GROUP` if there are enough groups.
    Their k-th largest is at most that of all, and close to it."""
    groups = len(values) // _GROUP
    if k > groups:
        return values
    # A group is a column: numpy takes maxima down the columns many at a time.
    tops: Floats = values[: groups * _GROUP].reshape(_GROUP, groups).max(0)
    return tops


class RowLogprobs(NamedTuple):
    """Of one position; `top_*` are the k best of the vocabulary, descending, ties by id."""

    logprob: float
    rank: int
    top_ids: Ids
    top_logprobs: Floats


def logprobs(logits: Floats, token_id: int, num_top: int) -> RowLogprobs:
    """Raw log-softmax of logits [V] at `token_id` and at the `num_top` best."""
    largest = logits.max()
    norm = largest + np.log(np.exp(logits - largest).sum())
    chosen = logits[token_id]
    rank = int(np.count_nonzero(logits > chosen)) + 1
    ids = np.zeros(0, np.int64)
    if num_top:
        ids = np.flatnonzero(logits >= np.float32(kth_largest(_tops(logits, num_top), num_top)))
        ids = ids[np.argsort(-logits[ids], kind="stable")[:num_top]]
    top = (logits[ids] - norm).astype(np.float32)
    return RowLogprobs(float(chosen - norm), rank, ids, top)
