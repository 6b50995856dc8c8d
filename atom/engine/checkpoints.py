"""Checkpoints of recurrent state: where they are taken, who has one, and which are about to come.

A state cannot be cut at a token of one's choice, as keys and values can: it is what it was after
the last token computed. So a prompt's chunk ends where its state is to be saved (`save_points`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from atom.engine.cache_layout import CacheLayout
from atom.engine.cache_pools import Entry, IdPool
from atom.engine.sequence import NEVER, Sequence

if TYPE_CHECKING:
    from atom.engine.block_manager import CachedBlock


def save_points(
    seq: Sequence, start: int, branch: int, layout: CacheLayout, least: int
) -> tuple[int, ...]:
    """Numbers of tokens, ascending and whole blocks, after which the prompt's state is saved.

    These are every `checkpoint_interval`, the token `branch` where the prompt parts from others'
    (more will part there), and the last block boundary that the cache may serve to an equal prompt.
    A point costs a step, so each saves at least `least` tokens to whoever starts there and not at
    the one before. `start`: tokens that the cache gave.
    """
    size, interval, end = layout.block_size, layout.checkpoint_interval, len(seq.tokens)
    wanted = {branch, seq.num_cacheable_tokens // size * size}
    if interval:
        wanted.update(range((start // interval + 1) * interval, end + 1, interval))
    points: list[int] = []
    last = start
    for point in sorted(wanted):
        if point > start and point - last >= least:
            points.append(point)
            last = point
    return tuple(points)


def next_multiple(num_tokens: int, interval: int) -> int:
    """The first multiple of `interval` beyond `num_tokens`; never if there is no interval."""
    return (num_tokens // interval + 1) * interval if interval else NEVER


class CheckpointPool(IdPool):
    """An id is referenced only while its state is being saved. A hit holds no reference: the copy
    into its row is enqueued before anything that could overwrite the checkpoint."""

    def __init__(self, layout: CacheLayout) -> None:
        super().__init__(layout.num_checkpoints)
        self.block_size = layout.block_size
        self.pending: dict[int, int] = {}  # hash -> sequences that will save the state at its end

    @staticmethod
    def note(entry: Entry, id_: int) -> None:
        entry.checkpoint = id_

    def acquire(self, hits: list[CachedBlock]) -> None:
        if hits:
            self.pin(hits[-1].checkpoint)
            self.let_go(hits[-1].checkpoint)

    def announce(self, seq: Sequence) -> None:
        """The sequence will save its state at its save points: equal prompts may wait for it."""
        for end in seq.save_points:
            hash_ = seq.block_hashes[end // self.block_size - 1]
            self.pending[hash_] = self.pending.get(hash_, 0) + 1
            seq.announced_saves.append(hash_)

    def came(self, seq: Sequence, num_blocks: int) -> None:
        """What was announced for the end of these blocks has come, or will not."""
        if not seq.announced_saves:
            return
        hash_ = seq.block_hashes[num_blocks - 1]
        if hash_ in seq.announced_saves:
            seq.announced_saves.remove(hash_)
            decrease(self.pending, hash_)

    def withdraw(self, seq: Sequence) -> None:
        for hash_ in seq.announced_saves:
            decrease(self.pending, hash_)
        seq.announced_saves = []

    def publish(self, seq: Sequence, num_blocks: int, id_: int) -> bool:
        """The state after these blocks has been saved; False: no entry is there to carry it."""
        entry = seq.cache_parent
        served = (
            seq.finish_reason is None
            and not isinstance(entry, str)
            and entry.block_id >= 0
            and entry.checkpoint < 0
        )
        if served:
            assert not isinstance(entry, str)
            assert seq.num_published == num_blocks, seq
            self.attach(id_, entry)
            if num_blocks == seq.branch:
                self.want(id_)
            before, seq.last_saved = seq.last_saved, entry
            if before is not None and before.checkpoint >= 0:
                self.demote(before.checkpoint)
        self.let_go(id_)
        return served


def decrease(counts: dict[int, int], key: int) -> None:
    if counts[key] == 1:
        del counts[key]
    else:
        counts[key] -= 1
