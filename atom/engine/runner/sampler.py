"""Logits to token ids.

Order, per row: raw log-probabilities are taken; then logit_bias is added, tokens held back by
min_tokens are banned, repetition, frequency and presence penalties are applied. A row of
temperature 0 takes the argmax of that. Any other row divides by its temperature, applies min_p,
top_k and top_p in this order (see `draw`), and draws with the uniform number of its seed and
position. A step whose rows are all greedy and plain is one argmax.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from atom.engine.runner.draw import draw, sample_candidates, sample_full
from atom.engine.runner.logprobs import LogprobTensors, RawLogprobs
from atom.engine.runner.penalties import Penalties, apply_edits
from atom.engine.runner.sampling_rows import RandomRows, SamplingStep

_CANDIDATES = (128, 2048)  # tried in turn where the host may look at results (CPU)


class Sampled(NamedTuple):
    token_ids: Tensor  # [L] int64
    logprobs: LogprobTensors | None  # of `SamplingStep.logprob_indices`


class Sampler:
    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._on_cpu = device.type == "cpu"
        self._penalties = Penalties(vocab_size, device)

    def __call__(self, logits: Tensor, token_pool: Tensor, step: SamplingStep) -> Sampled:
        """logits [L, V] float32, which are overwritten; token_pool [R, W] int32."""
        raw = None
        if step.logprob_indices is not None:
            raw = RawLogprobs(logits[step.logprob_indices], max(step.logprob_counts))
        if step.edits is not None:
            apply_edits(logits, step.edits)
        if step.penalties is not None:
            self._penalties.apply(logits, token_pool, step.penalties)
        tokens = self._choose(logits, step)
        if raw is None or step.logprob_indices is None:
            return Sampled(tokens, None)
        return Sampled(tokens, raw.of(tokens[step.logprob_indices]))

    def _choose(self, logits: Tensor, step: SamplingStep) -> Tensor:
        for random in (step.plain, step.filtered):
            if random is not None and random.indices is None:
                return self._draw(logits, random)
        tokens = self.argmax(logits)
        for random in (step.plain, step.filtered):
            if random is not None and random.indices is not None:
                drawn = self._draw(logits[random.indices], random)
                tokens.index_copy_(0, random.indices, drawn)
        return tokens

    def argmax(self, logits: Tensor) -> Tensor:
        """[L] int64, the first of equal maxima."""
        if self._on_cpu:  # ten times as fast as torch's, which is not vectorised
            return torch.from_numpy(logits.numpy().argmax(axis=-1))
        return logits.argmax(dim=-1)

    def _draw(self, logits: Tensor, random: RandomRows) -> Tensor:
        # Relative to the maximum, so that a small temperature cannot overflow.
        x = (logits - logits.amax(-1, keepdim=True)) / random.temperature[:, None]
        if random.filters is None:
            return draw(torch.softmax(x, dim=-1), random.uniforms)
        if not self._on_cpu:
            return sample_full(x, random.filters, random.uniforms)
        return _draw_on_host(x, random)


def _draw_on_host(x: Tensor, random: RandomRows) -> Tensor:
    """Few candidates first, more for the rows that need them, the vocabulary for the rest."""
    filters, uniforms = random.filters, random.uniforms
    assert filters is not None
    tokens = torch.empty(len(x), dtype=torch.int64)
    left = torch.arange(len(x))
    for base in _CANDIDATES:
        ids, settled = sample_candidates(x, filters, uniforms, base)
        tokens[left] = ids
        if bool(settled.all()):
            return tokens
        keep = ~settled
        left, x, uniforms, filters = left[keep], x[keep], uniforms[keep], filters.select(keep)
    tokens[left] = sample_full(x, filters, uniforms)
    return tokens
