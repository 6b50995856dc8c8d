"""How much the device holds between steps: measures the largest step, sizes the caches, binds them.

`memory` and `cache_sizes` decide; this module measures and allocates. On a GPU: `measure` runs the
largest steps over a pool of one block and reads what they took, then `make_kv_cache` gives the
caches what the share asked for leaves. On CPU nothing is measured.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from atom.config.schema import Config
from atom.engine.cache_layout import CacheLayout
from atom.engine.plan import StepPlan
from atom.engine.runner import cache_sizes, dummy, kv_cache, memory, settle
from atom.engine.runner.kv_cache import CacheLayer, Caches, Counts
from atom.parallel.state import ParallelState

log = logging.getLogger("atom.runner")


class Made(NamedTuple):
    layout: CacheLayout
    caches: Caches


def measure(
    config: Config,
    layers: Sequence[CacheLayer],
    device: torch.device,
    *,
    max_model_len: int,
    run: Callable[[StepPlan], object],
    graph_bytes: Callable[[], int] | None = None,
) -> memory.Room:
    """Run the largest steps on a GPU and see what they take.

    `run` launches a plan and waits for it; `graph_bytes` says what captured graphs will hold, and
    is called while the pool is one block.
    """
    kv_cache.bind(layers, Counts(1, 1, config.scheduler.max_num_seqs), device)
    kv_cache.zero(layers)  # the one block is read before it is written
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    for plan in dummy.largest_steps(config, max_model_len):
        run(plan)
    run(dummy.odd_step(config, max_model_len))
    activations = torch.cuda.max_memory_allocated(device) - before
    graphs = 0 if graph_bytes is None else graph_bytes()
    torch.cuda.synchronize(device)
    kv_cache.release(layers)
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    return memory.Room(
        total=total,
        limit=int(total * config.engine.gpu_memory_utilization),
        held=total - free,
        activations=activations,
        graphs=graphs,
    )


def make_kv_cache(
    config: Config,
    layers: Sequence[CacheLayer],
    device: torch.device,
    parallel: ParallelState,
    *,
    max_model_len: int,
    room: memory.Room | None,
    memory_bytes: dict[str, int],
    memory_notes: dict[str, str] | None = None,
) -> Made:
    """Size the caches and give every layer its part.

    `room` is what `measure` found, None on CPU. What they and their neighbours take is entered
    into `memory_bytes`, and what decided each into `memory_notes`.
    """
    notes = {} if memory_notes is None else memory_notes
    rows = config.scheduler.max_num_seqs
    sizes = kv_cache.cache_bytes(layers)
    if room is None:
        available = memory.available_memory() // parallel.tp_size
        # Ranks agree before anything can be refused: all of them refuse, or none.
        available = settle.least_over_ranks(available, parallel, device)
        budget, source = memory.cpu_budget(config, available)
    else:
        available = budget = settle.least_over_ranks(room.kv_cache, parallel, device)
        share = config.engine.gpu_memory_utilization
        source = f"gpu_memory_utilization = {share:g}: {room.describe()}"
        _note_neighbours(config, room, memory_bytes, notes)
    layout, reason = cache_sizes.plan_caches(
        config, sizes, max_model_len=max_model_len, budget=budget, source=source
    )
    cache_sizes.check_fits(config, sizes, layout, available)
    slots = rows + layout.num_checkpoints if layout.has_state else 0
    counts = Counts(layout.num_blocks, layout.num_window_blocks, slots)
    caches = kv_cache.bind(layers, counts, device)
    described = sizes.describe(layout, rows)
    memory_bytes["kv_cache"] = caches.nbytes
    notes["kv_cache"] = f"{described}: {reason}"
    log.info(
        "KV cache: %s, %.2f GiB of %s (%s)",
        described,
        caches.nbytes / memory.GIB,
        config.engine.kv_cache_dtype,
        reason,
    )
    tokens = layout.num_blocks * layout.block_size
    if tokens < max_model_len:
        log.warning(
            "the KV cache holds %d tokens, fewer than max_model_len = %d: "
            "longer requests are refused",
            tokens,
            max_model_len,
        )
    return Made(layout, caches)


def _note_neighbours(
    config: Config, room: memory.Room, memory_bytes: dict[str, int], notes: dict[str, str]
) -> None:
    """What a GPU holds beside the pool."""
    scheduler = config.scheduler
    memory_bytes["total"] = room.total
    memory_bytes["other"] = max(0, room.held - memory_bytes.get("weights", 0))
    notes["other"] = "tables, the runtime, other processes"
    memory_bytes["activations"] = room.activations
    notes["activations"] = (
        f"measured: the peak of a step of {scheduler.max_num_batched_tokens} tokens "
        f"or {scheduler.max_num_seqs} samples"
    )
    memory_bytes["reserve"] = room.reserve
    notes["reserve"] = "for fragmentation and late kernels"
    if room.graphs:
        memory_bytes["graphs"] = room.graphs
        notes["graphs"] = "captured graphs"
