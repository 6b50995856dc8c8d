"""Window blocks and recurrent states of `FakeRunner`: every read is checked against what must be
there.

A slot of a window block holds the value of its position (`fake.kv_values`, a hash of everything up
to it), and a state the value of the last position computed. So a block overwritten too early, a
stale one, a state of another sequence or of another position are all told apart. numpy only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from atom.engine.cache_layout import CacheLayout
from atom.engine.plan import StepPlan

U64 = NDArray[np.uint64]


class ShadowCaches:
    """`rows`: of the batch; `num_places`: blocks of the longest sequence."""

    def __init__(self, layout: CacheLayout, rows: int, num_places: int) -> None:
        self._size, self._window = layout.block_size, layout.window
        self._has_state = layout.has_state
        self._num_window_blocks = layout.num_window_blocks
        self._slots: U64 = np.zeros(layout.num_window_blocks * layout.block_size, np.uint64)
        places = num_places if layout.window else 0
        self._tables: NDArray[np.int64] = np.full((rows, places), -1, np.int64)
        self._states: U64 = np.zeros(rows + layout.num_checkpoints, np.uint64)

    def begin(self, plan: StepPlan) -> None:
        """What comes before the forward: tables and restored states."""
        for new in plan.new_rows:
            self._tables[new.row] = -1
        for row, start, ids in plan.new_window_blocks:
            assert self._window, "window blocks for a model without windows"
            assert all(0 <= id_ < self._num_window_blocks for id_ in ids), ids
            assert (self._tables[row, start : start + len(ids)] < 0).all(), f"{row} at {start}"
            self._tables[row, start : start + len(ids)] = ids
        for source, target in plan.restores:
            assert source >= len(self._tables) > target, (source, target)
            self._states[target] = self._states[source]

    def read(self, row: int, values: U64, start: int, end: int) -> None:
        """A forward reads: of a row whose tokens `start .. end` are computed, all that the first
        of them sees and, if they have been written (`end` > `start`), what the others see.

        `values` is what each position must hold.
        """
        if self._window:
            first = max(0, start - self._window + 1)
            held = self._slots[self._slots_of(row, first, end)]
            assert np.array_equal(held, values[first:end]), f"row {row} reads a wrong window"
        if self._has_state and end:
            assert self._states[row] == values[end - 1], f"row {row} goes on from a wrong state"

    def write(self, row: int, values: U64, start: int, end: int) -> None:
        if self._window:
            self._slots[self._slots_of(row, start, end)] = values[start:end]
        if self._has_state:
            self._states[row] = values[end - 1]

    def end(self, plan: StepPlan) -> None:
        """What comes after the forward: states saved."""
        for source, target in plan.saves:
            assert target >= len(self._tables) > source, (source, target)
            self._states[target] = self._states[source]

    def _slots_of(self, row: int, start: int, end: int) -> NDArray[np.int64]:
        positions = np.arange(start, end)
        blocks = self._tables[row, positions // self._size]
        assert (blocks >= 0).all(), f"row {row} has no window block for a token in {start}..{end}"
        slots: NDArray[np.int64] = blocks * self._size + positions % self._size
        return slots
