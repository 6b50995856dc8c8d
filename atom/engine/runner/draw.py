"""Drawing tokens by inverse CDF, and the filters top_k, top_p and min_p, all exact, in torch.

For devices without kernels of their own; `atom.ops.triton.sampling` does the same.

The distribution of a row is `softmax(x)` cut to the tokens that pass its filters, where `x` are
the logits over temperature. The filters apply in the order min_p, top_k, top_p, each on what the
ones before it left; a token that ties with the last one kept is kept too. Every filter is then a
threshold, and a draw is: the first token, in id order, at which the running mass exceeds
`uniform * total`. So the outcome is a function of the row alone. No value is looked at on the host.
`host_sampling` is the CPU's.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from atom.ops.sampling_row import WORDS, Kinds

_NEG_INF = float("-inf")
_BLOCK = 256


class Filters(NamedTuple):
    """Filters of n rows; `None` where no row has that filter."""

    top_k: Tensor | None  # [n] int64, 0 if off
    top_p: Tensor | None  # [n] float32, 1 if off
    min_p: Tensor | None  # [n] float32, 0 if off
    max_top_k: int


def choose(logits: Tensor, params: Tensor, kinds: Kinds) -> Tensor:
    """[n] int64 token ids from logits [n, V] float32 and the rows' params [n, WORDS] int32 (see
    `sampling_row`); greedy ones get the argmax."""
    assert params.shape[1] == WORDS, params.shape
    temperature, top_p, min_p = params[:, :3].contiguous().view(torch.float32).unbind(1)
    # Relative to the maximum, so that a small temperature cannot overflow.
    x = (logits - logits.amax(-1, keepdim=True)) / temperature[:, None]
    noise = uniforms(params)
    if kinds.floored or kinds.searched:
        top_k = params[:, 3].long() if kinds.max_top_k else None
        drawn = sample(x, Filters(top_k, top_p, min_p, kinds.max_top_k), noise)
    else:
        drawn = draw(torch.softmax(x, dim=-1), noise)
    return torch.where(params[:, 7] > 0, drawn, logits.argmax(dim=-1))


def uniforms(params: Tensor) -> Tensor:
    """[n] float64 in (0, 1): bit for bit those of `randomness`. Only signed integers are at hand,
    whose products wrap as unsigned ones do."""
    keys, positions = params.view(torch.int64)[:, 2], params[:, 6].long()
    x = keys + (positions + 1) * (0x9E3779B97F4A7C15 - (1 << 64))
    x = (x ^ _shift(x, 30)) * (0xBF58476D1CE4E5B9 - (1 << 64))
    x = (x ^ _shift(x, 27)) * (0x94D049BB133111EB - (1 << 64))
    return (_shift(x ^ _shift(x, 31), 24).double() + 0.5) * 2.0**-40


def _shift(x: Tensor, places: int) -> Tensor:
    """To the right, zeros moving in."""
    return (x >> places) & ((1 << (64 - places)) - 1)


def draw(weights: Tensor, uniforms: Tensor) -> Tensor:
    """[n] int64 token ids from weights [n, V] float32 >= 0 (any total) and uniforms [n] float64.

    Two levels, so that only sums are taken over the whole vocabulary: first a block, then a token
    in it. Tokens of weight zero are never drawn.
    """
    n, vocab = weights.shape
    size = next(b for b in (_BLOCK, 128, 64, 32, vocab) if vocab % b == 0)
    blocks = weights.view(n, vocab // size, size)
    sums = blocks.sum(-1).double()
    ends = sums.cumsum(-1)
    target = uniforms * ends[:, -1]
    chosen = _first_above(ends, target)
    mass, end = sums.gather(1, chosen), ends.gather(1, chosen)
    share = ((target[:, None] - end + mass) / mass).clamp_(min=0.0)
    inner = blocks.gather(1, chosen[:, :, None].expand(n, 1, size)).squeeze(1)
    return (chosen * size + _draw_one_level(inner, share)).squeeze(1)


def _draw_one_level(weights: Tensor, share: Tensor) -> Tensor:
    """[n, 1]: the first entry of weights [n, m] whose running sum exceeds share [n, 1] of it."""
    ends = weights.double().cumsum(-1)
    return _first_above(ends, (share * ends[:, -1:]).squeeze(1))


def _first_above(ends: Tensor, target: Tensor) -> Tensor:
    """[n, 1]: index of the first running sum > target; never past the last entry that adds."""
    past = torch.searchsorted(ends, target[:, None], right=True)
    last = torch.searchsorted(ends, ends[:, -1:].contiguous())
    return torch.minimum(past, last)


def sample(x: Tensor, filters: Filters, uniforms: Tensor) -> Tensor:
    """[n] int64 from scaled logits x [n, V] float32, which is left as it is."""
    floor = None
    if filters.min_p is not None:
        floor = _min_p_floor(x.amax(-1, keepdim=True), filters.min_p)
    if filters.top_k is not None:
        largest = x.topk(filters.max_top_k, dim=-1).values
        kth = _kth_value(largest, filters.top_k)
        floor = kth if floor is None else torch.maximum(floor, kth)
    if floor is not None:
        x = x.masked_fill(x < floor, _NEG_INF)
    weights = torch.softmax(x, dim=-1)
    if filters.top_p is not None:
        weights = _keep_top_p(weights, filters.top_p)
    return draw(weights, uniforms)


def _min_p_floor(top: Tensor, min_p: Tensor) -> Tensor:
    """[n, 1]: the least logit whose probability is at least min_p times the largest one's."""
    return top + min_p.log()[:, None]


def _kth_value(largest: Tensor, top_k: Tensor) -> Tensor:
    """[n, 1]: the top_k-th value of rows sorted descending; -inf where top_k is off."""
    index = (top_k - 1).clamp(min=0)[:, None]
    return largest.gather(1, index).masked_fill(top_k[:, None] == 0, _NEG_INF)


def _keep_top_p(weights: Tensor, top_p: Tensor) -> Tensor:
    """weights [n, V] summing to 1, zeroed below the largest threshold that keeps top_p of them.

    Bisection over the bit patterns of float32, which order like the non-negative numbers they
    stand for: 30 sums instead of a sort, nothing read back, exact.
    """
    target = top_p[:, None]
    bits = weights.view(torch.int32)
    low = torch.zeros_like(target, dtype=torch.int32)  # keeps enough
    high = bits.amax(-1, keepdim=True) + 1  # keeps nothing
    for _ in range(30):
        middle = (low + high) >> 1
        enough = torch.where(bits >= middle, weights, 0.0).sum(-1, keepdim=True) >= target
        low = torch.where(enough, middle, low)
        high = torch.where(enough, high, middle)
    low = low.masked_fill(target >= 1.0, 0)
    return weights.masked_fill(bits < low, 0.0)
