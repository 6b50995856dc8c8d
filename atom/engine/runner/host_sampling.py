"""The sampler's heavy parts on CPU, a row at a time in numpy: argmax, draws, log-probabilities.

The same distributions and the same draws as `draw`, which serves devices. A row's logits stay in
the core's own cache, no thread pool is woken, and the host may look at values: so filters look at
few candidates first, and at all tokens only when those do not settle it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ids = NDArray[np.int64]

_DRAW_BLOCK = 256
_MAX_BLOCK = 64  # the largest of each so many tokens bound the candidates from below
_FEW, _MORE = 128, 4096


class RowParams(NamedTuple):
    """Of one row; a filter is off at top_k = 0, top_p = 1, min_p = 0."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    uniform: float


def sample(logits: Floats, params: RowParams) -> int:
    """A token id from logits [V], which are left as they are."""
    x = logits - logits.max()
    x /= np.float32(params.temperature)
    if params.top_k == 0 and params.top_p >= 1.0 and params.min_p == 0.0:
        return _draw(np.exp(x), params.uniform)
    for least in _floors(x, params):
        floor = _settle(x, params, least)
        if floor is not None:
            break
    else:
        raise AssertionError("all tokens together settle every filter")
    ids = np.flatnonzero(x >= floor)
    return int(ids[_pick(np.exp(x[ids]), params.uniform)])


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


def _floors(x: Floats, params: RowParams) -> Iterator[float]:
    """Least values of ever more candidates; the last one admits every token."""
    if params.min_p > 0.0:
        yield math.log(params.min_p)  # nothing below it passes
        return
    few = max(_FEW, params.top_k)
    if few * _MAX_BLOCK <= len(x):
        yield kth_largest(_tops(x, few), few)
    more = max(_MORE, params.top_k)
    if more < len(x):
        yield kth_largest(x, more)
    yield -math.inf


def kth_largest(values: Floats, k: int) -> float:
    return float(np.partition(values, len(values) - k)[len(values) - k])


def _settle(x: Floats, params: RowParams, least: float) -> float | None:
    """The least value that passes all filters, if the tokens at or above `least` can tell it."""
    values = -np.sort(-x[x >= least])  # all tokens that tie with one of them are among them
    floor = -math.inf
    bounded = params.min_p > 0.0
    if bounded:
        floor = least
    if params.top_k:
        bounded = True
        floor = max(floor, float(values[min(params.top_k, len(values)) - 1]))
    if params.top_p >= 1.0:
        return floor
    weights = np.exp(values)
    if bounded:
        weights = weights[values >= floor]
    ends = weights.cumsum(dtype=np.float64)
    total = float(ends[-1] if bounded or least == -math.inf else np.exp(x).sum())
    needed = params.top_p * total
    if ends[-1] < needed:
        return None
    count = int(ends.searchsorted(needed)) + 1
    return float(values[min(count, len(ends)) - 1])


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
        ids = np.flatnonzero(logits >= kth_largest(_tops(logits, num_top), num_top))
        ids = ids[np.argsort(-logits[ids], kind="stable")[:num_top]]
    top = (logits[ids] - norm).astype(np.float32)
    return RowLogprobs(float(chosen - norm), rank, ids, top)


def _tops(values: Floats, k: int) -> Floats:
    """Values whose k-th largest is no larger than that of all, and close: maxima of blocks."""
    blocks = len(values) // _MAX_BLOCK
    if k > blocks:
        return values
    tops: Floats = values[: blocks * _MAX_BLOCK].reshape(blocks, _MAX_BLOCK).max(1)
    return tops
