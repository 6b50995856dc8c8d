"""The divergence from what is told against that of the whole distributions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from agree_models import VOCAB, full_kl, log_softmax, position
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from atom.eval.agree import kl
from atom.eval.agree.types import Position

seeds = st.integers(0, 2**32 - 1)


def two(seed: int, apart: float) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities of two sides that differ by about `apart` in every logit."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=VOCAB) * rng.uniform(0.5, 6)
    return log_softmax(logits), log_softmax(logits + apart * rng.normal(size=VOCAB))


@settings(deadline=None)
@given(seeds, st.floats(0, 3), st.integers(1, VOCAB), st.integers(1, VOCAB))
def test_it_is_a_lower_bound(seed: int, apart: float, k: int, other_k: int) -> None:
    p, q = two(seed, apart)
    own = seed % VOCAB
    found = kl.divergence(position(p, own, k), position(q, own, other_k))
    whole = full_kl(p, q)
    assert 0 <= found.kl <= whole + 1e-5
    assert 0 <= found.covered <= 1


@settings(deadline=None)
@given(seeds, st.floats(0, 3))
def test_it_is_exact_when_all_is_told(seed: int, apart: float) -> None:
    p, q = two(seed, apart)
    found = kl.divergence(position(p, 0, VOCAB), position(q, 0, VOCAB))
    assert found.exact
    assert found.kl == pytest.approx(full_kl(p, q), abs=1e-9, rel=1e-9)


@settings(deadline=None)
@given(seeds, st.floats(0.01, 3), st.integers(1, VOCAB - 2))
def test_more_told_is_never_less(seed: int, apart: float, k: int) -> None:
    p, q = two(seed, apart)
    order = np.argsort(-p, kind="stable").tolist()  # both tell the same tokens: nested partitions

    def told(logprobs: np.ndarray, count: int) -> Position:
        return Position(order[:count], [float(logprobs[token]) for token in order[:count]])

    # Below its floor a rest is only rounding: it is raised to it, which lowers the bound.
    assume(min(np.exp(side[order[k + 1 :]]).sum() for side in (p, q)) > kl.REST_NOISE)
    fewer = kl.divergence(told(p, k), told(q, k)).kl
    assert fewer <= kl.divergence(told(p, k + 1), told(q, k + 1)).kl + 1e-5


@given(seeds, st.integers(1, VOCAB))
def test_a_side_does_not_differ_from_itself(seed: int, k: int) -> None:
    p, _ = two(seed, 0)
    same = position(p, seed % VOCAB, k)
    assert kl.divergence(same, same).kl == 0


@given(seeds)
def test_rounding_shows_in_second_order_only(seed: int) -> None:
    p, _ = two(seed, 0)
    rounded = p * (1 + 1e-7)
    naive = abs(float((np.exp(p) * (p - rounded)).sum()))
    found = kl.divergence(position(p, 0, VOCAB), position(rounded, 0, VOCAB)).kl
    assert found < 1e-12 < naive


@given(seeds, st.integers(2, 12))
def test_sides_whose_likeliest_tokens_all_differ_are_far_apart(seed: int, k: int) -> None:
    p, _ = two(seed, 0)
    whole = full_kl(p, p[::-1])
    found = kl.divergence(position(p, 0, k), position(p[::-1], 0, k))
    assert found.kl <= whole + 1e-5
    told = np.sort(np.exp(p))[::-1]
    others = {int(token) for token in np.argsort(-p[::-1])[:k]} | {0}
    alone = sum(np.exp(p[token]) for token in np.argsort(-p)[:k] if token not in others)
    # At least what {told here alone} and {the rest} give at the ceiling of the other side.
    most = min(k * told[k - 1], 1.0)
    if 0 < most < alone < 1:
        split = alone * math.log(alone / most) + (1 - alone) * math.log((1 - alone) / (1 - most))
        assert found.kl >= split - 1e-5


def test_tokens_of_no_probability_stay_finite() -> None:
    p = Position([0, 1], [0.0, -9999.0])
    q = Position([0, 1], [-9999.0, 0.0])
    found = kl.divergence(p, q).kl
    assert math.isfinite(found)
    assert found > 1000


def test_texts_that_stand_for_many_tokens_go_to_the_rest() -> None:
    p = Position(["a", "\ufffd"], [math.log(0.5), math.log(0.5)])
    q = Position(["a", "\ufffd"], [math.log(0.5), math.log(0.25)])
    assert kl.divergence(p, q).kl == pytest.approx(0, abs=1e-12)


def test_ties_and_margins() -> None:
    tied = Position([3, 7, 9], [-1.0, -1.0, -4.0])
    assert kl.best(tied) == {3, 7}
    assert kl.margin(tied, 9) == 3.0
    assert kl.margin(tied, 100) == 3.0  # untold: at least as much as the last that was told
