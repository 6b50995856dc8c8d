"""What a step's rows need beside full blocks: window blocks, restored states, states to save.

`Scheduler` has one for models with windows or recurrent state and calls it when it applies a plan
and when it collects one. For a row that only decodes within its blocks, each is a comparison of
arrays.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from atom.engine.block_manager import BlockManager
from atom.engine.checkpoints import next_multiple
from atom.engine.messages import SchedulerStats
from atom.engine.plan import RowBlocks, StateCopy, StepPlan
from atom.engine.planner import Admission
from atom.engine.sequence import NEVER, RowTable, Sequence


class Extras(NamedTuple):
    """Of a plan, in its own words."""

    new_window_blocks: tuple[RowBlocks, ...] = ()
    restores: tuple[StateCopy, ...] = ()
    saves: tuple[StateCopy, ...] = ()


class _Save(NamedTuple):
    """A row's state on its way into a checkpoint: published once its step is collected."""

    seq: Sequence
    num_blocks: int
    checkpoint: int


class RowCaches:
    """`first_slot`: of the slots of states, the first that holds a checkpoint."""

    def __init__(
        self, blocks: BlockManager, table: RowTable, stats: SchedulerStats, first_slot: int
    ) -> None:
        self._blocks = blocks
        self._table = table
        self._stats = stats
        self._first_slot = first_slot
        self._saving: dict[int, list[_Save]] = {}  # step -> its saves, until it is collected

    # -- apply ----------------------------------------------------------------------------------

    def enter(self, admission: Admission) -> None:
        """The admission's sequence has its row and its blocks; nothing is announced yet."""
        seq, table, layout = admission.seq, self._table, self._blocks.layout
        seq.branch = admission.branch
        table.window_end[seq.row] = len(admission.hits) * layout.block_size
        self._set_drop(seq)
        if self._blocks.checkpoints is None:
            return
        seq.save_points = list(reversed(admission.save_points))
        seq.last_saved = None
        self._set_next_save(seq)

    def apply(
        self,
        admissions: list[Admission],
        rows: NDArray[np.int32],
        ends: NDArray[np.int32],
        step: int,
    ) -> Extras:
        """`ends`: tokens of each row that are computed after the step."""
        entering = {a.seq.row for a in admissions}
        windows = self._grow(entering, rows, ends) if self._blocks.windows is not None else ()
        if self._blocks.checkpoints is None:
            return Extras(windows)
        restores = tuple(
            StateCopy(self._first_slot + a.hits[-1].checkpoint, a.seq.row)
            for a in admissions
            if a.hits
        )
        self._stats.checkpoint_restores += len(restores)
        return Extras(windows, restores, self._save(rows, ends, step))

    def _grow(
        self, entering: set[int], rows: NDArray[np.int32], ends: NDArray[np.int32]
    ) -> tuple[RowBlocks, ...]:
        table, windows = self._table, self._blocks.windows
        assert windows is not None
        new_blocks: list[RowBlocks] = []
        short = np.flatnonzero(ends > table.window_end[rows])
        for row, end in zip(rows[short].tolist(), ends[short].tolist(), strict=True):
            seq = self._seq(row)
            start = seq.window_head + len(seq.window_blocks)
            block_ids = windows.grow(seq, end)
            if row in entering:  # what a hit gave comes with it
                start, block_ids = seq.window_head, list(seq.window_blocks)
            new_blocks.append(RowBlocks(row, start, block_ids))
            table.window_end[row] = self._blocks.blocks_for(end) * self._blocks.block_size
        return tuple(new_blocks)

    def _save(
        self, rows: NDArray[np.int32], ends: NDArray[np.int32], step: int
    ) -> tuple[StateCopy, ...]:
        due = np.flatnonzero(ends == self._table.next_save[rows])
        if not len(due):
            return ()
        saves: list[_Save] = []
        for row, end in zip(rows[due].tolist(), ends[due].tolist(), strict=True):
            seq = self._seq(row)
            if seq.save_points and seq.save_points[-1] == end:
                seq.save_points.pop()
            self._set_next_save(seq, end)
            save = self._start_save(seq, end // self._blocks.block_size)
            if save is not None:
                saves.append(save)
        if saves:
            self._saving[step] = saves
        return tuple(StateCopy(s.seq.row, self._first_slot + s.checkpoint) for s in saves)

    def _start_save(self, seq: Sequence, num_blocks: int) -> _Save | None:
        checkpoints = self._blocks.checkpoints
        assert checkpoints is not None
        if self._blocks.has_checkpoint(seq, num_blocks):
            checkpoints.came(seq, num_blocks)
            return None
        id_ = checkpoints.take()
        if id_ is None:
            checkpoints.came(seq, num_blocks)
            self._stats.checkpoint_skips += 1
            return None
        return _Save(seq, num_blocks, id_)

    def _set_next_save(self, seq: Sequence, done: int = 0) -> None:
        """The next of the prompt's points; after these, multiples of the interval, which a decode
        reaches without a step of its own."""
        table, interval = self._table, self._blocks.layout.checkpoint_interval
        if not self._blocks.enable_prefix_caching:
            table.next_save[seq.row] = NEVER
        elif seq.save_points:
            table.next_save[seq.row] = seq.save_points[-1]
        else:
            done = max(done, int(table.prefill_end[seq.row]))
            table.next_save[seq.row] = next_multiple(done, interval)

    def _set_drop(self, seq: Sequence) -> None:
        layout = self._blocks.layout
        if layout.window:
            first = (seq.window_head + 1) * layout.block_size
            self._table.window_drop[seq.row] = first + layout.window - 1

    def _seq(self, row: int) -> Sequence:
        seq = self._table.seqs[row]
        assert seq is not None, row
        return seq

    # -- collect --------------------------------------------------------------------------------

    def collect(self, plan: StepPlan, done: NDArray[np.int32]) -> None:
        """The plan's step has been computed and its full blocks are published. `done`: tokens of
        each row computed. A launched step may still run, but sees no more than the next token."""
        windows = self._blocks.windows
        if windows is not None:
            passed = np.flatnonzero(done >= self._table.window_drop[plan.rows])
            for i in passed.tolist():
                seq = self._seq(int(plan.rows[i]))
                windows.shrink(seq, int(done[i]))
                self._set_drop(seq)
        saves = self._saving.pop(plan.step, ()) if plan.saves else ()
        if saves:
            checkpoints = self._blocks.checkpoints
            assert checkpoints is not None
            for seq, num_blocks, id_ in saves:
                checkpoints.came(seq, num_blocks)
                self._stats.checkpoint_saves += checkpoints.publish(seq, num_blocks, id_)

    def count(self, stats: SchedulerStats) -> None:
        """The gauges."""
        windows, checkpoints = self._blocks.windows, self._blocks.checkpoints
        if windows is not None:
            stats.num_window_blocks, stats.num_used_window_blocks = windows.size, windows.num_used
        if checkpoints is not None:
            stats.num_checkpoints = checkpoints.size
            stats.num_cached_checkpoints = checkpoints.num_cached

    # -- self-check -----------------------------------------------------------------------------

    def check_invariants(self, holders: list[Sequence]) -> None:
        """Assert that pools' counts and the rows' arrays agree with what `holders` hold."""
        blocks, table = self._blocks, self._table
        layout = blocks.layout
        if blocks.windows is not None:
            counts = [0] * layout.num_window_blocks
            for seq in holders:
                end = (seq.window_head + len(seq.window_blocks)) * layout.block_size
                assert end == table.window_end[seq.row] >= table.num_computed[seq.row], seq
                for id_ in seq.window_blocks:
                    counts[id_] += 1
            blocks.windows.check_invariants(counts)
        if blocks.checkpoints is not None:
            counts = [0] * layout.num_checkpoints
            for saves in self._saving.values():
                for save in saves:
                    counts[save.checkpoint] += 1
            blocks.checkpoints.check_invariants(counts)
            pending: dict[int, int] = {}
            for seq in holders:
                for hash_ in seq.announced_saves:
                    pending[hash_] = pending.get(hash_, 0) + 1
            assert pending == blocks.checkpoints.pending, "announced checkpoints differ"
