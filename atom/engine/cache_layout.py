"""What a model keeps between steps, in the numbers that scheduling needs. Imports no torch.

The runner makes it of its layers' `CacheSpec`s and of the memory there is; the block manager lives
by it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """`num_blocks` of the full kind always exist (they carry the prefix cache's chain), even where
    no layer has a cache of that kind.

    A window pool of at least `least_window_blocks` never runs out, so nothing waits for it; what it
    has beyond that keeps the windows of prefixes that nobody uses at the moment. A checkpoint is
    the recurrent state of a prefix that ends at a block boundary; without any, a model with state
    can reuse no prefix.
    """

    num_blocks: int
    block_size: int
    window: int = 0  # tokens seen, the last one included; 0: no window caches
    num_window_blocks: int = 0
    has_state: bool = False
    num_checkpoints: int = 0
    checkpoint_interval: int = 0  # tokens between checkpoints within a prompt, whole blocks

    @property
    def window_span(self) -> int:
        """Blocks that hold what a token at a block's beginning sees of the tokens before it."""
        return -(-(self.window - 1) // self.block_size) if self.window else 0


def least_window_blocks(window: int, block_size: int, max_num_seqs: int, step_tokens: int) -> int:
    """Blocks that suffice whatever is scheduled: every row its window, and the tokens of the step
    that runs and of the one being planned, each row's rounded up to whole blocks."""
    of_a_row = -(-window // block_size) + 3
    return max_num_seqs * of_a_row + 2 * -(-step_tokens // block_size)
