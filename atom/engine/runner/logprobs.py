"""Log-probabilities of chosen tokens and of the best alternatives, from raw logits.

Raw: a float32 log-softmax before penalties, temperature and filters. Everything stays on the
device until `to_host`, whose result is read after the step's event.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from atom.engine.messages import TokenLogprobs


class LogprobTensors(NamedTuple):
    """Of n positions; `top_ids` and `top_logprobs` are the vocabulary's k best, descending."""

    token_ids: Tensor  # [n] int32
    logprobs: Tensor  # [n] float32
    ranks: Tensor  # [n] int32, from 1
    top_ids: Tensor  # [n, k] int32
    top_logprobs: Tensor  # [n, k] float32

    def map(self, change: Callable[[Tensor], Tensor]) -> LogprobTensors:
        return LogprobTensors(*(change(tensor) for tensor in self))


class RawLogprobs:
    """Log-softmax of n rows, taken before the sampler edits the logits."""

    def __init__(self, logits: Tensor, num_top: int) -> None:
        """logits [n, V] float32, not kept. `num_top` may be 0."""
        self._all = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
        self._top = self._all.topk(num_top, dim=-1)

    def of(self, token_ids: Tensor) -> LogprobTensors:
        """token_ids [n] integers: the tokens that were chosen."""
        chosen = self._all.gather(1, token_ids.long()[:, None])
        ranks = (self._all > chosen).sum(-1, dtype=torch.int32) + 1
        return LogprobTensors(
            token_ids.to(torch.int32),
            chosen.squeeze(1),
            ranks,
            self._top.indices.to(torch.int32),
            self._top.values,
        )


def to_host(columns: LogprobTensors, num_top: list[int]) -> list[TokenLogprobs]:
    """Columns already in host memory to one record a position, each with its own `num_top`.

    A record lists the chosen token, then the best `num_top` of the vocabulary, which hold the
    chosen one again if it is among them.
    """
    ids, logprobs = columns.token_ids.tolist(), columns.logprobs.tolist()
    ranks = columns.ranks.tolist()
    top_ids, top_logprobs = columns.top_ids.tolist(), columns.top_logprobs.tolist()
    return [
        TokenLogprobs(
            token_ids=[ids[i], *top_ids[i][:count]],
            logprobs=[logprobs[i], *top_logprobs[i][:count]],
            rank=ranks[i],
        )
        for i, count in enumerate(num_top)
    ]
