"""Kullback-Leibler divergence of two distributions of which only the likeliest tokens are told.

Both sides tell some tokens' log-probabilities. Over the partition {each token that both told} and
{all others together} the divergence is exact, and by the data-processing inequality it is never
larger than that of the whole distributions: a lower bound, equal to it when every token was told.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from atom.eval.agree.types import FLOOR, Position

# Below this the mass of the other tokens is rounding of the told ones, float32 on both sides.
REST_NOISE = 1e-6
UNREADABLE = "\ufffd"  # a part of a character: several tokens are written so


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
    told = dict(zip(q.tokens, q.logprobs, strict=True))
    total = p_mass = q_mass = 0.0
    for token, log_p in zip(p.tokens, p.logprobs, strict=True):
        log_q = told.get(token)
        if log_q is None or (isinstance(token, str) and UNREADABLE in token):
            continue
        total += _part(log_p, log_q)
        p_mass += math.exp(log_p)
        q_mass += math.exp(log_q)
    p_rest, q_rest = 1.0 - p_mass, 1.0 - q_mass
    if p_rest > REST_NOISE or q_rest > REST_NOISE:
        total += _part(math.log(max(p_rest, REST_NOISE)), math.log(max(q_rest, REST_NOISE)))
    return Divergence(total, min(p_mass, 1.0), p_rest <= REST_NOISE and q_rest <= REST_NOISE)


def _part(log_p: float, log_q: float) -> float:
    """p log(p/q) - p + q; a token of no probability at all counts as one of e^-9999."""
    log_p, log_q = max(log_p, FLOOR), max(log_q, FLOOR)
    if log_p < -700.0:  # exp underflows: only q is left
        return math.exp(log_q) - math.exp(log_p)
    delta = log_q - log_p
    if delta > 700.0:
        return math.exp(log_q)
    return math.exp(log_p) * (math.expm1(delta) - delta)


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
