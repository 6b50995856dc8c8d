"""Launched steps: how sampled tokens get to the host.

On CPU they are there. On a GPU a side stream copies them to pinned memory while the next step
computes, and an event tells when they have arrived.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from atom.engine.messages import TokenLogprobs
from atom.engine.plan import StepOutput
from atom.engine.runner.logprobs import LogprobTensors, to_host
from atom.engine.runner.prompt_logprobs import PromptStep, to_records


class StepResult(NamedTuple):
    """A step's outcome on the device, and what turns it into a `StepOutput`."""

    token_ids: Tensor  # [L] int64
    logprobs: LogprobTensors | None
    logprob_rows: list[int]  # which of the L samples `logprobs` are of
    logprob_counts: list[int]  # alternatives of each
    prompt_logprobs: LogprobTensors | None
    prompt_step: PromptStep | None


def to_output(result: StepResult) -> StepOutput:
    """`result`'s tensors are in host memory."""
    token_ids = result.token_ids.numpy().astype(np.int32)
    logprobs: list[TokenLogprobs | None] | None = None
    if result.logprobs is not None:
        logprobs = [None] * len(token_ids)
        records = to_host(result.logprobs, result.logprob_counts)
        for row, record in zip(result.logprob_rows, records, strict=True):
            logprobs[row] = record
    prompts = None
    if result.prompt_logprobs is not None and result.prompt_step is not None:
        prompts = to_records(result.prompt_step, result.prompt_logprobs)
    return StepOutput(token_ids, logprobs, prompts)


class HostStep:
    """A step that is done."""

    __slots__ = ("_result",)

    def __init__(self, result: StepResult) -> None:
        self._result = result

    def wait(self) -> StepOutput:
        return to_output(self._result)


class DeviceStep:
    """A step on a GPU; made right after its kernels were enqueued."""

    __slots__ = ("_done", "_result")

    def __init__(self, result: StepResult, copies: torch.cuda.Stream) -> None:
        copies.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(copies):
            self._result = result._replace(
                token_ids=_to_pinned(result.token_ids, copies),
                logprobs=_columns_to_pinned(result.logprobs, copies),
                prompt_logprobs=_columns_to_pinned(result.prompt_logprobs, copies),
            )
        self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._done.record(copies)

    def wait(self) -> StepOutput:
        self._done.synchronize()
        return to_output(self._result)


def _to_pinned(tensor: Tensor, stream: torch.cuda.Stream) -> Tensor:
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    tensor.record_stream(stream)  # not handed out again before the copy has read it
    return host


def _columns_to_pinned(
    columns: LogprobTensors | None, stream: torch.cuda.Stream
) -> LogprobTensors | None:
    return None if columns is None else columns.map(lambda tensor: _to_pinned(tensor, stream))
