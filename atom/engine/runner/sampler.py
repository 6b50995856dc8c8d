"""Logits to token ids.

Order, per row: raw log-probabilities are taken; then logit_bias is added, tokens held back by
min_tokens are banned, repetition, frequency and presence penalties are applied. A row of
temperature 0 takes the argmax of that. Any other row divides by its temperature, applies min_p,
top_k and top_p in this order (see `draw`), and draws with the uniform number of its seed and
position. A step whose rows are all greedy and plain is one argmax.

On CPU a row at a time goes through numpy; on a GPU kernels take all rows together, and torch does
where Triton is missing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from atom.engine.runner import draw, host_sampling, randomness
from atom.engine.runner.logprobs import LogprobTensors, raw_logprobs
from atom.engine.runner.penalties import Penalties, apply_edits
from atom.engine.runner.sampling_rows import RandomRows, SamplingStep
from atom.ops import triton


class Sampled(NamedTuple):
    token_ids: Tensor  # [L] int64
    logprobs: LogprobTensors | None  # of `SamplingStep.logprob_indices`


Choose = Callable[[Tensor, RandomRows | None], Tensor]  # logits [L, V] -> [L] int64


class Sampler:
    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._choose = _choose_on_host if device.type == "cpu" else _device_choice()
        self._penalties = Penalties(vocab_size, device)

    def __call__(
        self, logits: Tensor, token_pool: Tensor, step: SamplingStep, best: Tensor | None = None
    ) -> Sampled:
        """logits [L, V] float32 contiguous, which are overwritten; token_pool [R, W] int32.

        `best` [L] int64: the logits' argmax, where the caller has it already.
        """
        edited = step.edits is not None or step.penalties is not None
        raw = None
        if step.logprob_indices is not None:
            raw = raw_logprobs(logits, max(step.logprob_counts), step.logprob_indices, edited)
        if step.edits is not None:
            apply_edits(logits, step.edits)
        if step.penalties is not None:
            self._penalties.apply(logits, token_pool, step.penalties)
        if best is not None and step.random is None and not edited:
            tokens = best
        else:
            tokens = self._choose(logits, step.random)
        if raw is None or step.logprob_indices is None:
            return Sampled(tokens, None)
        return Sampled(tokens, raw.of(tokens[step.logprob_indices]))


def _device_choice() -> Choose:
    """Kernels where there are some."""
    if not triton.is_installed():
        return _choose_in_torch
    from atom.ops.triton import sampling

    def choose(logits: Tensor, random: RandomRows | None) -> Tensor:
        if random is None:
            return sampling.argmax(logits)
        return sampling.sample(logits, random.params, random.kinds)

    return choose


def _choose_in_torch(logits: Tensor, random: RandomRows | None) -> Tensor:
    if random is None:
        return logits.argmax(dim=-1)
    return draw.choose(logits, random.params, random.kinds)


def _choose_on_host(logits: Tensor, random: RandomRows | None) -> Tensor:
    rows = logits.numpy()
    if random is None:
        return torch.from_numpy(rows.argmax(axis=-1))  # ten times as fast as torch's
    draws = random.host
    scratch = np.empty(rows.shape[1], np.float32)
    drawn = draws["kind"] > 0
    tokens = np.empty(len(rows), np.int64)
    tokens[~drawn] = rows[~drawn].argmax(axis=-1) if not drawn.all() else 0
    noise = randomness.uniforms(draws["key"], draws["position"].astype(np.int64))
    names = ("temperature", "top_k", "top_p", "min_p")
    columns = [draws[name].tolist() for name in names]
    params = zip(*columns, noise.tolist(), strict=True)
    for index, (row, is_drawn) in enumerate(zip(params, drawn.tolist(), strict=True)):
        if is_drawn:
            tokens[index] = host_sampling.sample(
                rows[index], host_sampling.RowParams(*row), scratch
            )
    return torch.from_numpy(tokens)
