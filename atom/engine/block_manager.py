"""KV blocks: who holds which, and which hold a prefix that others may reuse.

A block is in one of three states: referenced by sequences, idle (unreferenced but published, kept
in LRU order) or free. The prefix cache maps a running xxhash64 of salt and tokens to a published
block. A hit needs more than the hash: the block's own token ids are compared and its parent must be
the very block matched before it, so a collision can never serve another prefix's KV.

Where a model has window caches or recurrent state, an entry may also carry the window block of its
tokens and a checkpoint of the state at its end (`cache_pools`). A hit of n blocks is then usable
only if the window's blocks before its end are alive, and entry n - 1 has a checkpoint.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

import xxhash

from atom.engine.cache_layout import CacheLayout
from atom.engine.checkpoints import CheckpointPool, decrease
from atom.engine.sequence import Sequence
from atom.engine.windows import WindowPool


class CachedBlock:
    """A published block: its content, and where it lies while it is alive."""

    __slots__ = ("block_id", "checkpoint", "hash", "parent", "token_bytes", "window_id")

    def __init__(
        self, block_id: int, hash_: int, token_bytes: bytes, parent: CachedBlock | str
    ) -> None:
        self.block_id = block_id  # -1: evicted, nothing can match it or follow it any more
        self.hash = hash_
        self.token_bytes = token_bytes  # int32
        self.parent = parent  # the block before it; of the first block, the salt
        self.window_id = -1  # edited by the pools alone; -1: carries none
        self.checkpoint = -1


class Found(NamedTuple):
    """What the cache has of a sequence's head, and what it is about to have."""

    hits: list[CachedBlock]  # usable now
    num_coming: int  # blocks after these that a hit may have once `last` is published
    last: int | None
    branch: int  # blocks that others hold or compute, usable or not


def _alive(parent: CachedBlock | str) -> bool:
    return isinstance(parent, str) or parent.block_id >= 0


