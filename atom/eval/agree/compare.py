"""Two sides' answers become figures: agreement, divergence, where in the text it is worst."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from atom.eval.agree.decode import decode
from atom.eval.agree.findings import Figures, Report, Worst
from atom.eval.agree.pairing import Scored, paired, written
from atom.eval.agree.places import Places
from atom.eval.agree.types import Answers, Position

EDGES = (1, 16, 64, 256, 1024, 4096, 16384, 65536)  # of the table by position
WORST = 8
SHOWN = 3  # alternatives of a worst place
BEFORE = 60  # characters shown in front of it
TIE = 0.1  # nats: such a margin is small even beside 16-bit rounding


def compare(reference: Answers, tested: Answers) -> Report:
    """Both were asked the same prompts and scored the same texts.

    Raises `EvalError` where their tokens cannot be paired.
    """
    assert [p.ids for p in reference.prompts] == [p.ids for p in tested.prompts]
    p, q, paired_by = paired(reference, tested)
    places = Places(p, q)
    starts = np.array([len(prompt.ids) for prompt in reference.prompts])[places.prompt]
    wrong = ~places.agrees
    return Report(
        all=places.figures("all"),
        parts=_groups(
            places, [("prompt", places.place < starts), ("output", places.place >= starts)]
        ),
        by_position=_groups(places, _buckets(places.place)),
        by_kind=_by_kind(places, reference),
        agreement=places.share(places.agrees),
        mean_kl=places.interval(places.kl),
        disagreements=int(wrong.sum()),
        ties=int((places.margin[wrong] < TIE).sum()),
        covered=float(places.covered.mean()),
        exact=bool(places.exact.all()),
        worst=_worst(places, p, q, reference, tested),
        decode=decode(reference, tested),
        paired_by=paired_by,
    )


def _groups(places: Places, masks: list[tuple[str, Any]]) -> list[Figures]:
    return [places.figures(name, mask) for name, mask in masks if mask.any()]


def _buckets(place: Any) -> list[tuple[str, Any]]:
    ends = [*EDGES[1:], int(place.max()) + 1]
    return [
        (f"{low}-{high - 1}", (place >= low) & (place < high))
        for low, high in zip(EDGES, ends, strict=True)
        if high > low
    ]


def _by_kind(places: Places, reference: Answers) -> list[Figures]:
    kinds = np.array([prompt.kind for prompt in reference.prompts])
    of_place = kinds[places.prompt]
    return _groups(places, [(str(kind), of_place == kind) for kind in dict.fromkeys(kinds)])


def _worst(
    places: Places, p: Scored, q: Scored, reference: Answers, tested: Answers
) -> list[Worst]:
    order = np.argsort(-places.kl, kind="stable")[:WORST]
    return [_place(places, int(row), p, q, reference, tested) for row in order]


def _place(
    places: Places, row: int, p: Scored, q: Scored, reference: Answers, tested: Answers
) -> Worst:
    number, place = int(places.prompt[row]), int(places.place[row])
    prompt = reference.prompts[number]
    before = [written(position.tokens[0], reference.texts) for position in p[number][: place - 1]]
    ours, theirs = p[number][place - 1], q[number][place - 1]
    return Worst(
        prompt=number,
        kind=prompt.kind,
        position=place,
        part="prompt" if place < len(prompt.ids) else "output",
        kl=float(places.kl[row]),
        before="".join(before[-BEFORE:])[-BEFORE:],
        token=written(ours.tokens[0], reference.texts),
        reference=_likeliest(ours, reference),
        tested=_likeliest(theirs, tested),
    )


def _likeliest(position: Position, answers: Answers) -> list[tuple[str, float]]:
    pairs = sorted(zip(position.logprobs, position.tokens, strict=True), key=lambda pair: -pair[0])
    return [(written(token, answers.texts), math.exp(value)) for value, token in pairs[:SHOWN]]
