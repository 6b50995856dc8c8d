"""Helpers: rows to sample, a naive sampler to compare with, and a chi-square distance."""

from __future__ import annotations

import math

import numpy as np
import torch

from atom.engine.plan import NewRow
from atom.engine.runner.sampler import Sampled, Sampler
from atom.engine.runner.sampling_rows import SamplingRows, SamplingStep
from atom.engine.runner.upload import Upload
from atom.engine.sampling_params import SamplingParams

CPU = torch.device("cpu")


def new_row(
    row: int,
    sampling: SamplingParams,
    *,
    seed: int = 0,
    tokens: list[int] | None = None,
    num_prompt: int | None = None,
    eos: tuple[int, ...] = (),
) -> NewRow:
    tokens = [0] if tokens is None else tokens
    count = len(tokens) if num_prompt is None else num_prompt
    return NewRow(row, f"r{row}", tokens, count, sampling, eos, seed)


class Bench:
    """A sampler with rows in it, and a token pool that holds their tokens."""

    def __init__(self, vocab: int, rows: list[NewRow], width: int = 64) -> None:
        self.vocab = vocab
        self.rows = SamplingRows(max(r.row for r in rows) + 1, vocab)
        self.pool = torch.zeros((len(self.rows.flags), width), dtype=torch.int32)
        self.sampler = Sampler(vocab, CPU)
        self.lengths = {}
        for new in rows:
            self.rows.enter(new)
            self.pool[new.row, : len(new.token_ids)] = torch.tensor(new.token_ids)
            self.lengths[new.row] = len(new.token_ids)

    def stage(self, rows: list[int], positions: list[int] | None = None) -> SamplingStep:
        where = [self.lengths[r] for r in rows] if positions is None else positions
        upload = Upload(CPU)
        step = self.rows.stage(np.array(rows, np.int64), np.array(where, np.int64), upload)
        upload.send()
        return step

    def sample(
        self, logits: torch.Tensor, rows: list[int], positions: list[int] | None = None
    ) -> Sampled:
        return self.sampler(logits.clone(), self.pool, self.stage(rows, positions))


def kept_tokens(logits: np.ndarray, p: SamplingParams) -> np.ndarray:
    """[V] probabilities after temperature, min_p, top_k and top_p, ties kept; float64, by sorting.

    `logits` already hold biases and penalties.
    """
    x = logits.astype(np.float64) / p.temperature
    probs = np.exp(x - x.max())
    probs /= probs.sum()
    if p.min_p > 0:
        probs[probs < p.min_p * probs.max()] = 0
    if 0 < p.top_k < len(probs):
        probs[probs < np.sort(probs)[-p.top_k]] = 0
    probs /= probs.sum()
    if p.top_p < 1:
        descending = np.sort(probs)[::-1]
        before = np.cumsum(descending) - descending
        last = descending[before < p.top_p][-1]
        probs[probs < last] = 0
    return probs / probs.sum()


def naive_draw(probs: np.ndarray, uniform: float) -> int:
    return int(np.searchsorted(np.cumsum(probs), uniform * probs.sum(), side="right"))


def chi_square_z(counts: np.ndarray, probs: np.ndarray) -> float:
    """Standard deviations of chi-square above its mean; rare tokens share a bin."""
    total = counts.sum()
    assert counts[probs == 0].sum() == 0, "a token that was filtered out was drawn"
    common = probs * total >= 5
    expected = np.append(probs[common] * total, probs[~common].sum() * total)
    observed = np.append(counts[common], counts[~common].sum())
    used = expected > 0
    statistic = ((observed - expected)[used] ** 2 / expected[used]).sum()
    freedom = max(int(used.sum()) - 1, 1)
    return float((statistic - freedom) / math.sqrt(2 * freedom))
