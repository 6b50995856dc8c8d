"""A block table of every row: on the host, where slots are computed, and on the device.

One is for the blocks of `full` caches, and where the model has window caches another one for
theirs, whose ids are of a pool of their own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atom.engine.plan import RowBlocks
from atom.engine.runner.upload import Upload

Ints = NDArray[np.int64]
Edit = tuple[Tensor, Tensor, Tensor]  # a flat table, places [n], values [n]


class BlockTable:
    """`host` [R, columns] int32 and its copy `device`; on CPU they share their memory."""

    def __init__(self, max_num_seqs: int, columns: int, block_size: int, device: torch.device):
        self.block_size = block_size
        self.columns = columns
        self.host = np.zeros((max_num_seqs, columns), np.int32)
        self.device = torch.from_numpy(self.host)
        self._on_host = device.type == "cpu"
        if not self._on_host:
            self.device = self.device.to(device)
        self._entries = np.zeros(max_num_seqs, np.int32)  # row -> entry of a plan
        self._iota = np.arange(max_num_seqs, dtype=np.int32)

    def slots(self, token_rows: Ints, positions: Ints) -> Ints:
        """Of tokens [T] in batch rows: block * block_size + offset."""
        size = self.block_size
        blocks = self.host[token_rows, positions // size].astype(np.int64)
        return blocks * size + positions % size

    def append(self, new_blocks: Sequence[RowBlocks], upload: Upload) -> list[Edit]:
        """Write a plan's new blocks. Returns what the device has yet to write; nothing on CPU."""
        for row, start, ids in new_blocks:
            self.host[row, start : start + len(ids)] = ids
        if self._on_host or not new_blocks:
            return []
        runs = [(row * self.columns + start, ids) for row, start, ids in new_blocks]
        return [scatter_of(self.device.view(-1), runs, upload)]

    def rows_of(self, rows: Tensor | None, num_seqs: int, length: int) -> Tensor:
        """[S, C] the entries of a step's sequences, of at most `length` tokens each. `rows` [S]
        int64; None: they are 0 .. S-1."""
        table = self.device[:, : -(-length // self.block_size)]
        return table[:num_seqs] if rows is None else table.index_select(0, rows)

    def begins_with(
        self,
        new_blocks: Sequence[RowBlocks],
        rows: NDArray[np.int32],
        num_computed: NDArray[np.int32],
    ) -> bool:
        """Whether each is a single block that begins with the token which its row computes in a
        step of `rows` [S]: so it is in decode steps, but for rows that have just entered."""
        if len(new_blocks) > len(rows):
            return False
        self._entries[rows] = self._iota[: len(rows)]
        for row, start, ids in new_blocks:
            entry = self._entries[row]
            if (
                len(ids) != 1
                or entry >= len(rows)
                or rows[entry] != row
                or num_computed[entry] // self.block_size != start
            ):
                return False
        return True

    def begin(self, new_blocks: Sequence[RowBlocks], entered: NDArray[np.int32]) -> None:
        """`begins_with` was true: edit the host's table, and enter each block in `entered` [S] at
        the place that its row has in the plan. The device's table is the caller's affair."""
        for row, start, ids in new_blocks:
            self.host[row, start] = entered[self._entries[row]] = ids[0]


def scatter_of(table: Tensor, runs: list[tuple[int, list[int]]], upload: Upload) -> Edit:
    """One scatter for runs of (first flat place, values)."""
    places = np.concatenate([np.arange(start, start + len(values)) for start, values in runs])
    values = np.concatenate([np.asarray(values, np.int32) for _, values in runs])
    return table, upload.add(places), upload.add(values)


def apply_edits(edits: list[Edit]) -> None:
    """Enqueue what is left for the device; the upload is sent."""
    for table, places, values in edits:
        table.index_copy_(0, places, values)
