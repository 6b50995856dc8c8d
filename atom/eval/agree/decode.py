"""The decode path: both sides' own greedy continuations, up to where they part.

Scoring a given text goes through prefill alone; a decode kernel, a captured graph or a KV cache
that is wrong shows here. Up to the first different token both have the same text before them, so
that their log-probabilities at each step are of the same thing.
"""

from __future__ import annotations

import numpy as np

from atom.eval.agree.findings import Decode, Split
from atom.eval.agree.kl import margin
from atom.eval.agree.pairing import readable, tells_ids, written
from atom.eval.agree.places import Places
from atom.eval.agree.types import Answers, Continuation, Position

ENDED = "<end of the answer>"


def decode(reference: Answers, tested: Answers) -> Decode | None:
    """None where nothing was generated."""
    p, q = _steps(reference, tested)
    rows_p: list[list[Position]] = []
    rows_q: list[list[Position]] = []
    splits, equal = [], 0
    for number, (ours, theirs) in enumerate(zip(p, q, strict=True)):
        same = _same(ours, theirs)
        ended = same == len(ours) == len(theirs)
        equal += ended
        if not ended:
            splits.append(_split(number, same, ours, theirs, reference, tested))
        shared = min(same + 1, len(ours), len(theirs))
        rows_p.append(ours[:shared])
        rows_q.append(theirs[:shared])
    if not any(rows_p):
        return None
    places = Places(rows_p, rows_q)
    chosen = np.array(
        [a.tokens[0] == b.tokens[0] for r, s in zip(rows_p, rows_q, strict=True)
         for a, b in zip(r, s, strict=True)]
    )  # fmt: skip
    places.agrees = chosen  # what was taken, not what might have been: equal maxima are no match
    return Decode(
        prompts=len(p),
        equal=equal,
        figures=places.figures("decoded"),
        agreement=places.share(chosen),
        mean_kl=places.interval(places.kl),
        splits=splits,
    )


def _steps(
    reference: Answers, tested: Answers
) -> tuple[list[list[Position]], list[list[Position]]]:
    p = [answer.positions for answer in reference.continued]
    q = [answer.positions for answer in tested.continued]
    if tells_ids(p) and tells_ids(q):
        return p, q
    return readable(p, reference, tested), readable(q, tested, reference)


def _same(p: list[Position], q: list[Position]) -> int:
    """How many tokens are equal before the first difference."""
    pairs = enumerate(zip(p, q, strict=False))
    differ = (i for i, (a, b) in pairs if a.tokens[0] != b.tokens[0])
    return next(differ, min(len(p), len(q)))


def _split(
    number: int,
    place: int,
    p: list[Position],
    q: list[Position],
    reference: Answers,
    tested: Answers,
) -> Split:
    ours = written(p[place].tokens[0], reference.texts) if place < len(p) else ENDED
    theirs = written(q[place].tokens[0], tested.texts) if place < len(q) else ENDED
    known = place < len(p) and place < len(q)
    return Split(
        prompt=number,
        kind=reference.prompts[number].kind,
        position=place,
        reference=ours,
        tested=theirs,
        margin=margin(p[place], q[place].tokens[0]) if known else None,
        tested_margin=margin(q[place], p[place].tokens[0]) if known else None,
    )


def lengths(answers: list[Continuation]) -> int:
    """Tokens generated."""
    return sum(len(answer.positions) for answer in answers)
