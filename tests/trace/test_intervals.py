"""Interval arithmetic against sets of integers, one element per nanosecond."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atom.trace import intervals
from atom.trace.intervals import Spans, union

INTERVALS = st.lists(st.tuples(st.integers(-20, 60), st.integers(-3, 15)), max_size=25)


def covered(pairs):
    return {t for start, length in pairs for t in range(start, start + length)}


def arrays(pairs):
    start = np.array([p[0] for p in pairs], np.int64)
    return start, start + np.array([p[1] for p in pairs], np.int64)


def elements(spans: Spans):
    return {t for s, e in zip(spans.start, spans.end, strict=True) for t in range(s, e)}


def check_normal(spans: Spans):
    assert (spans.end > spans.start).all()
    assert (spans.start[1:] > spans.end[:-1]).all()
    assert spans.start.dtype == spans.end.dtype == np.int64


@given(INTERVALS)
def test_union(pairs):
    found = union(*arrays(pairs))
    check_normal(found)
    assert elements(found) == covered(pairs)
    assert intervals.union_length(*arrays(pairs)) == len(covered(pairs))


@given(INTERVALS, INTERVALS)
def test_intersection_and_subtraction(first, second):
    a, b = union(*arrays(first)), union(*arrays(second))
    both, rest = intervals.intersection(a, b), intervals.subtract(a, b)
    check_normal(both)
    check_normal(rest)
    assert elements(both) == covered(first) & covered(second)
    assert elements(rest) == covered(first) - covered(second)
    assert intervals.intersection_length(a, b) == both.length
    assert intervals.subtract_length(a, b) == rest.length


@given(INTERVALS, st.integers(-30, 80), st.integers(-30, 80))
def test_gaps_and_windows(pairs, low, high):
    spans = union(*arrays(pairs))
    window = set(range(low, high))
    holes = intervals.gaps(spans, low, high)
    check_normal(holes)
    assert elements(holes) == window - covered(pairs)
    assert intervals.within(spans, [low], [high]).tolist() == [len(window & covered(pairs))]


@given(st.lists(st.tuples(st.integers(-1, 4), st.integers(-20, 60), st.integers(-3, 15))))
def test_union_by_group(rows):
    start, end = arrays([row[1:] for row in rows])
    found = intervals.union_length_by([row[0] for row in rows], start, end, 5)
    assert found.tolist() == [
        len(covered([row[1:] for row in rows if row[0] == group])) for group in range(5)
    ]


@given(INTERVALS)
def test_depth(pairs):
    found = intervals.depth_lengths(*arrays(pairs))
    depth = [sum(s <= t < s + n for s, n in pairs) for t in range(-20, 80)]
    assert found.tolist() == [0] + [depth.count(k) for k in range(1, max(depth) + 1)]


@given(INTERVALS)
def test_own_time(pairs):
    pairs = sorted(pairs, key=lambda p: p[0])
    found = intervals.own_lengths(*arrays(pairs))
    taken = set()
    for own, pair in zip(found, pairs, strict=True):
        assert own == len(covered([pair]) - taken)
        taken |= covered([pair])


def test_touching_intervals_are_one():
    assert union([10, 0], [20, 10]).start.tolist() == [0]


def test_large_times_stay_exact():
    """A float would lose these nanoseconds."""
    base = 2**60
    assert intervals.union_length([base, base + 1], [base + 1, base + 3]) == 3
    assert intervals.union_length_by([0, 1], [base, 0], [base + 1, 7], 2).tolist() == [1, 7]


@pytest.mark.parametrize("function", [intervals.union_length, intervals.depth_lengths])
def test_nothing(function):
    assert np.sum(function([], [])) == 0
