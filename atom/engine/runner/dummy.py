"""Plans without requests, for warming up and for measuring memory; they take the real entry."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from atom.config.schema import Config
from atom.engine.plan import NewRow, RowBlocks, StepPlan
from atom.engine.sampling_params import SamplingParams

_SAMPLING = SamplingParams(temperature=1.0, top_p=0.9, max_tokens=None)


def _prompts(rows: int, count: int, blocks: list[int]) -> StepPlan:
    """`rows` prompts of `count` tokens, all in the same blocks."""
    return StepPlan(
        step=0,
        new_rows=[NewRow(row, "", [0] * count, count, _SAMPLING, (), 0) for row in range(rows)],
        new_blocks=[RowBlocks(row, 0, blocks) for row in range(rows)],
        free_rows=[],
        rows=np.arange(rows, dtype=np.int32),
        num_computed=np.zeros(rows, np.int32),
        num_scheduled=np.full(rows, count, np.int32),
        samples=np.ones(rows, np.bool_),
    )


def warm_up(count: int, max_model_len: int, num_blocks: int, block_size: int) -> Iterator[StepPlan]:
    """A prompt of `count` tokens and a decode step after it, as far as they fit."""
    capacity = min(num_blocks * block_size, max_model_len)
    count = min(count, capacity)
    prompt = _prompts(1, count, list(range(-(-min(count + 1, capacity) // block_size))))
    yield prompt
    if count < capacity:
        yield prompt._replace(
            new_rows=[],
            new_blocks=[],
            num_computed=prompt.num_scheduled,
            num_scheduled=np.ones(1, np.int32),
        )


def largest_step(config: Config, max_model_len: int) -> StepPlan:
    """As many tokens and as many samples as one step may hold; everything is kept in block 0."""
    budget = config.scheduler.max_num_batched_tokens
    rows = min(config.scheduler.max_num_seqs, budget)
    count = min(budget // rows, max_model_len)
    return _prompts(rows, count, [0] * -(-count // config.engine.kv_cache_block_size))
