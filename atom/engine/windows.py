"""Blocks of window caches: a sequence holds those that its next token sees, and gets the next ones
when a step is about to fill them.

Sequences share the window blocks that a hit gave them. The pool is so large that every row can have
its window (`cache_layout.least_window_blocks`), so nobody ever waits for a window block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from atom.engine.cache_layout import CacheLayout
from atom.engine.cache_pools import Entry, IdPool
from atom.engine.sequence import Sequence

if TYPE_CHECKING:
    from atom.engine.block_manager import CachedBlock


class WindowPool(IdPool):
    def __init__(self, layout: CacheLayout) -> None:
        super().__init__(layout.num_window_blocks)
        self.window = layout.window
        self.block_size = layout.block_size
        self.span = layout.window_span

    @staticmethod
    def note(entry: Entry, id_: int) -> None:
        entry.window_id = id_

    def acquire(self, hits: list[CachedBlock], seq: Sequence) -> None:
        """Reference the blocks that the first token after `hits` sees."""
        assert not seq.window_blocks, seq
        seq.window_head = max(0, len(hits) - self.span)
        for entry in hits[seq.window_head :]:
            self.pin(entry.window_id)
            seq.window_blocks.append(entry.window_id)

    def grow(self, seq: Sequence, num_tokens: int) -> list[int]:
        """Blocks for all places up to `num_tokens` that have none yet."""
        missing = -(-num_tokens // self.block_size) - seq.window_head - len(seq.window_blocks)
        block_ids: list[int] = []
        for _ in range(missing):
            block_id = self.take()
            assert block_id is not None, "the window pool is too small"
            block_ids.append(block_id)
        seq.window_blocks += block_ids
        return block_ids

    def shrink(self, seq: Sequence, num_computed: int) -> None:
        """Let go of the blocks that no token after the first `num_computed` sees."""
        head = max(0, num_computed - self.window + 1) // self.block_size
        count = head - seq.window_head
        if count <= 0:
            return
        # Where the prompt parts from others' more will part: that end is kept as one that was hit.
        kept = range(seq.branch - self.span, seq.branch)
        for place, block_id in enumerate(seq.window_blocks[:count], seq.window_head):
            if place in kept:
                self.want(block_id)
            self.let_go(block_id, passed=True)
        del seq.window_blocks[:count]
        seq.window_head = head

    def publish(self, entry: CachedBlock, seq: Sequence, place: int) -> None:
        """The entry of the sequence's block `place` carries its window block, if it has none."""
        if entry.window_id < 0:
            self.attach(seq.window_blocks[place - seq.window_head], entry)

    def release(self, seq: Sequence) -> None:
        # A hit needs all of a window: the head goes first, so that no useless rest outlives it.
        for block_id in seq.window_blocks:
            self.let_go(block_id)
        seq.window_blocks, seq.window_head = [], 0
