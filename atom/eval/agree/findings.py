"""The figures that a comparison of two sides gives. Divergences and differences are in nats."""

from __future__ import annotations

import msgspec

from atom.bench.types import Interval


class Figures(msgspec.Struct):
    """Of a set of places of texts."""

    name: str
    places: int
    agreement: float
    mean_kl: float
    median_kl: float
    p99_kl: float
    max_kl: float
    mean_delta: float  # |difference| of the text's own token's log-probability
    ppl_ratio: float  # perplexity of the text by the tested side / by the reference


class Worst(msgspec.Struct):
    """One place where the two differ most."""

    prompt: int
    kind: str
    position: int
    part: str  # prompt, output
    kl: float
    before: str  # the text in front of it, its end
    token: str  # what stands there
    reference: list[tuple[str, float]]  # the likeliest: text, probability
    tested: list[tuple[str, float]]


class Split(msgspec.Struct):
    """Where the tested side's own answer leaves the reference's."""

    prompt: int
    kind: str
    position: int  # of the answer: tokens that are equal before it
    reference: str  # its token there
    tested: str
    margin: float | None  # by which the reference prefers its own; None where one had ended
    tested_margin: float | None  # by which the tested side prefers its own


class Decode(msgspec.Struct):
    """The continuations as decoded by both, up to the first difference of each."""

    prompts: int
    equal: int  # continuations that are the same to their end
    figures: Figures  # of the places up to and with the first difference
    agreement: Interval
    mean_kl: Interval
    splits: list[Split]


class Report(msgspec.Struct):
    """What `--agree` found, before it is judged."""

    all: Figures
    parts: list[Figures]  # prompt, output
    by_position: list[Figures]
    by_kind: list[Figures]
    agreement: Interval
    mean_kl: Interval
    disagreements: int
    ties: int  # of them: the reference's margin is below 0.1 nat
    covered: float  # mean of the reference's probability that both told
    exact: bool  # every token of the vocabulary was told: divergences are no lower bounds
    worst: list[Worst]
    decode: Decode | None
    paired_by: str  # "ids", "texts"
    notes: list[str] = []
