"""How many KV blocks the device holds: measures the largest step, sizes the pool, binds it.

`memory` decides; this module measures and allocates. On a GPU: `measure` runs the largest steps
over a pool of one block and reads what they took, then `make_kv_cache` gives the pool what the
share asked for leaves. On CPU nothing is measured.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from atom.config.schema import Config
from atom.engine.plan import StepPlan
from atom.engine.runner import dummy, kv_cache, memory, settle
from atom.parallel.state import ParallelState

if TYPE_CHECKING:
    from atom.layers.attention import Attention

log = logging.getLogger("atom.runner")


def measure(
    config: Config,
    layers: Sequence[Attention],
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
    kv_cache.bind(layers, 1, config.engine.block_size, device)
    for layer in layers:  # the one block is read before it is written
        layer.k_cache.view(torch.uint8).zero_()
        layer.v_cache.view(torch.uint8).zero_()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    for plan in dummy.largest_steps(config, max_model_len):
        run(plan)
    run(dummy.odd_step(config, max_model_len))
    activations = torch.cuda.max_memory_allocated(device) - before
    graphs = 0 if graph_bytes is None else graph_bytes()
    torch.cuda.synchronize(device)
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
    layers: Sequence[Attention],
    device: torch.device,
    parallel: ParallelState,
    *,
    max_model_len: int,
    room: memory.Room | None,
    memory_bytes: dict[str, int],
    memory_notes: dict[str, str] | None = None,
) -> int:
    """Size the pool and give every layer its part; returns the number of blocks.

    `room` is what `measure` found, None on CPU. What the pool and its neighbours take is entered
    into `memory_bytes`, and what decided each into `memory_notes`.
    """
    notes = {} if memory_notes is None else memory_notes
    size = config.engine.block_size
    block_bytes = kv_cache.block_bytes(layers, size)
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
    plan = memory.plan_kv_blocks(
        config,
        block_bytes=block_bytes,
        max_model_len=max_model_len,
        budget=budget,
        source=source,
    )
    memory.check_fits_memory(plan.num_blocks, block_bytes, available)
    num_blocks = plan.num_blocks
    total = kv_cache.bind(layers, num_blocks, size, device)
    memory_bytes["kv_cache"] = total
    notes["kv_cache"] = f"{num_blocks} blocks of {size} tokens: {plan.reason}"
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
