"""Logits to token ids.

Order, per row: raw log-probabilities are taken; then logit_bias is added, tokens held back by
min_tokens are banned, repetition, frequency and presence penalties are applied. A row of
temperature 0 takes the argmax of that. Any other row divides by its temperature, applies min_p,
top_k and top_p in this order (see `draw`), and draws with the uniform number of its seed and
position. A step whose rows are all greedy and plain is one argmax.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from atom.engine.runner import draw, host_sampling
from atom.engine.runner.logprobs import LogprobTensors, raw_logprobs
from atom.engine.runner.penalties import Penalties, apply_edits
from atom.engine.runner.sampling_rows import RandomRows, SamplingStep


class Sampled(NamedTuple):
    token_ids: Tensor  # [L] int64
    logprobs: LogprobTensors | None  # of `SamplingStep.logprob_indices`


class Sampler:
    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._choose = _choose_on_host if device.type == "cpu" else _choose_on_device
        self._penalties = Penalties(vocab_size, device)

    def __call__(self, logits: Tensor, token_pool: Tensor, step: SamplingStep) -> Sampled:
        """logits [L, V] float32 contiguous, which are overwritten; token_pool [R, W] int32."""
        raw = None
        if step.logprob_indices is not None:
            raw = raw_logprobs(logits[step.logprob_indices], max(step.logprob_counts))
        if step.edits is not None:
            apply_edits(logits, step.edits)
        if step.penalties is not None:
            self._penalties.apply(logits, token_pool, step.penalties)
        tokens = self._choose(logits, step)
        if raw is None or step.logprob_indices is None:
            return Sampled(tokens, None)
        return Sampled(tokens, raw.of(tokens[step.logprob_indices]))


def _choose_on_device(logits: Tensor, step: SamplingStep) -> Tensor:
    for random in (step.plain, step.filtered):
        if random is not None and random.indices is None:
            return _draw(logits, random)
    tokens = logits.argmax(dim=-1)
    for random in (step.plain, step.filtered):
        if random is not None and random.indices is not None:
            drawn = _draw(logits[random.indices], random)
            tokens.index_copy_(0, random.indices, drawn)
    return tokens


def _draw(logits: Tensor, random: RandomRows) -> Tensor:
    # Relative to the maximum, so that a small temperature cannot overflow.
    x = (logits - logits.amax(-1, keepdim=True)) / random.temperature[:, None]
    if random.filters is None:
        return draw.draw(torch.softmax(x, dim=-1), random.uniforms)
    return draw.sample(x, random.filters, random.uniforms)


def _choose_on_host(logits: Tensor, step: SamplingStep) -> Tensor:
    rows = logits.numpy()
    scratch = np.empty(rows.shape[1], np.float32)
    drawn = [r for r in (step.plain, step.filtered) if r is not None]
    if any(random.indices is None for random in drawn):
        tokens = np.empty(len(rows), np.int64)
    else:
        tokens = rows.argmax(axis=-1)  # ten times as fast as torch's, which is not vectorised
    for random in drawn:
        indices = range(len(rows)) if random.indices is None else random.indices.tolist()
        for index, params in zip(indices, _host_params(random), strict=True):
            tokens[index] = host_sampling.sample(rows[index], params, scratch)
    return torch.from_numpy(tokens)


def _host_params(random: RandomRows) -> list[host_sampling.RowParams]:
    count = len(random.temperature)
    filters = random.filters
    top_k, top_p, min_p = [0] * count, [1.0] * count, [0.0] * count
    if filters is not None and filters.top_k is not None:
        top_k = filters.top_k.tolist()
    if filters is not None and filters.top_p is not None:
        top_p = filters.top_p.tolist()
    if filters is not None and filters.min_p is not None:
        min_p = filters.min_p.tolist()
    columns = (random.temperature.tolist(), top_k, top_p, min_p, random.uniforms.tolist())
    return [host_sampling.RowParams(*row) for row in zip(*columns, strict=True)]
