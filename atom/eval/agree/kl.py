"""Kullback-Leibler divergence of two distributions of which only the likeliest tokens are told.

Both sides tell some tokens' log-probabilities. Over the partition {each token that both told} and
{all others together} the divergence is exact, and by the data-processing inequality it is never
larger than that of the whole distributions: a lower bound, equal to it when every token was told.

A token that one side alone told is, on the other, no likelier than the least of those told there.
The bound is the least divergence that obeys this, too: without it two sides whose likeliest tokens
are all different would seem close.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from atom.eval.agree.types import Position, Token

# Below this the mass of the other tokens is rounding of the told ones: float32 on both sides, and
# with the sum of all exponentials one error common to them.
REST_NOISE = 1e-5
UNREADABLE = "\ufffd"  # a part of a character: several tokens are written so
_TINY = 1e-300


class Divergence(NamedTuple):
    """KL(p || q) in nats at one place, p being the reference."""

    kl: float
    covered: float  # of p's probability: told by both
    exact: bool  # nothing is left beside what both told


def divergence(p: Position, q: Position) -> Divergence:
    """A lower bound of KL(p || q) from what both told; see the module's docstring.

    Each part contributes p log(p/q) - p + q, never negative; the two last terms cancel over a whole
    partition, and without them rounding of log-probabilities would show in first order.
    """
    ours, theirs = _readable(p), _readable(q)
    both = [token for token in ours if token in theirs]
    total = sum(_part(math.exp(ours[t]), math.exp(theirs[t]), ours[t] - theirs[t]) for t in both)
    p_mass = sum(math.exp(ours[token]) for token in both)
    q_mass = sum(math.exp(theirs[token]) for token in both)
    p_rest, q_rest = 1.0 - p_mass, 1.0 - q_mass
    exact = p_rest <= REST_NOISE and q_rest <= REST_NOISE
    if not exact:
        p_rest, q_rest = max(p_rest, REST_NOISE), max(q_rest, REST_NOISE)
        p_only = [math.exp(v) for token, v in ours.items() if token not in theirs]
        q_only = [math.exp(v) for token, v in theirs.items() if token not in ours]
        total += max(
            sum(_parts(p_only, p_rest, q_rest, _ceiling(q), swapped=False)),
            sum(_parts(q_only, q_rest, p_rest, _ceiling(p), swapped=True)),
        )
    return Divergence(total, min(p_mass, 1.0), exact)


def _readable(position: Position) -> dict[Token, float]:
    pairs = zip(position.tokens, position.logprobs, strict=True)
    return {t: v for t, v in pairs if not (isinstance(t, str) and UNREADABLE in t)}


def _ceiling(position: Position) -> float:
    """The largest probability that a token can have which was not told.

    The text's own token is told wherever it stands, so that as the least it says nothing.
    """
    others = position.logprobs[1:]
    return math.exp(min(others)) if others else 1.0


def _part(p: float, q: float, log_ratio: float) -> float:
    """p log(p/q) - p + q, without cancellation where p and q are near."""
    if log_ratio > -700.0:  # else p is nothing beside q
        return p * (math.expm1(-log_ratio) + log_ratio) if p > 0.0 else q
    return q


def _parts(
    told: Sequence[float], rest: float, other_rest: float, ceiling: float, *, swapped: bool
) -> list[float]:
    """The rest, split into tokens that one side told (their masses) and all others.

    The other side's masses of them are those of the least divergence: in proportion, none above
    its ceiling. `swapped`: the side that told is q.
    """
    told = sorted(told, reverse=True)
    left = max(rest - sum(told), 0.0)
    weights, amount, capped = sum(told) + left, other_rest, 0
    while capped < len(told) and weights > _TINY and amount / weights * told[capped] > ceiling:
        weights -= told[capped]
        amount -= ceiling
        capped += 1
    amount = max(amount, 0.0)
    masses = [(mass, ceiling) for mass in told[:capped]]
    # Those below the ceiling keep their proportions: as one part they weigh the same.
    masses.append((max(sum(told[capped:]) + left, REST_NOISE), max(amount, REST_NOISE)))
    pairs = [(b, a) for a, b in masses] if swapped else masses
    return [_part(a, b, math.log(max(a, _TINY)) - math.log(max(b, _TINY))) for a, b in pairs]


def best(position: Position) -> set[int | str]:
    """The likeliest token; several if they are equally likely."""
    top = max(position.logprobs)
    pairs = zip(position.tokens, position.logprobs, strict=True)
    return {token for token, logprob in pairs if logprob == top}


def logprob_of(position: Position, token: int | str) -> float | None:
    """As told; None if it was not."""
    for known, logprob in zip(position.tokens, position.logprobs, strict=True):
        if known == token:
            return logprob
    return None


def margin(position: Position, token: int | str) -> float:
    """How much likelier than `token` the likeliest one is, in nats; at least that where untold."""
    told = logprob_of(position, token)
    return max(position.logprobs) - (min(position.logprobs) if told is None else told)
