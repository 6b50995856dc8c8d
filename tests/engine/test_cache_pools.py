"""Pools of window blocks and checkpoints: the order of eviction and the self-check."""

from __future__ import annotations

from typing import Any

import pytest

from atom.engine.block_manager import CachedBlock
from atom.engine.cache_layout import CacheLayout
from atom.engine.checkpoints import CheckpointPool


def pool_of(size: int) -> CheckpointPool:
    return CheckpointPool(CacheLayout(8, 4, has_state=True, num_checkpoints=size))


def enter(pool: CheckpointPool, *, passed: bool = False) -> int:
    """An id that an entry carries and nobody references."""
    id_ = pool.take()
    assert id_ is not None
    pool.attach(id_, CachedBlock(0, 0, b"", ""))
    pool.let_go(id_, passed)
    return id_


def hit(pool: CheckpointPool, id_: int) -> None:
    pool.pin(id_)
    pool.let_go(id_)


def drain(pool: CheckpointPool) -> list[int]:
    """Ids in the order in which they are handed out."""
    order = []
    while (id_ := pool.take()) is not None:
        order.append(id_)
    return order


def test_passed_go_first_then_ends_then_what_hits_wanted() -> None:
    pool = pool_of(6)
    wanted, end, passed, later = (enter(pool, passed=i == 2) for i in range(4))
    hit(pool, wanted)
    free = sorted(pool._free, reverse=True)
    assert sorted(drain(pool)[:2], reverse=True) == free
    pool = pool_of(4)
    wanted, end, passed, later = (enter(pool, passed=i == 2) for i in range(4))
    hit(pool, wanted)
    assert drain(pool) == [passed, end, later, wanted]
    assert pool.take() is None
    assert pool.num_cached == 0


def test_what_hits_wanted_fills_three_quarters_then_the_oldest_counts_as_an_end() -> None:
    pool = pool_of(4)
    ids = [enter(pool) for _ in range(4)]
    for id_ in ids:
        hit(pool, id_)
    assert drain(pool) == ids
    pool = pool_of(8)
    ids = [enter(pool) for _ in range(8)]
    for id_ in ids[:7]:
        hit(pool, id_)
    assert drain(pool) == [ids[7], ids[0], *ids[1:7]]


def test_an_id_that_is_handed_out_again_is_wanted_by_nobody() -> None:
    pool = pool_of(2)
    id_ = pool.take()
    assert id_ is not None
    pool.want(id_)
    pool.let_go(id_)  # no entry carries it: free
    first, second = enter(pool), enter(pool)
    hit(pool, second)
    assert drain(pool) == [first, second]


def test_a_demoted_end_goes_first_unless_it_was_hit() -> None:
    pool = pool_of(3)
    hot, inner, end = (enter(pool) for _ in range(3))
    hit(pool, hot)
    pool.demote(hot)
    pool.demote(end)
    assert drain(pool) == [end, inner, hot]


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda p: p._free.pop(), "lost"),
        (lambda p: p._free.append(p._free[0]), "lost"),
        (lambda p: p._passed.__setitem__(next(iter(p._idle)), None), "lost"),
        (lambda p: p._ref_counts.__setitem__(0, 2), "reference counts"),
        (lambda p: p._entries.__setitem__(next(iter(p._idle)), None), "idle for none"),
        (lambda p: p._entries.__setitem__(p._free[0], p._entries[next(iter(p._idle))]), "carried"),
        (lambda p: setattr(p, "num_cached", 7), "CheckpointPool"),
    ],
)
def test_the_self_check_sees_harm(harm: Any, words: str) -> None:
    pool = pool_of(4)
    enter(pool)
    pool.check_invariants([0] * 4)
    harm(pool)
    with pytest.raises(AssertionError, match=words):
        pool.check_invariants([0] * 4)
