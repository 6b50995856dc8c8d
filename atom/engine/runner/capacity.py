"""How many KV blocks the device holds: measures the largest step, sizes the pool, binds it.

`memory` decides; this module measures and allocates. On a GPU: `measure` runs the largest steps
over a pool of one block and reads what they took, then `make_kv_cache` gives the pool what the
share asked for leaves. On CPU nothing is measured.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from atom.config.schema import Config
from atom.engine.plan import StepPlan
from atom.engine.runner import dummy, kv_cache, memory, settle
from atom.parallel.state import ParallelState

if TYPE_CHECKING:
    from atom.layers.attention import Attention

log = logging.getLogger("atom.runner")


class Room(NamedTuple):
    """What a GPU has left for the KV pool, and what stands beside it; bytes."""

    kv_cache: int
    activations: int  # the peak of the largest step, over what is held between steps
    graphs: int


def measure(
    config: Config,
    layers: Sequence[Attention],
    device: torch.device,
    *,
    max_model_len: int,
    run: Callable[[StepPlan], object],
    graph_bytes: Callable[[], int] | None = None,
) -> Room:
    """Run the largest step on a GPU and see what it takes.

    `run` launches a plan and waits for it; `graph_bytes` says what captured graphs will hold, and
    is called while the pool is one block.
    """
    kv_cache.bind(layers, 1, config.engine.kv_cache_block_size, device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run(dummy.largest_step(config, max_model_len))
    activations = torch.cuda.max_memory_allocated(device) - before
    graphs = 0 if graph_bytes is None else graph_bytes()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    usable = int(total * config.engine.gpu_memory_utilization)
    return Room(usable - (total - free) - activations - graphs, activations, graphs)


def make_kv_cache(
    config: Config,
    layers: Sequence[Attention],
    device: torch.device,
    parallel: ParallelState,
    *,
    max_model_len: int,
    room: Room | None,
    memory_bytes: dict[str, int],
) -> int:
    """Size the pool and give every layer its part; returns the number of blocks.

    `room` is what `measure` found, None on CPU. What the pool and its neighbours take is entered
    into `memory_bytes`.
    """
    size = config.engine.kv_cache_block_size
    block_bytes = kv_cache.block_bytes(layers, size)
    if room is None:
        available = memory.available_memory() // parallel.tp_size
        budget, source = memory.cpu_budget(config, available)
    else:
        available = budget = room.kv_cache
        source = "gpu_memory_utilization"
        memory_bytes["activations"] = room.activations
        if room.graphs:
            memory_bytes["graphs"] = room.graphs
    plan = memory.plan_kv_blocks(
        config,
        block_bytes=block_bytes,
        max_model_len=max_model_len,
        budget=budget,
        source=source,
    )
    memory.check_fits_memory(plan.num_blocks, block_bytes, available)
    num_blocks = settle.least_over_ranks(plan.num_blocks, parallel, device)
    total = kv_cache.bind(layers, num_blocks, size, device)
    memory_bytes["kv_cache"] = total
    log.info(
        "KV cache: %d blocks of %d tokens, %.2f GiB of %s (%s)",
        num_blocks,
        size,
        total / memory.GIB,
        config.engine.kv_cache_dtype,
        plan.reason,
    )
    if num_blocks * size < max_model_len:
        log.warning(
            "the KV cache holds %d tokens, fewer than max_model_len = %d: "
            "longer requests are refused",
            num_blocks * size,
            max_model_len,
        )
    return num_blocks
