"""How many blocks and slots of each kind of cache fit, and why. Imports no torch.

A model of plain attention gets blocks alone. Others share the budget thus:

1. Every row has a slot of recurrent state; without memory for these nothing runs.
2. A share goes to checkpoints of states, where prefixes are reused.
3. Blocks of the full and of the window kind. As many window blocks as blocks never run out either,
   for no row holds more of them; so as long as blocks are scarce there is one beside each. From
   `least_window_blocks` on, blocks get most of the rest, and windows of cached prefixes a share.
"""

from __future__ import annotations

from typing import NamedTuple

from atom.config.schema import Config
from atom.engine.cache_layout import CacheLayout, least_window_blocks
from atom.engine.runner.memory import GIB, size_text, useful_blocks
from atom.errors import ConfigError

# Of what is left once every row has its state: prefixes to be reused need a checkpoint beside
# their blocks, and at `checkpoint_interval` one is about as large as the blocks that go with it.
CHECKPOINT_SHARE = 0.3
# Of what is left once no row's window can run out. A reused prefix needs the blocks of one window,
# at its end; its full blocks are many more.
WINDOW_SHARE = 0.1
LEAST_INTERVAL, MOST_INTERVAL = 256, 8192  # tokens


class CacheBytes(NamedTuple):
    """Of one row of each kind over all layers; 0: no layer has any."""

    block: int
    window_block: int = 0
    slot: int = 0
    window: int = 0  # tokens, the largest of the layers'

    @property
    def is_plain(self) -> bool:
        return not self.window_block and not self.slot

    def total(self, layout: CacheLayout, max_num_seqs: int) -> int:
        slots = max_num_seqs + layout.num_checkpoints if self.slot else 0
        windows = layout.num_window_blocks * self.window_block
        return layout.num_blocks * self.block + windows + slots * self.slot

    def describe(self, layout: CacheLayout, max_num_seqs: int) -> str:
        parts = [f"{layout.num_blocks} blocks of {layout.block_size} tokens"]
        if not self.is_plain:
            parts[0] += f" ({size_text(layout.num_blocks * self.block)})"
        if self.window_block:
            size = size_text(layout.num_window_blocks * self.window_block)
            parts.append(f"{layout.num_window_blocks} for windows of {self.window} ({size})")
        if self.slot:
            count = f"states of {max_num_seqs} sequences + {layout.num_checkpoints} checkpoints"
            size = size_text((max_num_seqs + layout.num_checkpoints) * self.slot)
            parts.append(f"{count} ({size})")
        return ", ".join(parts)


class CachePlan(NamedTuple):
    """`reason` says what decided the sizes, for the start-up log."""

    layout: CacheLayout
    reason: str


def plan_caches(
    config: Config, sizes: CacheBytes, *, max_model_len: int, budget: int, source: str
) -> CachePlan:
    """Rows of each kind within `budget` bytes, which `source` names in the log and in errors.

    A given `num_kvcache_blocks` is taken as it is; what else is needed comes on top. Raises
    `ConfigError` if not even one block fits.
    """
    size, rows = config.engine.block_size, config.scheduler.max_num_seqs
    asked = config.engine.num_kvcache_blocks
    least = _least_windows(config, sizes)
    useful = useful_blocks(config, max_model_len)
    left = budget - rows * sizes.slot
    if sizes.slot and left < 0 and asked <= 0:
        raise ConfigError(
            f"the recurrent states of max_num_seqs = {rows} sequences take "
            f"{size_text(rows * sizes.slot)} and there are {size_text(max(budget, 0))} ({source}): "
            "lower max_num_seqs"
        )
    interval = _interval(sizes, size) if sizes.slot else 0
    if asked > 0:
        blocks, reason = asked, "num_kvcache_blocks"
        checkpoints = _useful_checkpoints(config, asked, interval)
        windows = min(asked, least + _cached_windows(config, sizes, asked * sizes.block, asked))
    else:
        checkpoints = 0
        if sizes.slot:
            room = int(left * CHECKPOINT_SHARE) // sizes.slot
            checkpoints = min(room, _useful_checkpoints(config, useful, interval))
            left -= checkpoints * sizes.slot
        blocks, windows = _share(config, sizes, least, useful, left)
        reason = source
        if blocks < 1:
            raise ConfigError(_too_small(sizes, left, source))
        if blocks >= useful:
            reason = "max_num_seqs sequences of max_model_len tokens"
    return CachePlan(
        CacheLayout(
            num_blocks=blocks,
            block_size=size,
            window=sizes.window,
            num_window_blocks=windows,
            has_state=sizes.slot > 0,
            num_checkpoints=checkpoints if config.engine.enable_prefix_caching else 0,
            checkpoint_interval=interval,
        ),
        reason,
    )


