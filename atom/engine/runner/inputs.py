"""The persistent batch: who sits in which row, its tokens and blocks, and a step's tensors.

Tables live for the whole run and are edited by the plan's differences; a step gathers from them.
`stage` does the host's part (numpy, a few arrays into the step's `Upload`); after the upload is
sent, `gather` does the device's. Input ids are gathered on the device from the token pool, because
the last sampled token may not have reached the host yet. Sampling parameters are not kept here but
in `sampling_rows`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atom.engine.plan import NewRow, RowBlocks, StepPlan
from atom.engine.runner.upload import Upload
from atom.ops.contracts import AttentionMetadata

Ints = NDArray[np.int64]


@dataclass(slots=True)
class StagedStep:
    """A step's small arrays. Tensors are on the device, valid once the upload is sent."""

    num_tokens: int
    num_seqs: int
    max_query_len: int
    max_seq_len: int
    positions: Tensor  # [T] int64; this and the next two may be padded
    token_slots: Tensor  # [T] int64 flat places in the token pool
    slot_mapping: Tensor  # [T] int64 flat places in the KV cache
    cu_seqlens_q: Tensor  # [S + 1] int32
    seq_lens: Tensor  # [S] int32
    rows: Tensor | None  # [S] int64 batch rows; None: they are 0 .. S-1
    logits_indices: Tensor | None  # [L] int64 rows of hidden that are sampled; None: all
    sample_slots: Tensor  # [L] int64 flat places in the token pool of the new tokens
    sample_rows: Ints  # [L] batch rows that sample, in plan order (host)
    sample_positions: Ints  # [L] positions of the new tokens (host)
    cu_seqlens_host: NDArray[np.int32]
    edits: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)


class StepInputs(NamedTuple):
    """`attention` counts the step's own tokens; tensors of one entry a token may be longer."""

    input_ids: Tensor  # [T] int64
    positions: Tensor  # [T] int64
    attention: AttentionMetadata


