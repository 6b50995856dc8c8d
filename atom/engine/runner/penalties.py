"""What changes logits before sampling: logit_bias, min_tokens, then the three penalties.

Penalties are computed from the token pool, where every token of a row is, those not yet seen by
the host included. No counts are carried from step to step, so there is none to go stale after a
preemption, and a step costs in proportion to the history, not to the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from atom.ops import triton

_MAX_HISTORY = 1 << 22  # tokens looked at together; bounds the temporaries
_MAX_ROWS = 64  # rows counted together; bounds the counters


class LogitEdits(NamedTuple):
    """Additions and prohibitions at flat places of logits [L, V]; `None` where there are none."""

    bias_places: Tensor | None  # [b] int64
    bias_values: Tensor | None  # [b] float32
    banned_places: Tensor | None  # [m] int64


class PenaltyInputs(NamedTuple):
    """The P rows of logits [L, V] that have a penalty."""

    indices: Tensor  # [P] int64 rows of the logits
    pool_rows: Tensor  # [P] int64 rows of the token pool
    lengths: Tensor  # [P] int64 tokens known, at least 1
    num_prompt: Tensor  # [P] int64 how many of them are the prompt's
    repetition: Tensor  # [P] float32
    frequency: Tensor  # [P] float32
    presence: Tensor  # [P] float32
    max_length: int

    def part(self, start: int, stop: int) -> PenaltyInputs:
        return PenaltyInputs(
            self.indices[start:stop],
            self.pool_rows[start:stop],
            self.lengths[start:stop],
            self.num_prompt[start:stop],
            self.repetition[start:stop],
            self.frequency[start:stop],
            self.presence[start:stop],
            self.max_length,
        )


def apply_edits(logits: Tensor, edits: LogitEdits) -> None:
    """In place; a token that is both biased and banned is banned."""
    flat = logits.view(-1)
    if edits.bias_places is not None and edits.bias_values is not None:
        flat.index_add_(0, edits.bias_places, edits.bias_values)
    if edits.banned_places is not None:
        flat.index_fill_(0, edits.banned_places, float("-inf"))


Apply = Callable[[Tensor, Tensor, Tensor, PenaltyInputs], None]


class Penalties:
    """Applies penalties in place; owns the counters, which are zero between calls."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._apply = _apply_in_torch if device.type == "cpu" else _device_way()
        kind = torch.float32 if self._apply is _apply_in_torch else torch.int32
        self._counts = torch.empty(0, dtype=kind, device=device)

    def apply(self, logits: Tensor, token_pool: Tensor, inputs: PenaltyInputs) -> None:
        """logits [L, V] float32 contiguous, token_pool [R, W] int32.

        Repetition divides positive and multiplies other logits of every token in the row; frequency
        subtracts per occurrence in the output, presence once.
        """
        rows = len(inputs.indices)
        step = max(1, min(_MAX_ROWS, _MAX_HISTORY // inputs.max_length))
        if self._counts.numel() < min(rows, step) * self._vocab_size:
            self._counts = self._counts.new_zeros(min(rows, step) * self._vocab_size)
        for start in range(0, rows, step):
            self._apply(logits, self._counts, token_pool, inputs.part(start, start + step))


def _device_way() -> Apply:
    """Kernels where there are some."""
    if not triton.is_installed():
        return _apply_in_torch
    from atom.ops.triton import penalties

    def apply(logits: Tensor, counts: Tensor, token_pool: Tensor, inputs: PenaltyInputs) -> None:
        penalties.apply(logits, counts, token_pool, *inputs)

    return apply


def _apply_in_torch(
    logits: Tensor, counters: Tensor, token_pool: Tensor, inputs: PenaltyInputs
) -> None:
    vocab = logits.shape[1]
    history = token_pool[:, : inputs.max_length].index_select(0, inputs.pool_rows).long()
    position = torch.arange(inputs.max_length, device=logits.device)
    valid = position < inputs.lengths[:, None]
    # What lies beyond a row's end is read as its first token, which is in the history anyway.
    history = torch.where(valid, history, history[:, :1])
    is_output = valid & (position >= inputs.num_prompt[:, None])
    local = torch.arange(len(history), device=logits.device)[:, None]
    where = (local * vocab + history).view(-1)
    counters.index_add_(0, where, is_output.view(-1).float())
    counts = counters[where].view_as(history)
    counters.index_fill_(0, where, 0.0)
    places = (inputs.indices[:, None] * vocab + history).view(-1)
    flat = logits.view(-1)
    values = flat[places].view_as(history)
    repetition = inputs.repetition[:, None]
    values = torch.where(values > 0, values / repetition, values * repetition)
    values -= inputs.frequency[:, None] * counts
    values -= inputs.presence[:, None] * (counts > 0)
    flat.index_copy_(0, places, values.view(-1))  # equal places get equal values
