"""Alignment against every alignment there is; streams against who launched what."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atom.trace.mapping import align as module
from atom.trace.mapping.align import CLASS, GAP, NEVER, align, align_but_one
from atom.trace.mapping.names import Names, substitution
from atom.trace.mapping.streams import place_streams


def ints(values) -> np.ndarray:
    return np.array(values, dtype=np.int32)


def every_way(a, b, cost):
    """All alignments: (cost, partners)."""
    found = []

    def extend(i: int, j: int, partners: tuple[int, ...], spent: int) -> None:
        if i == len(a):
            found.append((spent + GAP * (len(b) - j), partners))
            return
        extend(i + 1, j, (*partners, -1), spent + GAP)
        for k in range(j, len(b)):
            if cost[a[i]][b[k]] < NEVER:
                spent_here = spent + GAP * (k - j) + int(cost[a[i]][b[k]])
                extend(i + 1, k + 1, (*partners, k), spent_here)

    extend(0, 0, (), 0)
    return found


sequences = st.lists(st.integers(0, 2), max_size=6)
tables = st.lists(
    st.lists(st.sampled_from([0, 1, CLASS, NEVER]), min_size=3, max_size=3), min_size=3, max_size=3
)


@settings(max_examples=300, deadline=None)
@given(sequences, sequences, st.lists(st.integers(0, 2), min_size=6, max_size=6), tables)
def test_partners_are_those_on_which_all_cheapest_alignments_agree(a, b, places, table):
    place = places[: len(b)]
    ways = every_way(a, b, table)
    cheapest = min(spent for spent, _ in ways)
    best = [partners for spent, partners in ways if spent == cheapest]
    found = align(ints(a), ints(b), ints(place), ints(table))
    assert found is not None
    assert found.cost == cheapest
    for i in range(len(a)):
        options = {partners[i] for partners in best}
        places_of = {place[j] for j in options if j >= 0}
        if options == {-1}:
            assert found.partner[i] == -1
            assert not found.doubtful[i]
        elif -1 in options or len(places_of) > 1:
            assert found.partner[i] == -1
            assert found.doubtful[i]
        else:
            assert found.partner[i] == min(options)
            assert not found.doubtful[i]
    partners = found.partner[found.partner >= 0]
    assert (np.diff(partners) > 0).all(), "two kernels of one launch"
    if found.gaps == 0:
        assert found.partner.tolist() == list(range(len(b))) == list(range(len(a)))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.integers(0, 2), min_size=1, max_size=9),
    st.lists(st.integers(0, 2), min_size=9, max_size=9),
    st.integers(0, 8),
    st.booleans(),
)
def test_the_short_way_for_one_odd_kernel_is_the_long_way(longer, places, odd, captured_more):
    odd %= len(longer)
    shorter = longer[:odd] + longer[odd + 1 :]
    a, b = (shorter, longer) if captured_more else (longer, shorter)
    if not a or not b:
        return
    place = ints(places[: len(b)])
    short, long = align_but_one(ints(a), ints(b), place), align(ints(a), ints(b), place)
    assert short is not None
    assert long is not None
    assert short.partner.tolist() == long.partner.tolist()
    assert short.doubtful.tolist() == long.doubtful.tolist()
    assert (short.cost, short.gaps) == (long.cost, long.gaps)


def test_the_short_way_is_for_one_odd_kernel_only():
    place = np.arange(4, dtype=np.int32)
    assert align_but_one(ints([1, 2, 3, 4]), ints([1, 2, 3, 4]), place) is None
    assert align_but_one(ints([1, 9, 4]), ints([1, 2, 3, 4]), place) is None
    assert align_but_one(ints([1, 4]), ints([1, 2, 3, 4]), place) is None


@pytest.mark.parametrize("missing", [0, 1, 17, 40, 300])
def test_a_band_far_narrower_than_the_sequences_finds_what_the_whole_table_would(missing):
    rng = np.random.default_rng(missing)
    whole = rng.integers(0, 40, 3000).astype(np.int32)
    kept = np.sort(rng.choice(3000, 3000 - missing, replace=False))
    found = align(whole[kept], whole, np.arange(3000, dtype=np.int32))
    assert found is not None
    assert found.cost == GAP * missing
    sure = found.partner >= 0
    assert (found.partner[sure] == kept[sure]).all()
    assert sure.mean() > 0.8


def test_sequences_too_long_and_too_different_are_not_aligned(monkeypatch):
    monkeypatch.setattr(module, "_CELLS", 80_000)
    a, b = np.zeros(2000, np.int32), np.ones(2000, np.int32)
    assert align(a, b, b) is None
    assert align(a, a, b) is not None


@pytest.mark.parametrize(
    ("replayed", "captured", "cost"),
    [
        ("nvjet_sm90_tst_64x8", "nvjet_sm90_tst_64x8", 0),
        ("__amd_rocclr_copyBuffer", "Memcpy DtoD (Device -> Device)", 1),
        ("__amd_rocclr_copyBuffer", "?copy", 0),
        ("Memset (Device)", "?fill", 0),
        ("Memset (Device)", "?copy", NEVER),
        ("rms_norm_kernel", "?kernel", 1),
        ("nvjet_sm90_tst_64x8", "nvjet_sm90_tst_128x8", 2),
        ("nvjet_sm90_tst_64x8", "void cutlass::Kernel2<x>", CLASS),
        ("nvjet_sm90_tst_64x8", "rms_norm_kernel", NEVER),
        ("triton_poi_fused_add_0", "vectorized_elementwise_kernel", NEVER),
        (
            "void aiter::cross_device_reduce_1stage<bf16, 8>(x)",
            "void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<int>>(int)",
            1,
        ),
    ],
)
def test_which_names_may_stand_for_each_other(replayed, captured, cost):
    assert substitution(replayed, captured) == cost


def test_equal_names_of_different_files_have_equal_numbers():
    names = Names()
    kinds = np.zeros(2, np.uint8)
    a = names.of(["x", "gemm", "norm"], ints([1, 2]), kinds)
    b = names.of(["norm", "y", "gemm"], ints([2, 0]), kinds)
    c = names.of([], ints([-1, -1]), np.array([0, 1], np.uint8))
    assert a.tolist() == b.tolist()
    assert len(set(a) | set(c.tolist())) == 4


def test_norms_on_two_streams_at_once_go_to_the_stream_that_had_them():
    """q_norm and k_norm: one kernel, two modules, either may be ahead."""
    captured = ints([0, 1, 2, 2, 4, 3, 1, 2, 2, 5])
    streams = ints([7, 7, 7, 8, 8, 7, 7, 7, 8, 8])
    place = np.arange(10, dtype=np.int32)
    # The second layer's k_norm starts before its q_norm.
    time = [0, 1, 2, 3, 4, 5, 6, 8, 7, 9]
    found = place_streams(captured[time], streams[time] + 30, captured, streams, place)
    assert found.partner.tolist() == time
    assert found.complete
    assert not found.certain, "streams were told apart by what else ran there"


def test_without_the_captures_streams_equal_kernels_of_two_modules_get_none():
    captured, unknown = ints([0, 1, 1, 2]), ints([-1, -1, -1, -1])
    place = ints([0, 1, 2, 3])
    found = place_streams(ints([0, 1, 1, 2]), ints([7, 8, 7, 7]), captured, unknown, place)
    assert found.partner.tolist() == [0, -1, -1, 3]
    assert not found.complete
    same = place_streams(
        ints([0, 1, 1, 2]), ints([7, 8, 7, 7]), captured, unknown, ints([0, 1, 1, 3])
    )
    assert sorted(same.partner.tolist()) == [0, 1, 2, 3]