class InputBatch:
    """Tables of `max_num_seqs` rows, on the device, with a host copy where the host needs one.

    `token_pool` [R, max_model_len + 1] int32 is on the device only (on CPU that is the host).
    `block_table` [R, max_blocks] int32 is on the host, where slots are computed from it, and on the
    device as `device_table`.
    """

    def __init__(
        self, max_num_seqs: int, max_model_len: int, block_size: int, device: torch.device
    ) -> None:
        self.device = device
        self.block_size = block_size
        self.width = max_model_len + 1
        self.max_blocks = -(-self.width // block_size)
        self.num_prompt = np.zeros(max_num_seqs, np.int64)
        self.block_table = np.zeros((max_num_seqs, self.max_blocks), np.int32)
        self._iota = np.arange(max_num_seqs + 1, dtype=np.int32)
        self._entries = np.zeros(max_num_seqs, np.int32)  # row -> entry of a plan
        self.token_pool = torch.zeros((max_num_seqs, self.width), dtype=torch.int32, device=device)
        self._pool_flat = self.token_pool.view(-1)
        self.device_table = torch.from_numpy(self.block_table)
        self._host_pool: NDArray[np.int32] | None = None
        if device.type == "cpu":
            self._host_pool = self.token_pool.numpy()
        else:
            self.device_table = self.device_table.to(device)

    @property
    def nbytes(self) -> int:
        """Device memory of the tables (on CPU only the pages that were touched are real)."""
        return self.token_pool.nbytes + self.device_table.nbytes

    def stage(self, plan: StepPlan, upload: Upload, pad_to: int = 0) -> StagedStep:
        """Apply the plan's new rows and blocks; compute what the forward needs. Host only.

        The tensors of one entry a token are padded to `pad_to` of them: id of place 0, position 0,
        slot -1.
        """
        edits = self.stage_edits(plan.new_rows, plan.new_blocks, upload)
        rows = plan.rows.astype(np.int64)
        computed = plan.num_computed.astype(np.int64)
        lengths = computed + plan.num_scheduled
        num_seqs = len(rows)
        total = int(plan.num_scheduled.sum())
        if total == num_seqs:  # every sequence computes one token
            cu_seqlens, positions, token_rows = self._iota[: num_seqs + 1], computed, rows
        else:
            cu_seqlens, positions, token_rows = _expand(plan.num_scheduled, computed, rows, total)
        blocks = self.block_table[token_rows, positions // self.block_size]
        slots = blocks.astype(np.int64) * self.block_size + positions % self.block_size
        places = token_rows * self.width + positions
        if pad_to > total:
            padding = pad_to - total
            positions = np.pad(positions, (0, padding))
            places = np.pad(places, (0, padding))
            slots = np.pad(slots, (0, padding), constant_values=-1)
        sampled = plan.samples
        every_row = total == num_seqs and bool(sampled.all())
        sample_rows = rows if every_row else rows[sampled]
        sample_positions = lengths if every_row else lengths[sampled]
        add = upload.add
        return StagedStep(
            num_tokens=total,
            num_seqs=num_seqs,
            max_query_len=int(plan.num_scheduled.max()),
            max_seq_len=int(lengths.max()),
            positions=add(positions),
            token_slots=add(places),
            slot_mapping=add(slots),
            cu_seqlens_q=add(cu_seqlens),
            seq_lens=add(lengths.astype(np.int32)),
            rows=None if bool((rows == self._iota[:num_seqs]).all()) else add(rows),
            logits_indices=(
                None if every_row else add(cu_seqlens[1:][sampled].astype(np.int64) - 1)
            ),
            sample_slots=add(sample_rows * self.width + sample_positions),
            sample_rows=sample_rows,
            sample_positions=sample_positions,
            cu_seqlens_host=cu_seqlens,
            edits=edits,
        )

    def begins_blocks(self, plan: StepPlan) -> bool:
        """Whether each of the plan's new blocks is a single one, and begins with the token that its
        row computes in this step: so it is in decode steps, but for rows that have just entered."""
        if plan.new_rows or len(plan.new_blocks) > len(plan.rows):
            return False
        self._entries[plan.rows] = self._iota[: len(plan.rows)]
        for row, start, ids in plan.new_blocks:
            entry = self._entries[row]
            if (
                len(ids) != 1
                or entry >= len(plan.rows)
                or plan.rows[entry] != row
                or plan.num_computed[entry] // self.block_size != start
            ):
                return False
        return True

    def begin_blocks(self, plan: StepPlan, new_blocks: NDArray[np.int32]) -> None:
        """`begins_blocks` was true: edit the host's table, and enter each block in `new_blocks` at
        the place that its row has in the plan. The device's table is the caller's affair."""
        for row, start, ids in plan.new_blocks:
            self.block_table[row, start] = new_blocks[self._entries[row]] = ids[0]

    def stage_edits(
        self, new_rows: list[NewRow], new_blocks: list[RowBlocks], upload: Upload
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Write the differences. Rows given up need no clearing: lengths bound every reader.

        Returns the (table, places, values) that the device has yet to write; none on CPU.
        """
        for new in new_rows:
            self.num_prompt[new.row] = new.num_prompt_tokens
        for row, start, ids in new_blocks:
            self.block_table[row, start : start + len(ids)] = ids
        if self._host_pool is not None:
            for new in new_rows:
                self._host_pool[new.row, : len(new.token_ids)] = new.token_ids
            return []
        edits = []
        if new_rows:
            runs = [(new.row * self.width, new.token_ids) for new in new_rows]
            edits.append(_scatter_of(self._pool_flat, runs, upload))
        if new_blocks:
            runs = [(row * self.max_blocks + start, ids) for row, start, ids in new_blocks]
            edits.append(_scatter_of(self.device_table.view(-1), runs, upload))
        return edits

    def gather(self, staged: StagedStep) -> StepInputs:
        """The step's tensors; enqueues only. Call after the upload is sent."""
        apply_edits(staged.edits)
        columns = -(-staged.max_seq_len // self.block_size)
        table = self.device_table[:, :columns]
        if staged.rows is None:
            table = table[: staged.num_seqs]
        else:
            table = table.index_select(0, staged.rows)
        attention = AttentionMetadata(
            num_tokens=staged.num_tokens,
            num_seqs=staged.num_seqs,
            max_query_len=staged.max_query_len,
            max_seq_len=staged.max_seq_len,
            slot_mapping=staged.slot_mapping,
            block_table=table,
            cu_seqlens_q=staged.cu_seqlens_q,
            seq_lens=staged.seq_lens,
        )
        ids = self._pool_flat.index_select(0, staged.token_slots).long()
        return StepInputs(ids, staged.positions, attention)

    def put_tokens(self, staged: StagedStep, token_ids: Tensor) -> None:
        """Write the sampled tokens [L] where the next step's `gather` finds them."""
        self._pool_flat.index_copy_(0, staged.sample_slots, token_ids.to(torch.int32))


def apply_edits(edits: list[tuple[Tensor, Tensor, Tensor]]) -> None:
    """Enqueue what `stage_edits` left for the device; the upload is sent."""
    for table, places, values in edits:
        table.index_copy_(0, places, values)


def _expand(
    num_scheduled: NDArray[np.int32], computed: Ints, rows: Ints, total: int
) -> tuple[NDArray[np.int32], Ints, Ints]:
    """Per-sequence to per-token: (cu_seqlens [S + 1], positions [T], batch rows [T])."""
    cu_seqlens = np.zeros(len(rows) + 1, np.int32)
    np.cumsum(num_scheduled, out=cu_seqlens[1:])
    positions = np.arange(total, dtype=np.int64)
    positions += np.repeat(computed - cu_seqlens[:-1], num_scheduled)
    return cu_seqlens, positions, np.repeat(rows, num_scheduled)


def _scatter_of(
    table: Tensor, runs: list[tuple[int, list[int]]], upload: Upload
) -> tuple[Tensor, Tensor, Tensor]:
    """One scatter for runs of (first flat place, values)."""
    places = np.concatenate([np.arange(start, start + len(values)) for start, values in runs])
    values = np.concatenate([np.asarray(values, np.int32) for _, values in runs])
    return table, upload.add(places), upload.add(values)
