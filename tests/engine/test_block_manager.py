"""Blocks and the prefix cache: order of eviction, collisions, salts, resets, the self-check."""

from __future__ import annotations

from typing import Any

import pytest
from engine.engine_helpers import GREEDY, Engine, make_config

from atom.engine import block_manager
from atom.engine.block_manager import BlockManager
from atom.engine.cache_layout import CacheLayout
from atom.engine.messages import GenerateRequest
from atom.engine.sampling_params import SamplingParams
from atom.engine.sequence import Sequence


def make_seq(tokens: list[int], salt: str = "") -> Sequence:
    return Sequence(GenerateRequest("s", tokens, GREEDY, salt), GREEDY, 0, 0.0)


def compute(blocks: BlockManager, seq: Sequence) -> list[int]:
    """Hash, match, allocate and publish, as a whole prefill does; returns the ids that hit."""
    blocks.hash_tokens(seq)
    hits = blocks.match(seq)
    blocks.acquire(hits, seq)
    blocks.allocate(seq, blocks.blocks_for(len(seq.tokens)) - len(hits))
    blocks.announce(seq)
    blocks.publish(seq, len(seq.tokens) // blocks.block_size)
    return [entry.block_id for entry in hits]


def finish(blocks: BlockManager, seq: Sequence) -> None:
    blocks.withdraw(seq)
    blocks.release(seq)


def test_free_blocks_go_first_then_the_longest_idle_tail_first() -> None:
    blocks = BlockManager(CacheLayout(8, 2), True)
    old, young = make_seq([1, 2, 3, 4]), make_seq([5, 6, 7, 8])
    compute(blocks, old)
    compute(blocks, young)
    old_table, young_table = list(old.block_table), list(young.block_table)
    finish(blocks, old)
    finish(blocks, young)
    taker = make_seq(list(range(100, 112)))
    given = blocks.allocate(taker, 4)
    assert not set(given) & {*old_table, *young_table}
    assert blocks.allocate(taker, 3) == [old_table[1], old_table[0], young_table[1]]
    blocks.check_invariants([taker])
    assert blocks.num_available == 1


def test_a_hit_makes_an_idle_block_young_again() -> None:
    blocks = BlockManager(CacheLayout(4, 2), True)
    first, second = make_seq([1, 2, 9]), make_seq([3, 4, 9])
    for seq in (first, second):
        compute(blocks, seq)
        finish(blocks, seq)
    again = make_seq([1, 2, 8])
    (hit,) = compute(blocks, again)
    finish(blocks, again)
    taker = make_seq(list(range(50, 56)))
    assert blocks.allocate(taker, 3)[-1] != hit  # two were free, then the other idle one
    blocks.check_invariants([taker])


def test_idle_hits_count_as_consumed() -> None:
    """Three blocks are idle and cached, none is free: a prompt that hits all three and needs a
    fourth must wait. Hits that seem to cost nothing would promise a block that does not exist."""
    engine = Engine(make_config(num_blocks=5, block_size=4))
    engine.add("a", list(range(13)), SamplingParams(temperature=0, max_tokens=1))
    engine.run()
    engine.add("running", [900] * 5, SamplingParams(temperature=0, max_tokens=3, ignore_eos=True))
    engine.step()
    blocks = engine.core.scheduler.blocks
    assert (blocks.num_used, blocks.num_available, len(blocks._free)) == (2, 3, 0)
    engine.add("b", list(range(13)), SamplingParams(temperature=0, max_tokens=1))
    engine.step()
    assert engine.core.scheduler.num_waiting == 1
    engine.run()
    assert engine.tokens["b"] == engine.expected("b")
    assert engine.chunks["b"][0].num_cached_tokens == 12
    engine.check_idle()


@pytest.mark.parametrize("length", [1, 4, 5, 8, 9])
def test_at_least_one_token_is_left_to_compute(length: int) -> None:
    blocks = BlockManager(CacheLayout(16, 4), True)
    first, second = make_seq(list(range(length))), make_seq(list(range(length)))
    compute(blocks, first)
    assert len(compute_hits(blocks, second)) == (length - 1) // 4


def compute_hits(blocks: BlockManager, seq: Sequence) -> list[Any]:
    blocks.hash_tokens(seq)
    return blocks.match(seq)


def test_salts_keep_tenants_apart() -> None:
    blocks = BlockManager(CacheLayout(16, 4), True)
    compute(blocks, make_seq(list(range(9)), "tenant a"))
    assert compute_hits(blocks, make_seq(list(range(9)), "tenant b")) == []
    assert compute_hits(blocks, make_seq(list(range(9)), "")) == []
    assert len(compute_hits(blocks, make_seq(list(range(9)), "tenant a"))) == 2


class OneHash:
    """A hash under which everything collides."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def update(self, _: Any) -> None: ...

    def intdigest(self) -> int:
        return 7


def test_a_collision_never_serves_anothers_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_manager.xxhash, "xxh64", OneHash)
    blocks = BlockManager(CacheLayout(16, 2), True)
    compute(blocks, make_seq([1, 2, 3, 4, 5]))
    for tokens, salt in (([9, 2, 3], ""), ([3, 4, 5], ""), ([1, 2, 3], "salt")):
        assert compute_hits(blocks, make_seq(tokens, salt)) == []


def test_equal_blocks_under_another_parent_do_not_match() -> None:
    """Same hash, same own tokens, another past: only the parent tells them apart."""
    blocks = BlockManager(CacheLayout(16, 2), True)
    one = make_seq([1, 2, 5, 6, 0])
    compute(blocks, one)
    other = make_seq([3, 4, 5, 6, 0])
    blocks.hash_tokens(other)
    compute(blocks, make_seq([3, 4, 0]))
    other.block_hashes[1] = one.block_hashes[1]  # a collision of the chain
    assert len(blocks.match(other)) == 1


def test_a_child_whose_parent_was_evicted_is_not_found_and_gives_way() -> None:
    blocks = BlockManager(CacheLayout(16, 2), True)
    seq = make_seq([1, 2, 3, 4, 5])
    compute(blocks, seq)
    finish(blocks, seq)
    blocks._unpublish(blocks._by_hash[seq.block_hashes[0]])
    blocks.check_invariants([])
    again = make_seq([1, 2, 3, 4, 5])
    assert compute(blocks, again) == []
    assert blocks.num_cached == 2
    assert len(compute_hits(blocks, make_seq([1, 2, 3, 4, 5]))) == 2


def test_blocks_are_published_only_after_their_step_was_collected() -> None:
    engine = Engine(make_config(overlap=True))
    engine.add("a", list(range(20)))
    engine.step()  # launched, not collected
    assert engine.core.scheduler.blocks.num_cached == 0
    engine.step()
    assert engine.core.scheduler.blocks.num_cached == 5


def test_generated_tokens_are_cached_as_well() -> None:
    engine = Engine(make_config(block_size=4))
    engine.add("a", [1, 2, 3], SamplingParams(temperature=0, max_tokens=10, ignore_eos=True))
    engine.run()
    dialogue = [1, 2, 3, *engine.tokens["a"]]
    engine.add("b", [*dialogue, 4, 5])
    engine.run()
    assert engine.chunks["b"][0].num_cached_tokens == 12  # 13 tokens, the last was never computed


def test_reset_forgets_everything_and_running_sequences_go_on() -> None:
    engine = Engine(make_config())
    engine.add("a", list(range(30)))
    engine.step()
    engine.reset_prefix_cache()
    assert engine.core.scheduler.blocks.num_cached == 0
    engine.run()
    engine.add("b", list(range(30)))
    engine.run()
    assert engine.chunks["b"][0].num_cached_tokens == 0
    assert engine.tokens["b"] == engine.tokens["a"]
    engine.check_idle()


def test_without_caching_nothing_is_hashed_or_kept() -> None:
    engine = Engine(make_config(caching=False))
    engine.add("a", list(range(30)))
    engine.add("b", list(range(30)))
    engine.run()
    assert engine.runner.prompt_tokens == 60
    assert engine.core.stats().num_cached_blocks == 0
    assert engine.core.stats().prefix_cache_queries == 0
    assert engine.core.info.prefix_caching_reason


def test_each_token_is_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = []
    real = block_manager.xxhash.xxh64

    class Counting:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.inner = real(*args, **kwargs)

        def update(self, data: Any) -> None:
            hashed.append(len(data))
            self.inner.update(data)

        def intdigest(self) -> int:
            return int(self.inner.intdigest())

    monkeypatch.setattr(block_manager.xxhash, "xxh64", Counting)
    engine = Engine(make_config(num_blocks=20, max_num_seqs=1))
    engine.add("a", list(range(40)), SamplingParams(temperature=0, max_tokens=20))
    engine.add("waits", list(range(100, 140)), SamplingParams(temperature=0, max_tokens=1))
    for _ in range(10):
        engine.step()
    assert sum(hashed) <= 40 + 40 + 10


def test_seeds_differ_between_engines() -> None:
    first, second = BlockManager(CacheLayout(4, 2), True), BlockManager(CacheLayout(4, 2), True)
    seqs = [make_seq([1, 2, 3]), make_seq([1, 2, 3])]
    first.hash_tokens(seqs[0])
    second.hash_tokens(seqs[1])
    assert seqs[0].block_hashes != seqs[1].block_hashes


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda b: b._free.pop(), "lost"),
        (lambda b: b._free.append(b._free[0]), "free twice"),
        (lambda b: b._free.append(next(iter(b._idle))), "free and idle"),
        (lambda b: b._ref_counts.__setitem__(0, 3), "reference counts"),
        (lambda b: b._pending.__setitem__(1, 1), "announced"),
        (lambda b: b._entries.__setitem__(next(iter(b._idle)), None), "unpublished"),
    ],
)
def test_the_self_check_sees_harm(harm: Any, words: str) -> None:
    blocks = BlockManager(CacheLayout(8, 2), True)
    seq = make_seq([1, 2, 3, 4, 5])
    compute(blocks, seq)
    finish(blocks, seq)
    blocks.check_invariants([])
    harm(blocks)
    with pytest.raises(AssertionError, match=words):
        blocks.check_invariants([])
