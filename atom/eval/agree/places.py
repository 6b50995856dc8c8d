"""Every place of every text as a row of columns; figures and intervals of sets of them.

Intervals are of 95 %: the prompts are drawn again with replacement, since the tokens of one text
are no independent samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from atom.bench.quantiles import wilson
from atom.bench.types import Interval
from atom.eval.agree import kl
from atom.eval.agree.findings import Figures
from atom.eval.agree.types import Position

RESAMPLES = 2000


class Places:
    """`prompt` and `place` number the texts and the tokens within each, from 0 and from 1."""

    def __init__(self, p: Sequence[Sequence[Position]], q: Sequence[Sequence[Position]]) -> None:
        rows = []
        for number, (ours, theirs) in enumerate(zip(p, q, strict=True)):
            for place, (a, b) in enumerate(zip(ours, theirs, strict=True), 1):
                found = kl.divergence(a, b)
                tops, others = kl.best(a), kl.best(b)
                agrees = bool(tops & others)
                margin = 0.0 if agrees else min(kl.margin(a, token) for token in others)
                rows.append(
                    (number, place, found.kl, found.covered, found.exact, agrees, margin,
                     a.logprobs[0], b.logprobs[0])
                )  # fmt: skip
        table = np.array(rows, dtype=np.float64).reshape(-1, 9)
        self.prompt = table[:, 0].astype(np.int64)
        self.place = table[:, 1].astype(np.int64)
        self.kl, self.covered = table[:, 2], table[:, 3]
        self.exact, self.agrees = table[:, 4].astype(bool), table[:, 5].astype(bool)
        self.margin, self.log_p, self.log_q = table[:, 6], table[:, 7], table[:, 8]

    def figures(self, name: str, chosen: Any = slice(None)) -> Figures:
        divergence = self.kl[chosen]
        delta = self.log_p[chosen] - self.log_q[chosen]
        median, p99 = np.quantile(divergence, [0.5, 0.99])
        return Figures(
            name=name,
            places=len(divergence),
            agreement=float(self.agrees[chosen].mean()),
            mean_kl=float(divergence.mean()),
            median_kl=float(median),
            p99_kl=float(p99),
            max_kl=float(divergence.max()),
            mean_delta=float(np.abs(delta).mean()),
            ppl_ratio=math.exp(min(float(delta.mean()), 700.0)),
        )

    def interval(self, values: Any) -> Interval:
        """Of the mean of `values` over places, drawing prompts again."""
        count = int(self.prompt.max()) + 1
        sums = np.bincount(self.prompt, values, count)
        sizes = np.bincount(self.prompt, minlength=count)
        drawn = np.random.default_rng(0).integers(0, count, (RESAMPLES, count))
        means = sums[drawn].sum(1) / np.maximum(sizes[drawn].sum(1), 1)
        low, high = np.quantile(means, [0.025, 0.975])
        return Interval(float(np.mean(values)), float(low), float(high))

    def share(self, values: Any) -> Interval:
        """As `interval`, for a share: never tighter than Wilson's of independent places."""
        found, n = self.interval(values.astype(np.float64)), len(values)
        low, high = wilson(found.value, n, 0.95)
        return Interval(found.value, min(found.low, low), max(found.high, high))
