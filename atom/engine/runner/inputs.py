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

from atom.engine.plan import StepPlan
from atom.engine.runner.block_tables import BlockTable, Edit, Ints, apply_edits, scatter_of
from atom.engine.runner.upload import Upload
from atom.ops.contracts import AttentionMetadata


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
    window_slots: Tensor | None = None  # as `slot_mapping`, of the window caches
    state_slots: Tensor | None = None  # [S] int32: the batch rows
    edits: list[Edit] = field(default_factory=list)


class StepInputs(NamedTuple):
    """`attention` counts the step's own tokens; tensors of one entry a token may be longer."""

    input_ids: Tensor  # [T] int64
    positions: Tensor  # [T] int64
    attention: AttentionMetadata


class InputBatch:
    """Tables of `max_num_seqs` rows, on the device, with a host copy where the host needs one.

    `token_pool` [R, max_model_len + 1] int32 is on the device only (on CPU that is the host).
    `blocks` is the table of the full caches, `window` that of the window caches if there are any.
    The recurrent state of row r is in slot r.
    """

    def __init__(
        self,
        max_num_seqs: int,
        max_model_len: int,
        block_size: int,
        device: torch.device,
        *,
        has_window: bool = False,
        has_state: bool = False,
    ) -> None:
        self.device = device
        self.block_size = block_size
        self.has_state = has_state
        self.width = max_model_len + 1
        self.max_blocks = -(-self.width // block_size)
        self.num_prompt = np.zeros(max_num_seqs, np.int64)
        self._iota = np.arange(max_num_seqs + 1, dtype=np.int32)
        self.blocks = BlockTable(max_num_seqs, self.max_blocks, block_size, device)
        self.window: BlockTable | None = None
        if has_window:
            self.window = BlockTable(max_num_seqs, self.max_blocks, block_size, device)
        self.token_pool = torch.zeros((max_num_seqs, self.width), dtype=torch.int32, device=device)
        self._pool_flat = self.token_pool.view(-1)
        self._host_pool: NDArray[np.int32] | None = None
        if device.type == "cpu":
            self._host_pool = self.token_pool.numpy()

    @property
    def max_num_seqs(self) -> int:
        return len(self.num_prompt)

    @property
    def nbytes(self) -> int:
        """Device memory of the tables (on CPU only the pages that were touched are real)."""
        tables = self.blocks.device.nbytes * (1 if self.window is None else 2)
        return self.token_pool.nbytes + tables

    def stage(self, plan: StepPlan, upload: Upload, pad_to: int = 0) -> StagedStep:
        """Apply the plan's new rows and blocks; compute what the forward needs. Host only.

        The tensors of one entry a token are padded to `pad_to` of them: id of place 0, position 0,
        slot -1.
        """
        edits = self.stage_edits(plan, upload)
        rows = plan.rows.astype(np.int64)
        computed = plan.num_computed.astype(np.int64)
        lengths = computed + plan.num_scheduled
        num_seqs = len(rows)
        total = int(plan.num_scheduled.sum())
        if total == num_seqs:  # every sequence computes one token
            cu_seqlens, positions, token_rows = self._iota[: num_seqs + 1], computed, rows
        else:
            cu_seqlens, positions, token_rows = _expand(plan.num_scheduled, computed, rows, total)
        padding = max(0, pad_to - total)
        slots = _pad(self.blocks.slots(token_rows, positions), padding, -1)
        window_slots = None
        if self.window is not None:
            window_slots = _pad(self.window.slots(token_rows, positions), padding, -1)
        places = _pad(token_rows * self.width + positions, padding, 0)
        positions = _pad(positions, padding, 0)
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
            window_slots=None if window_slots is None else add(window_slots),
            # Not the plan's own array, which the scheduler may edit while the step runs.
            state_slots=add(rows.astype(np.int32)) if self.has_state else None,
            edits=edits,
        )

    def begins_blocks(self, plan: StepPlan) -> bool:
        """Whether a decode graph can enter the plan's new blocks into the tables by itself: see
        `BlockTable.begins_with`."""
        rows, computed = plan.rows, plan.num_computed
        if plan.new_rows or not self.blocks.begins_with(plan.new_blocks, rows, computed):
            return False
        fresh = plan.new_window_blocks
        return self.window is None or self.window.begins_with(fresh, rows, computed)

    def stage_edits(self, plan: StepPlan, upload: Upload) -> list[Edit]:
        """Write the differences. Rows given up need no clearing: lengths bound every reader.

        Returns what the device has yet to write; nothing on CPU.
        """
        for new in plan.new_rows:
            self.num_prompt[new.row] = new.num_prompt_tokens
        edits = self.blocks.append(plan.new_blocks, upload)
        if self.window is not None:
            edits += self.window.append(plan.new_window_blocks, upload)
        if self._host_pool is not None:
            for new in plan.new_rows:
                self._host_pool[new.row, : len(new.token_ids)] = new.token_ids
        elif plan.new_rows:
            runs = [(new.row * self.width, new.token_ids) for new in plan.new_rows]
            edits.append(scatter_of(self._pool_flat, runs, upload))
        return edits

    def gather(self, staged: StagedStep) -> StepInputs:
        """The step's tensors; enqueues only. Call after the upload is sent."""
        apply_edits(staged.edits)
        window = None
        if self.window is not None:
            assert staged.window_slots is not None
            window = _metadata(staged, self.window, staged.window_slots)
        attention = _metadata(staged, self.blocks, staged.slot_mapping, window)
        ids = self._pool_flat.index_select(0, staged.token_slots).long()
        return StepInputs(ids, staged.positions, attention)

    def put_tokens(self, staged: StagedStep, token_ids: Tensor) -> None:
        """Write the sampled tokens [L] where the next step's `gather` finds them."""
        self._pool_flat.index_copy_(0, staged.sample_slots, token_ids.to(torch.int32))


def _metadata(
    staged: StagedStep,
    table: BlockTable,
    slots: Tensor,
    window: AttentionMetadata | None = None,
) -> AttentionMetadata:
    return AttentionMetadata(
        num_tokens=staged.num_tokens,
        num_seqs=staged.num_seqs,
        max_query_len=staged.max_query_len,
        max_seq_len=staged.max_seq_len,
        slot_mapping=slots,
        block_table=table.rows_of(staged.rows, staged.num_seqs, staged.max_seq_len),
        cu_seqlens_q=staged.cu_seqlens_q,
        seq_lens=staged.seq_lens,
        window=window,
        state_slots=staged.state_slots,
    )


def _pad(values: Ints, count: int, filler: int) -> Ints:
    return np.pad(values, (0, count), constant_values=filler) if count else values


def _expand(
    num_scheduled: NDArray[np.int32], computed: Ints, rows: Ints, total: int
) -> tuple[NDArray[np.int32], Ints, Ints]:
    """Per-sequence to per-token: (cu_seqlens [S + 1], positions [T], batch rows [T])."""
    cu_seqlens = np.zeros(len(rows) + 1, np.int32)
    np.cumsum(num_scheduled, out=cu_seqlens[1:])
    positions = np.arange(total, dtype=np.int64)
    positions += np.repeat(computed - cu_seqlens[:-1], num_scheduled)
    return cu_seqlens, positions, np.repeat(rows, num_scheduled)