class BlockManager:
    """Owns every block of the pool. Nothing here is called for a sequence that only decodes
    within a block it already has."""

    def __init__(self, layout: CacheLayout, enable_prefix_caching: bool) -> None:
        num_blocks = layout.num_blocks
        self.layout = layout
        self.num_blocks = num_blocks
        self.block_size = layout.block_size
        self.windows = WindowPool(layout) if layout.window else None
        self.checkpoints = CheckpointPool(layout) if layout.has_state else None
        self.is_plain = self.windows is None and self.checkpoints is None
        self.enable_prefix_caching = enable_prefix_caching and (
            self.checkpoints is None or self.checkpoints.size > 0
        )
        self._seed = int.from_bytes(os.urandom(8), "little")  # hashes cannot be guessed
        self._ref_counts = [0] * num_blocks
        self._entries: list[CachedBlock | None] = [None] * num_blocks
        self._by_hash: dict[int, CachedBlock] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # published, unreferenced; oldest first
        self._free = list(range(num_blocks - 1, -1, -1))
        self._pending: dict[int, int] = {}  # hash -> sequences that are computing this block

    # -- what the planner asks: nothing changes --------------------------------------------------

    @property
    def num_available(self) -> int:
        return len(self._free) + len(self._idle)

    @property
    def num_used(self) -> int:
        return self.num_blocks - self.num_available

    @property
    def num_cached(self) -> int:
        return len(self._by_hash)

    @property
    def saves_states(self) -> bool:
        return self.checkpoints is not None and self.enable_prefix_caching

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def match(self, seq: Sequence) -> list[CachedBlock]:
        """The longest run of published blocks that holds the head of `seq`, as far as it may be
        read, and with everything that computing goes on from.

        The sequence must have been hashed (`hash_tokens`).
        """
        chain = self._chain(seq)
        return chain if self.is_plain else chain[: self._num_usable(chain)]

    def _chain(self, seq: Sequence) -> list[CachedBlock]:
        if not self.enable_prefix_caching:
            return []
        usable = seq.num_cacheable_tokens // self.block_size
        hits: list[CachedBlock] = []
        get = self._by_hash.get
        size = 4 * self.block_size
        parent: CachedBlock | str = seq.cache_salt
        data = seq.tokens[: usable * self.block_size].tobytes()
        for i, hash_ in enumerate(seq.block_hashes[:usable]):
            entry = get(hash_)
            if entry is None or entry.token_bytes != data[i * size : (i + 1) * size]:
                break
            if entry.parent is not parent and entry.parent != parent:
                break
            hits.append(entry)
            parent = entry
        return hits

    def _num_usable(self, chain: list[CachedBlock]) -> int:
        span = self.layout.window_span
        usable = run = 0  # `run`: blocks up to here whose window block is alive
        for count, entry in enumerate(chain, 1):
            run = run + 1 if entry.window_id >= 0 else 0
            if run < min(count, span):
                continue
            if self.checkpoints is None or entry.checkpoint >= 0:
                usable = count
        return usable

    def look_up(self, seq: Sequence, computing: set[int], saving: set[int]) -> Found:
        """`match`, and what others are computing behind it.

        `computing` holds the hashes of the blocks that the plan in the making will have computed,
        `saving` of those at whose end it will have saved the state.
        """
        if self.is_plain:
            hits = self.match(seq)
            count, last = self.pending_run(seq, len(hits), computing)
            return Found(hits, count, last, len(hits))
        chain, checkpoints = self._chain(seq), self.checkpoints
        start = branch = self._num_usable(chain)
        count, last = 0, None
        end = seq.num_cacheable_tokens // self.block_size
        for i, hash_ in enumerate(seq.block_hashes[start:end], start):
            coming = hash_ in self._pending or hash_ in computing
            if not coming and i >= len(chain):
                break
            branch = i + 1
            if not coming:
                continue
            if checkpoints is None or hash_ in checkpoints.pending or hash_ in saving:
                count, last = branch - start, hash_
        return Found(chain[:start], count, last, branch)

    def is_idle(self, block_id: int) -> bool:
        return self._ref_counts[block_id] == 0

    def has_checkpoint(self, seq: Sequence, num_blocks: int) -> bool:
        """Whether an entry for the end of the sequence's first blocks carries one already."""
        if num_blocks > len(seq.block_hashes):
            return False
        entry = self._by_hash.get(seq.block_hashes[num_blocks - 1])
        return entry is not None and entry.checkpoint >= 0

    def is_pending(self, hash_: int) -> bool:
        return hash_ in self._pending

    def pending_run(self, seq: Sequence, start: int, also: set[int]) -> tuple[int, int | None]:
        """How many blocks after the first `start` others are computing now, and the last's hash.

        `also` holds the hashes that the plan in the making will have computed.
        """
        usable = seq.num_cacheable_tokens // self.block_size
        last: int | None = None
        count = 0
        for hash_ in seq.block_hashes[start:usable]:
            if hash_ not in self._pending and hash_ not in also:
                break
            last = hash_
            count += 1
        return count, last

    def num_freed_by(self, seq: Sequence, dropped: dict[int, int]) -> int:
        """Blocks that become available if `seq` lets go, after `dropped` references are gone.

        Adds the references of `seq` to `dropped`.
        """
        freed = 0
        for block_id in seq.block_table:
            gone = dropped.get(block_id, 0) + 1
            dropped[block_id] = gone
            freed += self._ref_counts[block_id] == gone
        return freed

    # -- ownership ------------------------------------------------------------------------------

    def acquire(self, hits: list[CachedBlock], seq: Sequence) -> None:
        """Reference the hits of `match` as the head of the sequence's table."""
        assert not seq.block_table, seq
        for entry in hits:
            block_id = entry.block_id
            assert self._entries[block_id] is entry, block_id
            if self._ref_counts[block_id] == 0:
                del self._idle[block_id]
            self._ref_counts[block_id] += 1
            seq.block_table.append(block_id)
        seq.num_published = seq.num_pending = len(hits)
        seq.cache_parent = hits[-1] if hits else seq.cache_salt
        if self.windows is not None:
            self.windows.acquire(hits, seq)
        if self.checkpoints is not None:
            self.checkpoints.acquire(hits)

    def allocate(self, seq: Sequence, count: int) -> list[int]:
        """Append `count` blocks to the sequence's table; the planner has seen that they exist."""
        assert count <= self.num_available, (seq, count, self.num_available)
        block_ids: list[int] = []
        for _ in range(count):
            block_id = self._free.pop() if self._free else self._evict()
            self._ref_counts[block_id] = 1
            block_ids.append(block_id)
        seq.block_table += block_ids
        return block_ids

    def release(self, seq: Sequence) -> None:
        """Let go of every block of the sequence; its tail is the first to be evicted."""
        for block_id in reversed(seq.block_table):
            self._ref_counts[block_id] -= 1
            assert self._ref_counts[block_id] >= 0, (seq, block_id)
            if self._ref_counts[block_id] == 0:
                if self._entries[block_id] is None:
                    self._free.append(block_id)
                else:
                    self._idle[block_id] = None
        seq.block_table = []
        if self.windows is not None:
            self.windows.release(seq)

    def _evict(self) -> int:
        block_id, _ = self._idle.popitem(last=False)
        self._forget(block_id)
        return block_id

    def _forget(self, block_id: int) -> None:
        entry = self._entries[block_id]
        assert entry is not None, block_id
        del self._by_hash[entry.hash]
        self._entries[block_id] = None
        if self.windows is not None and entry.window_id >= 0:
            self.windows.forget(entry.window_id)
        if self.checkpoints is not None and entry.checkpoint >= 0:
            self.checkpoints.forget(entry.checkpoint)
        entry.block_id = -1
        entry.parent = ""

    # -- the prefix cache -----------------------------------------------------------------------

    def hash_tokens(self, seq: Sequence) -> None:
        """Extend the sequence's hashes to all full blocks of its known tokens.

        Each token is hashed once in its life: the hash runs on, and its digest is read after
        each block.
        """
        if not self.enable_prefix_caching:
            return
        size = self.block_size
        done = len(seq.block_hashes)
        count = len(seq.tokens) // size
        if done == count:
            return
        if seq.hasher is None:
            seq.hasher = xxhash.xxh64(seq.cache_salt.encode(), seed=self._seed)
        data = memoryview(seq.tokens[done * size : count * size])
        update, digest = seq.hasher.update, seq.hasher.intdigest
        for i in range(0, len(data), size):
            update(data[i : i + size])
            seq.block_hashes.append(digest())

    def announce(self, seq: Sequence) -> None:
        """The sequence is about to compute all its full blocks: equal prompts may wait for them."""
        for hash_ in seq.block_hashes[seq.num_pending :]:
            self._pending[hash_] = self._pending.get(hash_, 0) + 1
        seq.num_pending = len(seq.block_hashes)
        if self.checkpoints is not None:
            self.checkpoints.announce(seq)

    def withdraw(self, seq: Sequence) -> None:
        """The sequence leaves: what it announced and has not published will not come."""
        for hash_ in seq.block_hashes[seq.num_published : seq.num_pending]:
            decrease(self._pending, hash_)
        seq.num_pending = 0
        if self.checkpoints is not None:
            self.checkpoints.withdraw(seq)

    def publish(self, seq: Sequence, num_blocks: int) -> None:
        """Offer the sequence's first `num_blocks` blocks, whose KV has been computed."""
        if not self.enable_prefix_caching:
            return
        self.hash_tokens(seq)
        size = self.block_size
        for i in range(seq.num_published, num_blocks):
            hash_ = seq.block_hashes[i]
            if i < seq.num_pending:
                decrease(self._pending, hash_)
            token_bytes = seq.tokens[i * size : (i + 1) * size].tobytes()
            if _alive(seq.cache_parent):
                block_id = seq.block_table[i]
                seq.cache_parent = self._enter(block_id, hash_, token_bytes, seq.cache_parent)
                if self.windows is not None:
                    self.windows.publish(seq.cache_parent, seq, i)
        seq.num_published = num_blocks

    def _enter(
        self, block_id: int, hash_: int, token_bytes: bytes, parent: CachedBlock | str
    ) -> CachedBlock:
        """The published block of this content: an equal one that exists, or this one."""
        existing = self._by_hash.get(hash_)
        if existing is not None:
            same_parent = existing.parent is parent or existing.parent == parent
            if same_parent and existing.token_bytes == token_bytes:
                return existing
            self._unpublish(existing)  # unreachable (its parent was evicted) or a collision
        entry = CachedBlock(block_id, hash_, token_bytes, parent)
        self._by_hash[hash_] = self._entries[block_id] = entry
        return entry

    def _unpublish(self, entry: CachedBlock) -> None:
        block_id = entry.block_id
        if self._ref_counts[block_id] == 0:
            del self._idle[block_id]
            self._free.append(block_id)
        self._forget(block_id)

    def reset(self) -> int:
        """Forget every published block; returns how many. Running sequences keep their blocks,
        and what follows a forgotten block is not published."""
        entries = list(self._by_hash.values())
        for entry in entries:
            self._unpublish(entry)
        return len(entries)

    # -- self-check -----------------------------------------------------------------------------

    def check_invariants(self, holders: Iterable[Sequence]) -> None:
        """Assert that every block is in one state and that counts equal what `holders` hold."""
        counts = [0] * self.num_blocks
        pending: dict[int, int] = {}
        for seq in holders:
            assert len(set(seq.block_table)) == len(seq.block_table), seq
            for block_id in seq.block_table:
                counts[block_id] += 1
            for hash_ in seq.block_hashes[seq.num_published : seq.num_pending]:
                pending[hash_] = pending.get(hash_, 0) + 1
        assert counts == self._ref_counts, "reference counts differ from the tables"
        assert pending == self._pending, "announced blocks differ from the sequences'"
        free, idle = set(self._free), set(self._idle)
        assert len(free) == len(self._free), "a block is free twice"
        assert not free & idle, "a block is free and idle"
        used = {b for b, count in enumerate(counts) if count}
        assert not used & (free | idle), "a referenced block is free or idle"
        assert len(free) + len(idle) + len(used) == self.num_blocks, "a block is lost"
        assert all(self._entries[b] is None for b in free), "a free block is published"
        assert all(self._entries[b] is not None for b in idle), "an idle block is unpublished"
        for hash_, entry in self._by_hash.items():
            assert entry.hash == hash_, entry.block_id
            assert self._entries[entry.block_id] is entry, entry.block_id
        assert sum(e is not None for e in self._entries) == len(self._by_hash), "stray entry"
        self._check_carried()

    def _check_carried(self) -> None:
        """Assert that what the pools say entries carry is what the entries say."""
        entries = self._by_hash.values()
        for pool, ids in (
            (self.windows, [e.window_id for e in entries if e.window_id >= 0]),
            (self.checkpoints, [e.checkpoint for e in entries if e.checkpoint >= 0]),
        ):
            carried = pool.num_cached if pool is not None else 0
            assert len(set(ids)) == len(ids) == carried, "carried by another entry than known"
