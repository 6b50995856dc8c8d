"""Lengths of requests: what a spread means in each convention, and what really came out."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from atom.bench.types import Job
from atom.bench.workloads import draw
from atom.bench.workloads.spec import LengthConvention


class LengthRange(NamedTuple):
    """A uniform distribution over the whole numbers `low` to `high`, both included."""

    low: int
    high: int

    def at(self, *key: object) -> int:
        """The length that belongs to this key of the seed."""
        return draw.integer(self.low, self.high, *key)

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low} to {self.high}"


def bounds(length: int, ratio: float | None, convention: LengthConvention | None) -> LengthRange:
    """The range that a spread of `ratio` gives around or below `length`; never below 1.

    vllm: [L(1 - r), L(1 + r)], r = 0 is exact (`vllm bench serve`, aiperf).
    inferencex: [L r, L], r = 1 is exact (InferenceX, upstream's benchmark_serving).
    sglang: the same range, named apart since its own default is 0: [1, L].
    The lower end is rounded down, vLLM's upper end up, as each of them does. None: exact.
    """
    if ratio is None:
        return LengthRange(length, length)
    if convention == "vllm":
        # The products are rounded first: 1000 * (1 + 0.1) is 1100.0000000000002.
        low, high = round(length * (1 - ratio), 6), round(length * (1 + ratio), 6)
        return LengthRange(max(1, math.floor(low)), max(1, math.ceil(high)))
    assert convention in ("inferencex", "sglang"), convention
    return LengthRange(max(1, math.floor(round(length * ratio, 6))), length)


class Spread(NamedTuple):
    """Lengths that really came out."""

    low: int
    mean: float
    high: int

    def __str__(self) -> str:
        if self.low == self.high:
            return f"{self.low}"
        return f"min {self.low}, mean {self.mean:.1f}, max {self.high}"


class Realised(NamedTuple):
    """The lengths of some jobs, over all their turns, as the workload means them.

    `input` covers the `known_inputs` turns of `requests` whose length is known before they run.
    """

    requests: int
    known_inputs: int
    input: Spread | None
    output: Spread | None

    def __str__(self) -> str:
        """For people: "input 1024, output min 103, mean 115.9, max 128 tokens"."""
        if not self.requests:
            return "no requests"
        text = f"input {self.input if self.input else 'as the server counts it'}"
        if 0 < self.known_inputs < self.requests:
            text += f" (of {self.known_inputs} first turns among {self.requests})"
        return f"{text}, output {self.output} tokens"


def realised(jobs: Iterable[Job]) -> Realised:
    """Minimum, mean and maximum of what `jobs` ask for."""
    turns = [turn for job in jobs for turn in job.turns]
    inputs = [turn.input_len for turn in turns if turn.input_len is not None]
    outputs = [turn.max_tokens for turn in turns]
    return Realised(len(turns), len(inputs), _spread(inputs), _spread(outputs))


def _spread(values: list[int]) -> Spread | None:
    return Spread(min(values), sum(values) / len(values), max(values)) if values else None
