"""The judge must bite: each kind of harm that a scheduler could do is refused or changes tokens."""

from __future__ import annotations

import numpy as np
import pytest
from engine.engine_helpers import make_config

from atom.engine.plan import NewRow, RowBlocks, StepPlan
from atom.engine.runner.fake import FakeOptions, FakeRunner, reference_tokens
from atom.engine.sampling_params import SamplingParams

SAMPLING = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)


def new_row(row: int, tokens: list[int]) -> NewRow:
    return NewRow(row, f"r{row}", tokens, len(tokens), SAMPLING, (), 0)


class Script:
    """Plans written by hand: `run` launches one and returns its tokens."""

    def __init__(self, options: FakeOptions | None = None) -> None:
        self.runner = FakeRunner(make_config(block_size=4, num_blocks=8), options)

    def run(
        self,
        entries: list[tuple[int, int, int, bool]],  # row, computed, scheduled, samples
        new_rows: list[NewRow] | None = None,
        new_blocks: list[RowBlocks] | None = None,
        free_rows: list[int] | None = None,
    ) -> list[int]:
        rows, computed, counts, samples = zip(*entries, strict=True)
        plan = StepPlan(
            self.runner.steps + 1,
            new_rows or [],
            new_blocks or [],
            free_rows or [],
            np.array(rows, np.int32),
            np.array(computed, np.int32),
            np.array(counts, np.int32),
            np.array(samples, np.bool_),
        )
        return [int(t) for t in self.runner.launch(plan).wait().token_ids]


def started(tokens: list[int], blocks: list[int]) -> Script:
    script = Script()
    entry = (0, 0, len(tokens), True)
    script.run([entry], [new_row(0, tokens)], [RowBlocks(0, 0, blocks)])
    return script


def test_an_honest_schedule_gives_the_reference_tokens() -> None:
    script = Script()
    got = script.run([(0, 0, 3, False)], [new_row(0, [5, 6, 7, 8])], [RowBlocks(0, 0, [3])])
    assert got == []
    got = script.run([(0, 3, 1, True)])
    got += script.run([(0, 4, 1, True)], new_blocks=[RowBlocks(0, 1, [0])])
    assert got == reference_tokens([5, 6, 7, 8], SAMPLING, FakeOptions())[:2]


def test_tokens_depend_on_the_whole_context_and_its_order() -> None:
    base = reference_tokens([1, 2, 3, 4, 5], SAMPLING, FakeOptions())
    for other in ([9, 2, 3, 4, 5], [2, 1, 3, 4, 5], [1, 2, 3, 4], [1, 2, 3, 4, 6]):
        assert reference_tokens(other, SAMPLING, FakeOptions()) != base


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ((0, 6, 1, True), "at 5, scheduled from 6"),
        ((0, 4, 1, True), "at 5, scheduled from 4"),
        ((0, 5, 2, True), "token 6 is not known"),
        ((1, 0, 1, True), "row 1 is empty"),
    ],
)
def test_a_position_that_is_skipped_repeated_or_unknown(
    entry: tuple[int, int, int, bool], words: str
) -> None:
    script = started([1, 2, 3, 4, 5], [0, 1])
    with pytest.raises(AssertionError, match=words):
        script.run([entry])


def test_a_missing_block() -> None:
    script = started([1, 2, 3, 4], [0])
    with pytest.raises(AssertionError, match="no block for 4"):
        script.run([(0, 4, 1, True)])


def test_writing_a_block_that_another_row_holds() -> None:
    script = started([1, 2, 3, 4, 5], [0, 1])
    with pytest.raises(AssertionError, match="block 1, which is shared"):
        script.run([(1, 0, 2, True)], [new_row(1, [7, 8])], [RowBlocks(1, 0, [1])])


def test_a_wrong_prefix_hit() -> None:
    script = started([1, 2, 3, 4, 5], [0, 1])
    with pytest.raises(AssertionError, match="wrong prefix: r1"):
        script.run([(1, 4, 1, True)], [new_row(1, [1, 2, 3, 9, 5])], [RowBlocks(1, 0, [0, 2])])


def test_a_prefix_that_is_not_computed_yet() -> None:
    script = Script()
    both = [new_row(0, [1, 2, 3, 4, 5]), new_row(1, [1, 2, 3, 4, 6])]
    blocks = [RowBlocks(0, 0, [0, 1]), RowBlocks(1, 0, [0, 2])]
    with pytest.raises(AssertionError, match="wrong prefix: r1"):
        script.run([(0, 0, 5, True), (1, 4, 1, True)], both, blocks)


def test_a_block_reused_while_its_row_still_runs() -> None:
    script = started([1, 2, 3, 4, 5], [0, 1])
    script.runner._users[0] = 0  # as if the block had been freed behind the row's back
    script.run([(1, 0, 3, True)], [new_row(1, [7, 8, 9])], [RowBlocks(1, 0, [0])])
    with pytest.raises(AssertionError, match="KV of r0 was overwritten"):
        script.run([(0, 5, 1, True)])


def test_a_row_taken_twice_and_a_step_out_of_order() -> None:
    script = started([1, 2, 3], [0])
    with pytest.raises(AssertionError, match="row 0 is taken twice"):
        script.run([(0, 0, 1, True)], [new_row(0, [1])], [RowBlocks(0, 0, [5])])
    script.runner.steps = 5
    plan_of_step_two = StepPlan(2, [], [], [], *(np.zeros(0, np.int32),) * 3, np.zeros(0, np.bool_))
    with pytest.raises(AssertionError, match="step 2 launched as number 6"):
        script.runner.launch(plan_of_step_two)


def test_eos_comes_when_it_was_ordered_and_never_before() -> None:
    options = FakeOptions(vocab_size=5, eos_token_ids=(2,), eos_after=7)
    sampling = SamplingParams(temperature=0.0, max_tokens=50)
    tokens = reference_tokens([1, 3], sampling, options)
    assert len(tokens) == 7
    assert tokens[-1] == 2
    assert 2 not in tokens[:-1]


def test_seeds_matter_unless_greedy() -> None:
    hot = SamplingParams(temperature=1.0, max_tokens=8)
    options = FakeOptions(eos_token_ids=())
    assert reference_tokens([1], hot, options, 1) != reference_tokens([1], hot, options, 2)
    assert reference_tokens([1], SAMPLING, options, 1) == reference_tokens([1], SAMPLING, options)
