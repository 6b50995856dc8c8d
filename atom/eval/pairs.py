"""Which sample of one run belongs to which of another: by document, else by what was asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

from atom.eval.types import Sample
from atom.eval.wording import choice, question


class Pair(NamedTuple):
    a: Sample
    b: Sample


class Pairs(NamedTuple):
    """Pairs in A's order, what is left over, and what a reader has to know of the pairing."""

    pairs: list[Pair]
    only_a: list[Sample]
    only_b: list[Sample]
    notes: list[str]


def pair(a: Sequence[Sample], b: Sequence[Sample]) -> Pairs:
    """The samples of one task of two runs.

    First by number and hash of the document, then by its hash, then (the same rows may come from
    another file, with other fields) by question, choices and target. A key that several samples of
    a run have pairs none of them.
    """
    found: dict[int, int] = {}
    by_question = 0
    for key in (_document, _hash, _question):
        matched = _match(a, b, found, key)
        found |= matched
        if key is _question:
            by_question = len(matched)
    taken = set(found.values())
    pairs = [Pair(a[i], b[found[i]]) for i in sorted(found)]
    only_a = [sample for i, sample in enumerate(a) if i not in found]
    only_b = [sample for i, sample in enumerate(b) if i not in taken]
    return Pairs(pairs, only_a, only_b, _notes(pairs, by_question, only_a, only_b))


def _document(sample: Sample) -> Hashable:
    return sample.doc_id, sample.doc_hash


def _hash(sample: Sample) -> Hashable:
    return sample.doc_hash


def _question(sample: Sample) -> Hashable:
    choices = tuple(choice(answer) for answer in sample.answers if "logprob" in answer)
    return question(sample), choices, sample.target.strip()


def _match(
    a: Sequence[Sample],
    b: Sequence[Sample],
    found: dict[int, int],
    key: Callable[[Sample], Hashable],
) -> dict[int, int]:
    taken = set(found.values())
    left = {i: key(sample) for i, sample in enumerate(a) if i not in found}
    right = {i: key(sample) for i, sample in enumerate(b) if i not in taken}
    counts = [Counter(side.values()) for side in (left, right)]
    where = {value: i for i, value in right.items() if counts[1][value] == 1}
    return {i: where[v] for i, v in left.items() if counts[0][v] == 1 and v in where}


def _notes(
    pairs: Sequence[Pair], by_question: int, only_a: Sequence[Sample], only_b: Sequence[Sample]
) -> list[str]:
    notes = []
    if by_question:
        notes.append(
            f"{by_question:,} of {len(pairs):,} pairs were found by question and target: their "
            "documents have other fields in the two runs"
        )
    if only_a or only_b:
        notes.append(
            f"{len(only_a):,} samples of A and {len(only_b):,} of B have no partner: they are "
            "left out, and the scores here are those of the pairs"
        )
    other = sum(p.a.prompt != p.b.prompt for p in pairs)
    if other:
        notes.append(
            f"{other:,} of {len(pairs):,} prompts are not the same text (other examples, another "
            "template): a difference may come from that, not from the model"
        )
    return notes
