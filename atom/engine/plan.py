"""What the scheduler decides and what the runner returns: the values that cross a step.

A plan holds ids and counts, never full tables: every tensor-parallel rank receives the same
plan and keeps identical state. Rows are slots of the persistent batch (`0 .. max_num_seqs -
1`); a sequence keeps its row from admission until it leaves or is preempted.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from atom.engine.messages import TokenLogprobs
from atom.engine.sampling_params import SamplingParams


class NewRow(NamedTuple):
    """A sequence that enters row `row`: everything the runner must know about it, once.

    After a preemption the same request enters again with `token_ids` = prompt + generated so
    far, and `num_prompt_tokens` still the length of the original prompt (penalties tell the two
    apart).
    """

    row: int
    request_id: str
    token_ids: list[int]
    num_prompt_tokens: int
    sampling: SamplingParams
    eos_token_ids: tuple[int, ...]  # masked until min_tokens; empty if ignore_eos
    seed: int  # the request's own, or one drawn when it arrived


class RowBlocks(NamedTuple):
    """Blocks appended to a row's table, starting at table index `start`."""

    row: int
    start: int
    block_ids: list[int]


class StateCopy(NamedTuple):
    """Slots of recurrent state: slot r is row r's; those after the rows' hold checkpoints."""

    source: int
    target: int


class StepPlan(NamedTuple):
    """One step. The four arrays are parallel, one entry per scheduled sequence, in launch order."""

    step: int
    new_rows: list[NewRow]
    new_blocks: list[RowBlocks]
    free_rows: list[int]  # rows given up since the last plan; applied before `new_rows`
    rows: NDArray[np.int32]  # [S]
    num_computed: NDArray[np.int32]  # [S] tokens whose KV exists before this step
    num_scheduled: NDArray[np.int32]  # [S] tokens computed by this step
    samples: NDArray[np.bool_]  # [S] the last token known is computed: a new one is sampled
    # To the rows' tables of window caches, whose blocks have ids of their own.
    new_window_blocks: tuple[RowBlocks, ...] = ()
    restores: tuple[StateCopy, ...] = ()  # before the forward: checkpoints into rows' slots
    saves: tuple[StateCopy, ...] = ()  # after it: rows' slots into checkpoints

    @property
    def num_tokens(self) -> int:
        return int(self.num_scheduled.sum())


class StepOutput(NamedTuple):
    """The tokens of one step, on the host. Entries follow the plan's order over `samples`."""

    token_ids: NDArray[np.int32]  # [num samples]
    logprobs: list[TokenLogprobs | None] | None  # [num samples], None when nobody asked
    prompt_logprobs: dict[int, list[TokenLogprobs]] | None  # plan index -> of tokens computed + 1


class StepHandle(Protocol):
    """A launched step. `wait` blocks until the device is done and returns the tokens."""

    def wait(self) -> StepOutput: ...


class Runner(Protocol):
    """Batches to sampled tokens. `launch` returns before the device is done.

    The sampled token of a row is written to the runner's own token pool at position
    `num_computed + num_scheduled`, so the next plan may schedule it before the host has seen it.
    """

    def launch(self, plan: StepPlan) -> StepHandle: ...

    def shutdown(self) -> None: ...
