"""The persistent batch against plain lists, over random plans."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from atom.engine.plan import NewRow, RowBlocks, StepPlan
from atom.engine.runner.inputs import InputBatch, StagedStep, StepInputs
from atom.engine.runner.upload import Upload
from atom.engine.sampling_params import SamplingParams
from atom.ops.contracts import AttentionMetadata

CPU = torch.device("cpu")
ROWS, LENGTH = 8, 150


class Sequence:
    """The brute-force twin of one row."""

    def __init__(self, rng: random.Random, row: int) -> None:
        self.row = row
        self.tokens = [rng.randrange(1000) for _ in range(rng.randint(1, 40))]
        self.num_prompt = len(self.tokens)
        self.computed = 0
        self.blocks: list[int] = []
        self.window_blocks: list[int] = []


def run(batch: InputBatch, plan: StepPlan) -> tuple[StagedStep, StepInputs]:
    upload = Upload(CPU)
    staged = batch.stage(plan, upload)
    upload.send()
    return staged, batch.gather(staged)


def make_plan(
    step: int,
    chosen: list[tuple[Sequence, int]],
    new: list[Sequence],
    blocks: list[RowBlocks],
    window_blocks: list[RowBlocks] | None = None,
) -> StepPlan:
    params = SamplingParams()
    return StepPlan(
        step=step,
        new_rows=[NewRow(s.row, "r", list(s.tokens), s.num_prompt, params, (), 0) for s in new],
        new_blocks=blocks,
        free_rows=[],
        rows=np.array([s.row for s, _ in chosen], np.int32),
        num_computed=np.array([s.computed for s, _ in chosen], np.int32),
        num_scheduled=np.array([n for _, n in chosen], np.int32),
        samples=np.array([s.computed + n == len(s.tokens) for s, n in chosen], np.bool_),
        new_window_blocks=tuple(window_blocks or ()),
    )


def check(
    staged: StagedStep,
    inputs: StepInputs,
    chosen: list[tuple[Sequence, int]],
    block_size: int,
    width: int,
) -> None:
    ids, positions, slots, ends, starts, sampled = [], [], [], [], [0], []
    for s, n in chosen:
        for p in range(s.computed, s.computed + n):
            ids.append(s.tokens[p])
            positions.append(p)
            slots.append(s.blocks[p // block_size] * block_size + p % block_size)
        starts.append(starts[-1] + n)
        ends.append(s.computed + n)
        if s.computed + n == len(s.tokens):
            sampled.append((s.row, ends[-1], starts[-1] - 1))
    meta = inputs.attention
    assert inputs.input_ids.tolist() == ids
    assert inputs.positions.tolist() == positions
    assert inputs.input_ids.dtype == inputs.positions.dtype == torch.int64
    assert meta.slot_mapping.tolist() == slots
    assert meta.cu_seqlens_q.tolist() == starts
    assert meta.seq_lens.tolist() == ends
    assert (meta.num_tokens, meta.num_seqs) == (len(ids), len(chosen))
    assert meta.max_query_len == max(n for _, n in chosen)
    assert meta.max_seq_len == max(ends)
    assert meta.block_table.dtype == meta.cu_seqlens_q.dtype == meta.seq_lens.dtype == torch.int32
    for i, (s, n) in enumerate(chosen):
        used = -(-(s.computed + n) // block_size)
        assert meta.block_table[i, :used].tolist() == s.blocks[:used]
    if meta.window is None:
        assert meta.state_slots is None
    else:
        check_window(meta, meta.window, chosen, block_size)
    rows_of_hidden = [i for _, _, i in sampled]
    if staged.logits_indices is None:
        assert rows_of_hidden == list(range(len(ids)))
    else:
        assert staged.logits_indices.tolist() == rows_of_hidden
    assert staged.sample_rows.tolist() == [r for r, _, _ in sampled]
    assert staged.sample_positions.tolist() == [p for _, p, _ in sampled]
    assert staged.sample_slots.tolist() == [r * width + p for r, p, _ in sampled]


def check_window(
    meta: AttentionMetadata,
    window: AttentionMetadata,
    chosen: list[tuple[Sequence, int]],
    block_size: int,
) -> None:
    """The same step over another table; and the states, which lie in the rows' own slots."""
    slots = []
    for i, (s, n) in enumerate(chosen):
        used = -(-(s.computed + n) // block_size)
        assert window.block_table[i, :used].tolist() == s.window_blocks[:used]
        for p in range(s.computed, s.computed + n):
            slots.append(s.window_blocks[p // block_size] * block_size + p % block_size)
    assert window.slot_mapping.tolist() == slots
    assert window.cu_seqlens_q is meta.cu_seqlens_q
    assert window.seq_lens is meta.seq_lens
    assert meta.state_slots is window.state_slots is not None
    assert meta.state_slots.dtype == torch.int32
    assert meta.state_slots.tolist() == [s.row for s, _ in chosen]


@pytest.mark.parametrize("kinds", [False, True], ids=["plain", "kinds"])
@pytest.mark.parametrize("block_size", [1, 16, 48])
@pytest.mark.parametrize("seed", range(4))
def test_random_plans(block_size: int, seed: int, kinds: bool) -> None:
    rng = random.Random(seed)
    batch = InputBatch(ROWS, LENGTH, block_size, CPU, has_window=kinds, has_state=kinds)
    live: dict[int, Sequence] = {}
    for step in range(120):
        for row in [r for r, s in live.items() if rng.random() < 0.05 or len(s.tokens) >= LENGTH]:
            del live[row]
        new = []
        for row in rng.sample(range(ROWS), ROWS):
            if row not in live and rng.random() < 0.4:
                live[row] = Sequence(rng, row)
                new.append(live[row])
        if not live:
            continue
        everyone = rng.sample(list(live.values()), len(live))
        chosen = [s for s in everyone if rng.random() < 0.8 or s in new] or everyone
        work = []
        for s in chosen:
            left = len(s.tokens) - s.computed
            work.append((s, left if rng.random() < 0.6 else rng.randint(1, left)))
        blocks, window_blocks = [], []
        for s, n in work:
            want = -(-(s.computed + n) // block_size) - len(s.blocks)
            if want > 0:
                ids = [rng.randrange(10_000) for _ in range(want)]
                blocks.append(RowBlocks(s.row, len(s.blocks), ids))
                s.blocks += ids
                others = [rng.randrange(10_000) for _ in range(want)]
                window_blocks.append(RowBlocks(s.row, len(s.window_blocks), others))
                s.window_blocks += others
        staged, inputs = run(batch, make_plan(step, work, new, blocks, window_blocks))
        check(staged, inputs, work, block_size, batch.width)
        sampled = [s for s, n in work if s.computed + n == len(s.tokens)]
        for s, n in work:
            s.computed += n
        tokens = [rng.randrange(1000) for _ in sampled]
        batch.put_tokens(staged, torch.tensor(tokens, dtype=torch.int64))
        for s, token in zip(sampled, tokens, strict=True):
            s.tokens.append(token)  # the next step must read it from the pool


def test_a_step_copies_what_the_scheduler_may_edit_later() -> None:
    """Plans may share arrays with the scheduler; under overlap it edits them while a step runs."""
    batch = InputBatch(ROWS, LENGTH, 16, CPU)
    s = Sequence(random.Random(0), 2)
    s.tokens, s.num_prompt = [5, 6, 7], 3
    plan = make_plan(0, [(s, 3)], [s], [RowBlocks(2, 0, [4])])
    staged, inputs = run(batch, plan)
    for array in (plan.rows, plan.num_computed, plan.num_scheduled, plan.samples):
        array[:] = 0
    assert inputs.positions.tolist() == [0, 1, 2]
    assert inputs.attention.seq_lens.tolist() == [3]
    assert staged.sample_rows.tolist() == [2]


def decode_plan(rows: list[int], computed: list[int], blocks: list[RowBlocks]) -> StepPlan:
    return StepPlan(
        step=1,
        new_rows=[],
        new_blocks=blocks,
        free_rows=[],
        rows=np.array(rows, np.int32),
        num_computed=np.array(computed, np.int32),
        num_scheduled=np.ones(len(rows), np.int32),
        samples=np.ones(len(rows), np.bool_),
    )


def test_blocks_that_begin_with_the_token_of_a_decode_step() -> None:
    batch = InputBatch(ROWS, LENGTH, 16, CPU)
    plan = decode_plan([5, 0, 2], [32, 7, 16], [RowBlocks(2, 1, [40]), RowBlocks(5, 2, [41])])
    assert batch.begins_blocks(plan)
    entered = np.full(4, -1, np.int32)
    batch.blocks.begin(plan.new_blocks, entered)
    assert entered.tolist() == [41, -1, 40, -1]
    assert batch.blocks.host[5, 2] == 41
    assert batch.blocks.host[2, 1] == 40


def test_windows_begin_blocks_of_their_own() -> None:
    batch = InputBatch(ROWS, LENGTH, 16, CPU, has_window=True)
    plan = decode_plan([5, 0], [32, 16], [])._replace(new_window_blocks=(RowBlocks(0, 1, [9]),))
    assert batch.begins_blocks(plan)
    assert batch.window is not None
    entered = np.full(2, -1, np.int32)
    batch.window.begin(plan.new_window_blocks, entered)
    assert entered.tolist() == [-1, 9]
    assert batch.window.host[0, 1] == 9
    assert not batch.blocks.host.any()
    assert not batch.begins_blocks(plan._replace(new_window_blocks=(RowBlocks(0, 0, [9, 10]),)))


@pytest.mark.parametrize(
    "blocks",
    [
        [RowBlocks(3, 0, [4])],  # of a row that has no part in the step
        [RowBlocks(5, 1, [4])],  # not where the step's token goes
        [RowBlocks(5, 2, [4, 5])],
        [RowBlocks(5, 2, [4]), RowBlocks(0, 1, [5]), RowBlocks(3, 0, [6])],
    ],
)
def test_other_new_blocks_are_not_taken_for_such(blocks: list[RowBlocks]) -> None:
    batch = InputBatch(ROWS, LENGTH, 16, CPU)
    assert batch.begins_blocks(decode_plan([3, 0], [0, 16], [RowBlocks(3, 0, [1])]))
    assert not batch.begins_blocks(decode_plan([5, 0], [32, 16], blocks))
