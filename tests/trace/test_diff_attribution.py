"""A step's time is cut into items that sum to it; against a count of every nanosecond."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from diff_models import K, S, model
from hypothesis import given, settings
from hypothesis import strategies as st

from atom.trace.attribution import Item, Kind, attribute

kernels = st.builds(
    K,
    name=st.sampled_from(["gemm", "norm", "copy"]),
    start=st.integers(0, 40),
    dur=st.integers(0, 12),
    module=st.sampled_from(["", "mlp", "attn"]),
    layer=st.integers(-1, 2),
    stream=st.integers(7, 9),
    launch=st.none() | st.integers(-5, 50),
)
steps = st.lists(st.lists(kernels, min_size=1, max_size=12).map(S), min_size=1, max_size=4)


def brute(step: S) -> tuple[Counter[Item], Counter[int], int]:
    """Time by item and by layer, and the span: nanosecond by nanosecond."""
    ordered = sorted(step.kernels, key=lambda k: k.start)  # stable, as the rows are
    first, last = ordered[0].start, max(k.start + k.dur for k in ordered)
    found: Counter[Item] = Counter()
    layers: Counter[int] = Counter()
    for now in range(first, last):
        streams = {}
        for k in ordered:
            if k.start <= now < k.start + k.dur:
                streams.setdefault(k.stream, k)
        for k in streams.values():
            found[Item(Kind.KERNEL, k.module, k.name)] += 1
            layers[k.layer] += 1
        if streams:
            found[Item(Kind.OVERLAP, "", "")] -= len(streams) - 1
            continue
        coming = next(k for k in ordered if k.start > now)
        called = coming.launch is None or coming.launch <= now
        found[Item(Kind.GAP if called else Kind.HOST, coming.module, "")] += 1
    return found, layers, last - first


@given(steps)
@settings(max_examples=150, deadline=None)
def test_items_are_what_a_count_of_every_nanosecond_finds(made: list[S]) -> None:
    built = model(made)
    found = attribute(built, built.steps)
    assert (found.ns.sum(axis=1) == found.span).all()
    for i, step in enumerate(made):
        items, layers, span = brute(step)
        assert found.span[i] == span
        mine = Counter(dict(zip(found.items, found.ns[i].tolist(), strict=True)))
        assert {k: v for k, v in mine.items() if v} == {k: v for k, v in items.items() if v}
        assert found.busy[i] == span - sum(
            v for k, v in items.items() if k.kind in (Kind.HOST, Kind.GAP)
        )
        assert found.sums[i] == sum(k.dur for k in step.kernels)
        deep = found.layer_ns.shape[1]
        assert found.layer_ns[i].tolist() == [layers[d - 1] for d in range(deep)]
    assert (found.by_layer.sum(axis=1) == found.ns.sum(axis=0)).all()


def test_kernels_launched_early_are_not_counted_twice() -> None:
    """The second starts within the first on the same stream and waits there."""
    built = model([S([K("a", 0, 100, "m"), K("b", 10, 120, "n")])])
    found = attribute(built, built.steps)
    times = dict(zip(found.items, found.ns[0].tolist(), strict=True))
    assert times[Item(Kind.KERNEL, "m", "a")] == 100
    assert times[Item(Kind.KERNEL, "n", "b")] == 30
    assert times[Item(Kind.OVERLAP, "", "")] == 0
    assert found.sums[0] == 220


def test_streams_that_overlap_are_taken_off_again() -> None:
    built = model([S([K("a", 0, 100, "m"), K("b", 10, 50, "n", stream=8)])])
    found = attribute(built, built.steps)
    times = dict(zip(found.items, found.ns[0].tolist(), strict=True))
    assert times[Item(Kind.OVERLAP, "", "")] == -50
    assert found.ns.sum() == found.span[0] == 100


@pytest.mark.parametrize(("launch", "host"), [(None, 0), (50, 0), (100, 0), (130, 30), (500, 80)])
def test_idle_time_is_the_hosts_until_it_calls_the_launch(launch: int | None, host: int) -> None:
    built = model([S([K("a", 0, 100, "m"), K("b", 180, 20, "n", launch=launch)])])
    found = attribute(built, built.steps)
    times = dict(zip(found.items, found.ns[0].tolist(), strict=True))
    assert times.get(Item(Kind.HOST, "n", ""), 0) == host
    assert times.get(Item(Kind.GAP, "n", ""), 0) == 80 - host


def test_positions_follow_the_order_within_a_module() -> None:
    built = model(
        [S([K(n, i * 10, 5, m) for i, (n, m) in enumerate(["ax", "bx", "cy", "ax", "bx"])])]
    )
    found = attribute(built, built.steps)
    place = {item.kernel: found.position[i] for i, item in enumerate(found.items) if item.kernel}
    assert place == {"a": 0, "b": 1, "c": 0}
    assert found.calls[0, found.items.index(Item(Kind.KERNEL, "x", "a"))] == 2


def test_modules_are_merged_by_the_renaming() -> None:
    built = model([S([K("a", 0, 5, "x"), K("a", 10, 5, "y"), K("a", 20, 5)])])
    found = attribute(built, built.steps, {"x": "z", "y": "z"}.__getitem__)
    times = dict(zip(found.items, found.ns[0].tolist(), strict=True))
    assert times[Item(Kind.KERNEL, "z", "a")] == 10
    assert times[Item(Kind.KERNEL, "", "a")] == 5


def test_many_rows_need_no_loop_over_pairs() -> None:
    """300 000 rows: the whole is some sorts and sums."""
    count, each = 300, 1000
    start = np.arange(each) * 10
    parts = [K(f"k{i % 40}", int(t), 8, f"m{i % 9}", i % 30) for i, t in enumerate(start)]
    built = model([S(parts)] * count)
    found = attribute(built, built.steps)
    assert found.ns.sum() == found.span.sum() == count * (each * 10 - 2)
