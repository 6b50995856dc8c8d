"""Plans without requests, for warming up and for measuring memory; they take the real entry."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from atom.config.schema import Config
from atom.engine.cache_layout import CacheLayout
from atom.engine.plan import NewRow, RowBlocks, StepPlan
from atom.engine.sampling_params import SamplingParams

# Everything that costs memory when it is asked for, so that measuring it covers the worst.
_SAMPLING = SamplingParams(
    temperature=1.0, top_p=0.9, top_k=50, presence_penalty=0.1, logprobs=20, max_tokens=None
)


def _prompts(rows: int, count: int, blocks: list[int]) -> StepPlan:
    """`rows` prompts of `count` tokens, all in the same blocks of either kind."""
    appended = [RowBlocks(row, 0, blocks) for row in range(rows)]
    return StepPlan(
        step=0,
        new_rows=[NewRow(row, "", [0] * count, count, _SAMPLING, (), 0) for row in range(rows)],
        new_blocks=appended,
        free_rows=[],
        rows=np.arange(rows, dtype=np.int32),
        num_computed=np.zeros(rows, np.int32),
        num_scheduled=np.full(rows, count, np.int32),
        samples=np.ones(rows, np.bool_),
        new_window_blocks=tuple(appended),
    )


def warm_up(count: int, max_model_len: int, layout: CacheLayout) -> Iterator[StepPlan]:
    """A prompt of `count` tokens and a decode step after it, as far as they fit."""
    block_size, num_blocks = layout.block_size, layout.num_blocks
    if layout.window:
        num_blocks = min(num_blocks, layout.num_window_blocks)
    capacity = min(num_blocks * block_size, max_model_len)
    count = min(count, capacity)
    prompt = _prompts(1, count, list(range(-(-min(count + 1, capacity) // block_size))))
    yield prompt
    if count < capacity:
        yield prompt._replace(
            new_rows=[],
            new_blocks=[],
            new_window_blocks=(),
            num_computed=prompt.num_scheduled,
            num_scheduled=np.ones(1, np.int32),
        )


def odd_step(config: Config, max_model_len: int) -> StepPlan:
    """A few prompts of an odd length. Kernels are compiled apart for sizes that are 1, multiples of
    16 and neither; a start that runs only round sizes leaves the last to the first request."""
    budget = config.scheduler.max_num_batched_tokens
    rows = min(3, config.scheduler.max_num_seqs, budget)
    count = min(7, budget // rows, max_model_len)
    return _prompts(rows, count, [0] * -(-count // config.engine.block_size))


def largest_steps(config: Config, max_model_len: int) -> Iterator[StepPlan]:
    """The steps that take the most memory: as many tokens as fit in the fewest prompts, as many
    samples as there can be, and a decode of them all beside a sequence of full length.

    Everything is kept in block 0, which is all the pool that there need be.
    """
    budget, size = config.scheduler.max_num_batched_tokens, config.engine.block_size
    length = min(budget, max_model_len)
    rows = min(config.scheduler.max_num_seqs, budget)
    yield _prompts(min(rows, budget // length), length, [0] * -(-length // size))
    count = min(budget // rows, max_model_len)
    many = _prompts(rows, count, [0] * -(-count // size))
    yield many
    computed = many.num_scheduled.copy()
    computed[computed >= max_model_len] = max_model_len - 1
    computed[0] = max_model_len - 1
    appended = [
        RowBlocks(row, 0, [0] * -(-(int(done) + 1) // size)) for row, done in enumerate(computed)
    ]
    yield many._replace(
        new_rows=[],
        new_blocks=appended,
        new_window_blocks=tuple(appended),
        num_computed=computed,
        num_scheduled=np.ones(rows, np.int32),
    )
