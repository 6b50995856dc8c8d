"""Steps with prompts as one graph from token ids to hidden states, attention included.

The metadata lies in static buffers: `cu_seqlens_q` of the sequences that a step has not ends where
its tokens end, so they are empty, and the rows of padding belong to no sequence.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from atom.engine.marks import Scope
from atom.engine.runner.capture import Graph, Recorder
from atom.engine.runner.inputs import InputBatch, StepInputs
from atom.engine.runner.piecewise import Forward, Inputs, attention_output
from atom.layers.context import ForwardContext, set_forward_context
from atom.ops.contracts import AttentionMetadata


class _Captured(NamedTuple):
    graph: Graph
    hidden: Tensor  # [size, H]


class FullGraphs:
    """`sizes` are numbers of tokens, ascending; a step of n tokens has at most n sequences."""

    kind = "full"
    counts_in = "tok"  # what a size is a number of, in traces: tokens

    def __init__(
        self,
        sizes: Sequence[int],
        batch: InputBatch,
        max_model_len: int,
        forward: Forward,
        recorder: Recorder,
    ) -> None:
        self.sizes = tuple(sizes)
        self._forward = forward
        self._recorder = recorder
        self._max_model_len = max_model_len
        largest, device = self.sizes[-1], batch.device
        self._most_seqs = min(largest, batch.max_num_seqs)

        def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self._input_ids = zeros(largest, dtype=torch.int64)
        self._positions = zeros(largest, dtype=torch.int64)
        self._slot_mapping = torch.full_like(self._positions, -1)
        self._cu_seqlens = zeros(self._most_seqs + 1)
        self._seq_lens = zeros(self._most_seqs)
        self._table = zeros(self._most_seqs, batch.max_blocks)
        self._window_slots = self._window_table = self._state_slots = None
        if batch.window is not None:
            self._window_slots = torch.full_like(self._slot_mapping, -1)
            self._window_table = torch.zeros_like(self._table)
        if batch.has_state:
            self._state_slots = torch.full_like(self._seq_lens, -1)
        self._captured: dict[int, _Captured] = {}

    @property
    def static_bytes(self) -> int:
        tables = self._table.nbytes * (1 if self._window_table is None else 2)
        return tables + 4 * self._input_ids.nbytes + 3 * self._cu_seqlens.nbytes

    def size_for(self, num_tokens: int, num_seqs: int) -> int:
        """The captured size that serves such a step; 0 if none does."""
        if num_tokens > self.sizes[-1]:
            return 0
        return self.sizes[bisect_left(self.sizes, num_tokens)]

    # -- recording ------------------------------------------------------------------------------

    def capture(self, size: int) -> None:
        """Record the graph of `size`, within the recorder's session."""
        for padded in (self._slot_mapping, self._window_slots, self._state_slots):
            if padded is not None:
                padded.fill_(-1)
        self._cu_seqlens.zero_()
        with Scope("warm_up"):
            self._body(size)
        with Scope("record"):
            graph, hidden = self._recorder.record(lambda: self._body(size))
        self._captured[size] = _Captured(graph, self._recorder.alias(hidden))

    def _body(self, size: int) -> Tensor:
        meta = self._metadata(size, self._slot_mapping, self._table)
        if self._window_slots is not None and self._window_table is not None:
            meta.window = self._metadata(size, self._window_slots, self._window_table)

        def attend(layer: Any, inputs: Inputs, positions: Tensor) -> Tensor:
            out: Tensor = layer.run(inputs, positions, meta, attention_output(layer, inputs))
            return out

        with set_forward_context(ForwardContext(meta, attend)):
            return self._forward(self._input_ids[:size], self._positions[:size])

    def _metadata(self, size: int, slots: Tensor, table: Tensor) -> AttentionMetadata:
        count = min(size, self._most_seqs)
        return AttentionMetadata(
            num_tokens=size,
            num_seqs=count,
            max_query_len=max(size, 2),  # not decode: a sequence may have any number of tokens
            max_seq_len=self._max_model_len,
            slot_mapping=slots[:size],
            block_table=table[:count],
            cu_seqlens_q=self._cu_seqlens[: count + 1],
            seq_lens=self._seq_lens[:count],
            state_slots=None if self._state_slots is None else self._state_slots[:count],
        )

    # -- a step ---------------------------------------------------------------------------------

    def run(self, size: int, inputs: StepInputs) -> Tensor:
        """hidden [size, H] of a step whose tensors are padded to `size`."""
        captured = self._captured[size]
        self._fill(size, inputs)
        captured.graph.replay()
        return captured.hidden

    def _fill(self, size: int, inputs: StepInputs) -> None:
        meta = inputs.attention
        count, columns = meta.block_table.shape
        self._input_ids[:size].copy_(inputs.input_ids)
        self._positions[:size].copy_(inputs.positions)
        self._slot_mapping[:size].copy_(meta.slot_mapping)
        self._cu_seqlens[: count + 1].copy_(meta.cu_seqlens_q)
        self._cu_seqlens[count + 1 :].fill_(meta.num_tokens)
        self._seq_lens[:count].copy_(meta.seq_lens)
        self._seq_lens[count:].zero_()
        self._table[:count, :columns].copy_(meta.block_table)
        if self._state_slots is not None:
            assert meta.state_slots is not None
            self._state_slots[:count].copy_(meta.state_slots)
            self._state_slots[count:].fill_(-1)
        if self._window_slots is not None and self._window_table is not None:
            assert meta.window is not None
            self._window_slots[:size].copy_(meta.window.slot_mapping)
            self._window_table[:count, :columns].copy_(meta.window.block_table)