def check_fits(config: Config, sizes: CacheBytes, layout: CacheLayout, available: int) -> None:
    """Raise `ConfigError` if caches of the asked-for size exceed what is free."""
    taken = sizes.total(layout, config.scheduler.max_num_seqs)
    if taken <= available:
        return
    each = max(1, sizes.block + sizes.window_block)
    most = max(0, layout.num_blocks - -(-(taken - available) // each))
    raise ConfigError(
        f"num_kvcache_blocks = {layout.num_blocks} takes {taken / GIB:.1f} GiB but only "
        f"{max(0, available) / GIB:.1f} GiB are free: at most {most} blocks"
    )


def _too_small(sizes: CacheBytes, left: int, source: str) -> str:
    return (
        "no memory is left for the KV cache: a block needs "
        f"{size_text(sizes.block + sizes.window_block)} and there are {size_text(max(left, 0))} "
        f"({source}): give it more (gpu_memory_utilization; on CPU kv_cache_memory_gb), lower "
        "max_num_batched_tokens or choose a smaller model"
    )


def _least_windows(config: Config, sizes: CacheBytes) -> int:
    if not sizes.window_block:
        return 0
    scheduler = config.scheduler
    return least_window_blocks(
        sizes.window,
        config.engine.block_size,
        scheduler.max_num_seqs,
        scheduler.max_num_batched_tokens,
    )


def _interval(sizes: CacheBytes, block_size: int) -> int:
    """Whole blocks about as large as one state."""
    block = sizes.block + sizes.window_block
    tokens = sizes.slot * block_size // block if block else MOST_INTERVAL
    tokens = min(max(tokens, LEAST_INTERVAL), MOST_INTERVAL)
    return -(-tokens // block_size) * block_size


def _useful_checkpoints(config: Config, num_blocks: int, interval: int) -> int:
    """One at every interval of all blocks, and two for the ends of each row's prompt."""
    if not interval or not config.engine.enable_prefix_caching:
        return 0
    size, rows = config.engine.block_size, config.scheduler.max_num_seqs
    return num_blocks * size // interval + 2 * rows


def _cached_windows(config: Config, sizes: CacheBytes, room: int, most: int) -> int:
    """Window blocks beyond the least, if there are `room` bytes for blocks of any kind."""
    if not sizes.window_block or not config.engine.enable_prefix_caching:
        return 0
    if not sizes.block:
        return most
    return min(most, int(room * WINDOW_SHARE) // sizes.window_block)


def _share(
    config: Config, sizes: CacheBytes, least: int, useful: int, left: int
) -> tuple[int, int]:
    """(blocks, window blocks) in `left` bytes."""
    pair = sizes.block + sizes.window_block
    if pair == 0:
        return useful, 0
    if left < least * pair:
        blocks = min(left // pair, useful)
        return blocks, min(blocks, least)
    rest = left - least * pair
    if not sizes.block:
        windows = least + rest // sizes.window_block
        most = useful if config.engine.enable_prefix_caching else least
        return useful, min(windows, most, useful)
    extra = _cached_windows(config, sizes, rest, useful)
    blocks = min(least + (rest - extra * sizes.window_block) // sizes.block, useful)
    return blocks, min(least + extra, blocks)
