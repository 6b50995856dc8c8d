"""Log-probabilities of chosen tokens and of the best alternatives, from raw logits.

Raw: a float32 log-softmax before penalties, temperature and filters. Everything stays on the
device until `to_host`, whose result is read after the step's event.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from atom.engine.messages import TokenLogprobs
from atom.engine.runner import host_sampling
from atom.ops import triton


class LogprobTensors(NamedTuple):
    """Of n positions; `top_ids` and `top_logprobs` are the vocabulary's k best, descending."""

    token_ids: Tensor  # [n] int32
    logprobs: Tensor  # [n] float32
    ranks: Tensor  # [n] int32, from 1
    top_ids: Tensor  # [n, k] int32
    top_logprobs: Tensor  # [n, k] float32

    def map(self, change: Callable[[Tensor], Tensor]) -> LogprobTensors:
        return LogprobTensors(*(change(tensor) for tensor in self))


class RawLogprobs(Protocol):
    """What was kept of n rows of logits before the sampler edited them."""

    def of(self, token_ids: Tensor) -> LogprobTensors:
        """token_ids [n] integers: the tokens that were chosen."""
        ...


def raw_logprobs(
    logits: Tensor, num_top: int, rows: Tensor | None = None, edited: bool = False
) -> RawLogprobs:
    """Of logits [L, V] float32, or of their `rows` [n] int64. `num_top` may be 0.

    `edited`: the logits will be overwritten before `of` is called.
    """
    num_top = min(num_top, logits.shape[1])
    if rows is not None and (edited or logits.device.type == "cpu"):
        logits, rows = logits[rows], None
    if logits.device.type == "cpu":
        return _HostLogprobs(logits, num_top)
    if not triton.is_installed():
        return _TorchLogprobs(logits if rows is None else logits[rows], num_top)
    from atom.ops.triton.logprobs import logprobs

    return _KernelLogprobs(logits, rows, num_top, logprobs)


class _KernelLogprobs:
    """Looks at the logits when the tokens are known."""

    def __init__(
        self, logits: Tensor, rows: Tensor | None, num_top: int, kernel: Callable[..., Any]
    ) -> None:
        self._logits, self._rows, self._num_top = logits, rows, num_top
        self._kernel = kernel

    def of(self, token_ids: Tensor) -> LogprobTensors:
        columns = self._kernel(self._logits, self._rows, token_ids, self._num_top)
        return LogprobTensors(token_ids.to(torch.int32), *columns)


class _TorchLogprobs:
    """For devices without kernels of their own."""

    def __init__(self, logits: Tensor, num_top: int) -> None:
        self._all = torch.log_softmax(logits, dim=-1)
        self._top = self._all.topk(num_top, dim=-1)

    def of(self, token_ids: Tensor) -> LogprobTensors:
        chosen = self._all.gather(1, token_ids.long()[:, None])
        ranks = (self._all > chosen).sum(-1, dtype=torch.int32) + 1
        return LogprobTensors(
            token_ids.to(torch.int32),
            chosen.squeeze(1),
            ranks,
            self._top.indices.to(torch.int32),
            self._top.values,
        )


class _HostLogprobs:
    def __init__(self, logits: Tensor, num_top: int) -> None:
        self._logits = logits.numpy()
        self._num_top = num_top

    def of(self, token_ids: Tensor) -> LogprobTensors:
        ids = token_ids.tolist()
        rows = [
            host_sampling.logprobs(logits, token_id, self._num_top)
            for logits, token_id in zip(self._logits, ids, strict=True)
        ]
        shape = (len(rows), self._num_top)
        top_ids = np.array([row.top_ids for row in rows], np.int32).reshape(shape)
        top_logprobs = np.array([row.top_logprobs for row in rows], np.float32).reshape(shape)
        return LogprobTensors(
            token_ids.to(torch.int32),
            torch.tensor([row.logprob for row in rows], dtype=torch.float32),
            torch.tensor([row.rank for row in rows], dtype=torch.int32),
            torch.from_numpy(top_ids),
            torch.from_numpy(top_logprobs),
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
