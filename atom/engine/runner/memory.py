"""What memory there is for caches. Imports no torch, so that `atom doctor` can plan with it."""

from __future__ import annotations

import os
from dataclasses import dataclass

import psutil

from atom.config.schema import Config
from atom.errors import ConfigError
from atom.utils.machine import describe_machine

# Of the memory that is free once the weights are loaded. Pages count only when first written, but a
# prefix cache touches them all in time.
CPU_SHARE = 0.25
GIB = 2**30
# Of a GPU, beside what was measured: the allocator cannot use every gap between its blocks, and a
# kernel that runs for the first time under load brings its code and its workspace.
RESERVE_BYTES = 256 * 2**20
RESERVE_SHARE = 0.05  # of the activations


def size_text(size: float) -> str:
    """Bytes for people."""
    if size < 1 << 20:
        return f"{size:,.0f} bytes"
    return f"{size / GIB:,.2f} GiB" if size >= GIB else f"{size / 2**20:,.0f} MiB"


@dataclass(frozen=True, slots=True)
class Room:
    """What a GPU has left for the KV pool, and what stands beside it; bytes.

    `held` is everything on the card once weights and tables are there: theirs, the runtime's, and
    other processes'. `limit` is the share that was asked for.
    """

    total: int
    limit: int
    held: int
    activations: int  # the peak of the largest step, over what is held between steps
    graphs: int

    @property
    def reserve(self) -> int:
        return RESERVE_BYTES + int(self.activations * RESERVE_SHARE)

    @property
    def kv_cache(self) -> int:
        """May be negative: then nothing fits."""
        return self.limit - self.held - self.activations - self.graphs - self.reserve

    def describe(self) -> str:
        parts = {
            "held": self.held,
            "the largest step": self.activations,
            "graphs": self.graphs,
            "reserve": self.reserve,
        }
        spent = ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items() if size)
        return f"{self.limit / GIB:.2f} of {self.total / GIB:.2f} GiB less {spent}"


def available_memory() -> int:
    """Bytes that this process could still take: the machine's free memory, cut by its control
    group's limit."""
    free = psutil.virtual_memory().available
    limit = describe_machine().memory_limit
    if limit is not None:
        free = min(free, max(0, limit - psutil.Process(os.getpid()).memory_info().rss))
    return int(free)


def useful_blocks(config: Config, max_model_len: int) -> int:
    """What every row at full length would hold; more could never be used at once."""
    per_sequence = -(-max_model_len // config.engine.block_size)
    return per_sequence * config.scheduler.max_num_seqs


def cpu_budget(config: Config, available: int) -> tuple[int, str]:
    """(bytes for the KV cache on CPU, where the figure comes from)."""
    asked = config.engine.kv_cache_memory_gb
    if asked is not None:
        size = int(asked * GIB)
        if size > available:
            raise ConfigError(
                f"kv_cache_memory_gb = {asked:g} GiB but only {available / GIB:.1f} GiB are free"
            )
        return size, f"kv_cache_memory_gb = {asked:g}"
    return int(available * CPU_SHARE), f"{CPU_SHARE:.0%} of {available / GIB:.1f} GiB free memory"
