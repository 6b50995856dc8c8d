"""Steps of any kind as graphs cut at attention: pieces are replayed, attention runs between them.
Whatever else mixes tokens counts as attention here.

It gets the step's own metadata, so one set of pieces serves every mixture of prompts and
decodes of up to its number of tokens. What lies beyond the step's tokens is padding: position 0,
slot -1, and zeros as the output of attention, so that no garbage reaches a router or a reduction.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from atom.engine.marks import Scope
from atom.engine.runner.capture import Graph, Recorder
from atom.engine.runner.inputs import StepInputs
from atom.layers.context import ForwardContext, set_forward_context
from atom.ops.contracts import AttentionMetadata

Forward = Callable[[Tensor, Tensor], Tensor]


Inputs = Tensor | list[Tensor]  # an attention's QKV, or what another mixer gets


def attention_output(layer: Any, inputs: Inputs) -> Tensor:
    """[T, Hq, D], or [T, width] of a mixer, of zeros, for one that leaves the rows of padding
    alone."""
    if isinstance(inputs, list):
        return inputs[0].new_zeros(inputs[0].shape[0], layer.width)
    return inputs.new_zeros(inputs.shape[0], layer.num_heads, layer.head_dim)


class _Attention(NamedTuple):
    """What runs between two pieces. The tensors are the pieces' memory."""

    layer: Any
    inputs: Inputs
    positions: Tensor
    out: Tensor


class _Captured(NamedTuple):
    pieces: list[Graph]  # one more than there are attention layers
    attention: list[_Attention]
    hidden: Tensor  # [size, H]


class PiecewiseGraphs:
    """`sizes` are numbers of tokens, ascending."""

    kind = "piecewise"
    counts_in = "tok"  # what a size is a number of, in traces: tokens

    def __init__(
        self, sizes: Sequence[int], forward: Forward, recorder: Recorder, device: torch.device
    ) -> None:
        self.sizes = tuple(sizes)
        self._forward = forward
        self._recorder = recorder
        self._input_ids = torch.zeros(self.sizes[-1], dtype=torch.int64, device=device)
        self._positions = torch.zeros_like(self._input_ids)
        self._captured: dict[int, _Captured] = {}

    @property
    def static_bytes(self) -> int:
        return 2 * self._input_ids.nbytes

    def size_for(self, num_tokens: int, num_seqs: int) -> int:
        """The captured size that serves such a step; 0 if none does."""
        if num_tokens > self.sizes[-1]:
            return 0
        return self.sizes[bisect_left(self.sizes, num_tokens)]

    # -- recording ------------------------------------------------------------------------------

    def capture(self, size: int) -> None:
        """Record the pieces of `size`, within the recorder's session."""
        ids, positions = self._input_ids[:size], self._positions[:size]
        with Scope("warm_up"):  # compiles; attention has had its own warm-up
            self._forward_around(_skip, ids, positions)
        recorder = self._recorder
        pieces: list[Graph] = []
        attention: list[_Attention] = []

        def cut(layer: Any, inputs: Inputs, positions: Tensor) -> Tensor:
            # Made by the piece before, so that the rows of padding are zero when attention runs.
            out = attention_output(layer, inputs)
            pieces.append(recorder.end())
            alias = recorder.alias
            of = [alias(x) for x in inputs] if isinstance(inputs, list) else alias(inputs)
            attention.append(_Attention(layer, of, alias(positions), alias(out)))
            recorder.begin()
            return out

        def body() -> Tensor:
            return self._forward_around(cut, ids, positions)

        with Scope("record"):
            last, hidden = recorder.record(body)
        pieces.append(last)
        self._captured[size] = _Captured(pieces, attention, recorder.alias(hidden))

    def _forward_around(
        self, around: Callable[[Any, Any, Tensor], Tensor], ids: Tensor, positions: Tensor
    ) -> Tensor:
        with set_forward_context(ForwardContext(_nothing(ids), around)):
            return self._forward(ids, positions)

    # -- a step ---------------------------------------------------------------------------------

    def run(self, size: int, inputs: StepInputs) -> Tensor:
        """hidden [size, H] of a step whose tensors are padded to `size`."""
        captured, meta = self._captured[size], inputs.attention
        self._fill(size, inputs)
        for piece, (layer, of, positions, out) in zip(
            captured.pieces, captured.attention, strict=False
        ):
            piece.replay()
            layer.run(of, positions, meta, out)
        captured.pieces[-1].replay()
        return captured.hidden

    def _fill(self, size: int, inputs: StepInputs) -> None:
        self._input_ids[:size].copy_(inputs.input_ids)
        self._positions[:size].copy_(inputs.positions)


def _skip(layer: Any, inputs: Inputs, positions: Tensor) -> Tensor:
    return attention_output(layer, inputs)


def _nothing(ids: Tensor) -> AttentionMetadata:
    """Metadata of no sequence, for a forward whose attention is left out."""
    empty = ids.new_zeros(0, dtype=torch.int32)
    return AttentionMetadata(len(ids), 0, 0, 0, ids, empty, empty, empty)
