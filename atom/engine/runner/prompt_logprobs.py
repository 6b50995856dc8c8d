"""prompt_logprobs of a step: which prompt positions it computes, and what is said of them.

A chunk that computes positions `[a, b)` yields the tokens `a + 1 .. b`, those that are the
prompt's and not before `logprobs_start`: the logits of a position speak of the token after it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from atom.engine.messages import TokenLogprobs
from atom.engine.plan import StepPlan
from atom.engine.runner.inputs import InputBatch, StagedStep
from atom.engine.runner.logprobs import LogprobTensors, raw_logprobs, to_host
from atom.engine.runner.sampling_rows import PROMPT_LOGPROBS, Ints, SamplingRows
from atom.engine.runner.upload import Upload

ALL = slice(None)
_MAX_LOGITS_BYTES = 64 << 20  # logits are made in chunks of at most this


class PromptStep(NamedTuple):
    """`counts[j]` positions of plan entry `plan_indices[j]`, `num_top[j]` alternatives each; n
    positions in all."""

    plan_indices: list[int]
    counts: list[int]
    num_top: list[int]
    hidden_rows: Tensor  # [n] int64
    target_slots: Tensor  # [n] int64 flat places in the token pool


def due(plan: StepPlan, sampling: SamplingRows) -> bool:
    """Whether `stage` would give something."""
    first, last = _range(plan, sampling, plan.rows.astype(np.int64))
    asked = (sampling.flags[plan.rows] & PROMPT_LOGPROBS) != 0
    return bool((asked & (first < last)).any())


def _range(
    plan: StepPlan, sampling: SamplingRows, rows: Ints, which: Ints | slice = ALL
) -> tuple[Ints, Ints]:
    """[first, last) positions of the step, of its entries `which`, whose next token is scored."""
    computed = plan.num_computed[which].astype(np.int64)
    first = np.maximum(computed, sampling.logprobs_start[rows] - 1)
    last = np.minimum(computed + plan.num_scheduled[which], sampling.num_prompt[rows] - 1)
    return first, last


def stage(
    plan: StepPlan, staged: StagedStep, sampling: SamplingRows, batch: InputBatch, upload: Upload
) -> PromptStep | None:
    """None unless a row that asked for them computes some of its prompt in this step."""
    asked = np.flatnonzero(sampling.flags[plan.rows] & PROMPT_LOGPROBS)
    if not len(asked):
        return None
    rows = plan.rows[asked].astype(np.int64)
    first, last = _range(plan, sampling, rows, asked)
    counts = np.maximum(last - first, 0)
    total = int(counts.sum())
    if not total:
        return None
    within = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)
    begins = staged.cu_seqlens_host[asked] + first - plan.num_computed[asked]
    hidden_rows = within + np.repeat(begins, counts)
    target_slots = within + np.repeat(rows * batch.width + first + 1, counts)
    return PromptStep(
        plan_indices=asked.tolist(),
        counts=counts.tolist(),
        num_top=sampling.num_prompt_logprobs[rows].tolist(),
        hidden_rows=upload.add(hidden_rows),
        target_slots=upload.add(target_slots),
    )


def compute(
    step: PromptStep,
    token_pool: Tensor,
    logits_of: Callable[[Tensor], Tensor],
    vocab_size: int,
    most_rows: int,
) -> LogprobTensors:
    """token_pool [R, W] int32. `logits_of(rows)`: the logits [n, V] of rows [n] int64 of the step,
    for `most_rows` at most; they are read before it is called again. Memory does not grow with the
    prompt."""
    targets = token_pool.view(-1)[step.target_slots]
    num_top = max(step.num_top)
    parts: list[LogprobTensors] = []
    size = min(most_rows, max(1, _MAX_LOGITS_BYTES // (4 * vocab_size)))
    for start in range(0, len(targets), size):
        logits = logits_of(step.hidden_rows[start : start + size])
        parts.append(raw_logprobs(logits, num_top).of(targets[start : start + size]))
    return LogprobTensors(*(torch.cat(column) for column in zip(*parts, strict=True)))


def to_records(step: PromptStep, columns: LogprobTensors) -> dict[int, list[TokenLogprobs]]:
    """Plan index -> records; `columns` are in host memory. Entries without a position are left
    out."""
    num_top = [top for top, n in zip(step.num_top, step.counts, strict=True) for _ in range(n)]
    records = iter(to_host(columns, num_top))
    return {
        index: [next(records) for _ in range(count)]
        for index, count in zip(step.plan_indices, step.counts, strict=True)
        if count
    }
