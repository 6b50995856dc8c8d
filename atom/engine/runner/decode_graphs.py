"""Decode steps as one graph each: new blocks, inputs, forward, logits, argmax, tokens.

The host writes one packet (`decode_slots`) and replays the graph of the next captured size; what
lies between is padding: row -1, slot -1, length 0. Static buffers are sized from the largest size
and from `max_model_len`: a block table that holds fewer columns than the longest sequence needs is
how other engines came to read and write past their buffers.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from atom.engine.marks import Scope
from atom.engine.plan import StepPlan
from atom.engine.runner.block_tables import BlockTable
from atom.engine.runner.capture import Graph, Recorder
from atom.engine.runner.decode_slots import (
    DevicePacket,
    Slot,
    SlotRing,
    device_packet,
)
from atom.engine.runner.inputs import InputBatch
from atom.layers.context import ForwardContext, set_forward_context
from atom.ops.contracts import AttentionMetadata

Forward = Callable[[Tensor, Tensor], Tensor]


class PrepareDecode(Protocol):
    """See `atom.ops.triton.step_inputs.prepare_decode`."""

    def __call__(
        self,
        rows: Tensor,
        computed: Tensor,
        token_pool: Tensor,
        block_table: Tensor,
        block_size: int,
        *,
        input_ids: Tensor,
        positions: Tensor,
        slot_mapping: Tensor,
        seq_lens: Tensor,
        step_table: Tensor,
        new_blocks: Tensor,
    ) -> None: ...


class StepKernels(NamedTuple):
    """What stands before and after the model in a decode graph."""

    prepare_decode: PrepareDecode
    # logits, rows, computed, pool, slot, landing: the argmax to pool and landing
    finish_decode: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], None]
    put_tokens: Callable[[Tensor, Tensor, Tensor, Tensor], None]  # tokens, rows, computed, pool


def device_kernels() -> StepKernels:
    """Those of a GPU."""
    from atom.ops.triton.step_inputs import finish_decode, prepare_decode, put_tokens

    return StepKernels(prepare_decode, finish_decode, put_tokens)


class _Captured(NamedTuple):
    graph: Graph
    packet: DevicePacket
    logits: Tensor  # [size, V] float32, whose memory other graphs use too


class DecodeGraphs:
    """Steps in which every sequence computes one token and samples the next."""

    kind = "decode"
    counts_in = "bs"  # what a size is a number of, in traces: sequences

    def __init__(
        self,
        sizes: Sequence[int],
        batch: InputBatch,
        max_model_len: int,
        *,
        forward: Forward,
        compute_logits: Callable[[Tensor], Tensor],
        kernels: StepKernels,
        recorder: Recorder,
        copies: torch.cuda.Stream | None,
    ) -> None:
        self.sizes = tuple(sizes)
        self._batch = batch
        self._max_model_len = max_model_len
        self._forward, self._compute_logits = forward, compute_logits
        self._kernels = kernels
        self._recorder = recorder
        largest, device = self.sizes[-1], batch.device

        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self._input_ids, self._positions = zeros(largest), zeros(largest)
        self._slot_mapping = zeros(largest)
        self._seq_lens = zeros(largest, dtype=torch.int32)
        self._table = zeros(largest, batch.max_blocks, dtype=torch.int32)
        if batch.window is not None:
            self._window_slots = torch.zeros_like(self._slot_mapping)
            self._window_table = torch.zeros_like(self._table)
        self._cu_seqlens = torch.arange(largest + 1, dtype=torch.int32, device=device)
        self.ring = SlotRing(self.sizes, device, copies)
        self._captured: dict[int, _Captured] = {}

    @property
    def static_bytes(self) -> int:
        tables = self._table.nbytes * (1 if self._batch.window is None else 2)
        return tables + 40 * self.sizes[-1] + self.ring.packet.nbytes

    def size_for(self, plan: StepPlan) -> int:
        """The captured size that serves `plan`; 0 if none does."""
        count = len(plan.rows)
        if count > self.sizes[-1] or plan.num_tokens != count or not plan.samples.all():
            return 0
        return self.sizes[bisect_left(self.sizes, count)]

    # -- recording ------------------------------------------------------------------------------

    def capture(self, size: int) -> None:
        """Record the graph of `size`, within the recorder's session."""
        packet = device_packet(self.ring.packet, size)
        slot = self.ring.take()
        host = slot.views[size].host
        host.slot[0], host.computed[:] = slot.index, 0
        host.rows[:] = host.new_blocks[:] = host.new_window_blocks[:] = -1
        self.ring.send(slot, size)
        with Scope("warm_up"):  # compiles kernels, and lets libraries allocate what they keep
            self._body(size, packet)
        with Scope("record"):
            graph, logits = self._recorder.record(lambda: self._body(size, packet))
        self._captured[size] = _Captured(graph, packet, self._recorder.alias(logits))

    def _body(self, size: int, packet: DevicePacket) -> Tensor:
        meta = self._prepare(size, packet)
        with set_forward_context(ForwardContext(meta)):
            hidden = self._forward(self._input_ids[:size], self._positions[:size])
        logits = self._compute_logits(hidden)
        self._finish(logits, packet)
        return logits

    def _prepare(self, size: int, packet: DevicePacket) -> AttentionMetadata:
        batch = self._batch
        slots, table = self._slot_mapping[:size], self._table[:size]
        window = None
        if batch.window is not None:
            window_slots, window_table = self._window_slots[:size], self._window_table[:size]
            window = self._metadata(size, packet, window_slots, window_table)
            self._fill(packet, window, batch.window, packet.new_window_blocks)
        meta = self._metadata(size, packet, slots, table, window)
        self._fill(packet, meta, batch.blocks, packet.new_blocks)
        return meta

    def _metadata(
        self,
        size: int,
        packet: DevicePacket,
        slots: Tensor,
        table: Tensor,
        window: AttentionMetadata | None = None,
    ) -> AttentionMetadata:
        return AttentionMetadata(
            num_tokens=size,
            num_seqs=size,
            max_query_len=1,
            max_seq_len=self._max_model_len,
            slot_mapping=slots,
            block_table=table,
            cu_seqlens_q=self._cu_seqlens[: size + 1],
            seq_lens=self._seq_lens[:size],
            window=window,
            # The state of a row is in the slot of its number, and padding is -1 in either.
            state_slots=packet.rows if self._batch.has_state else None,
        )

    def _fill(
        self, packet: DevicePacket, meta: AttentionMetadata, table: BlockTable, fresh: Tensor
    ) -> None:
        """With two tables, what does not depend on them is written twice, alike."""
        size = meta.num_seqs
        self._kernels.prepare_decode(
            packet.rows,
            packet.computed,
            self._batch.token_pool,
            table.device,
            table.block_size,
            input_ids=self._input_ids[:size],
            positions=self._positions[:size],
            slot_mapping=meta.slot_mapping,
            seq_lens=meta.seq_lens,
            step_table=meta.block_table,
            new_blocks=fresh,
        )

    def _finish(self, logits: Tensor, packet: DevicePacket) -> None:
        self._kernels.finish_decode(
            logits,
            packet.rows,
            packet.computed,
            self._batch.token_pool,
            packet.slot,
            self.ring.tokens,
        )

    # -- a step ---------------------------------------------------------------------------------

    def replay(self, plan: StepPlan, size: int) -> tuple[Slot, Tensor]:
        """Enqueue `plan` by the graph of `size`; returns (slot, logits [S, V]).

        The argmax of every row is on its way into the token pool. New rows must be in the tables
        already, and new blocks, too, unless each is the one that its row begins: see
        `InputBatch.begins_blocks`.
        """
        captured = self._captured[size]
        slot = self.ring.take()
        host, count = slot.views[size].host, len(plan.rows)
        host.slot[0] = slot.index
        host.rows[:count] = plan.rows
        host.rows[count:] = -1
        host.computed[:count] = plan.num_computed
        host.computed[count:] = 0
        host.new_blocks[:] = host.new_window_blocks[:] = -1
        if plan.new_blocks:
            self._batch.blocks.begin(plan.new_blocks, host.new_blocks)
        if self._batch.window is not None and plan.new_window_blocks:
            self._batch.window.begin(plan.new_window_blocks, host.new_window_blocks)
        self.ring.send(slot, size)
        captured.graph.replay()
        return slot, captured.logits[:count]

    def put_tokens(self, tokens: Tensor, size: int) -> None:
        """Write other tokens [S] than the argmax where the step just enqueued has put that one."""
        packet, count = self._captured[size].packet, len(tokens)
        self._kernels.put_tokens(
            tokens, packet.rows[:count], packet.computed[:count], self._batch.token_pool
        )
