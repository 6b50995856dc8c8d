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
from atom.engine.runner.piecewise import Forward, attention_output
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
        self._captured: dict[int, _Captured] = {}

    @property
    def static_bytes(self) -> int:
        return self._table.nbytes + 3 * self._input_ids.nbytes + 2 * self._cu_seqlens.nbytes

    def size_for(self, num_tokens: int, num_seqs: int) -> int:
        """The captured size that serves such a step; 0 if none does."""
        if num_tokens > self.sizes[-1]:
            return 0
        return self.sizes[bisect_left(self.sizes, num_tokens)]

    # -- recording ------------------------------------------------------------------------------

    def capture(self, size: int) -> None:
        """Record the graph of `size`, within the recorder's session."""
        self._slot_mapping.fill_(-1)
        self._cu_seqlens.zero_()
        with Scope("warm_up"):
            self._body(size)
        with Scope("record"):
            graph, hidden = self._recorder.record(lambda: self._body(size))
        self._captured[size] = _Captured(graph, self._recorder.alias(hidden))

    def _body(self, size: int) -> Tensor:
        count = min(size, self._most_seqs)
        meta = AttentionMetadata(
            num_tokens=size,
            num_seqs=count,
            max_query_len=max(size, 2),  # not decode: a sequence may have any number of tokens
            max_seq_len=self._max_model_len,
            slot_mapping=self._slot_mapping[:size],
            block_table=self._table[:count],
            cu_seqlens_q=self._cu_seqlens[: count + 1],
            seq_lens=self._seq_lens[:count],
        )

        def attend(layer: Any, qkv: Tensor, positions: Tensor) -> Tensor:
            out: Tensor = layer.run(qkv, positions, meta, attention_output(layer, qkv))
            return out

        with set_forward_context(ForwardContext(meta, attend)):
            return self._forward(self._input_ids[:size], self._positions[:size])

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
