"""Which captured graph a replay is of: by its kernels first, then by what the labels say."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from atom.trace.mapping.names import Names, family
from atom.trace.mapping.types import Template
from atom.trace.types import I32, I64

_LIKE = 0.25  # share of kernels that may differ in a template of the right size
_UNLIKE = 0.6  # beyond: no template of this graph


_Order = tuple[bool, int, int, bool, int]


@dataclass(slots=True)
class Candidate:
    """A template, or one of its pieces, in the numbers of `Names`."""

    template: int  # index
    start: int  # its nodes are [start, start + n) of the template's
    name: I32
    stream: I32
    place: I32
    whole: bool  # the template, not a piece
    bag: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.name)


class Candidates:
    """All templates and pieces, found by the kernels they hold."""

    def __init__(self, templates: Sequence[Template], names: Names) -> None:
        self.templates, self.names = templates, names
        self.pieces: list[list[Candidate]] = []  # of each template, in order
        self.whole: list[Candidate] = []
        self.by_sequence: dict[bytes, list[Candidate]] = {}
        self.by_set: dict[bytes, list[Candidate]] = {}
        for index, template in enumerate(templates):
            number = names.of(template.source.strings, template.name, template.gpu_kind)
            self.pieces.append(
                [_candidate(index, template, number, part) for part in _parts(template)]
            )
            whole = _candidate(index, template, number, slice(0, len(template)))
            whole.whole = True
            self.whole.append(whole)
        for one in self.whole + [piece for each in self.pieces for piece in each]:
            self.by_sequence.setdefault(one.name.tobytes(), []).append(one)
            self.by_set.setdefault(np.sort(one.name).tobytes(), []).append(one)

    def equal(self, name: I32, kind: str, size: int, *, ordered: bool) -> Candidate | None:
        """The template with just these kernels (in this order) that fits the label best."""
        key = name if ordered else np.sort(name)
        found = (self.by_sequence if ordered else self.by_set).get(key.tobytes(), [])
        whole = [c for c in found if c.whole]
        return min(whole, key=lambda c: self._order(c, kind, size), default=None)

    def like(self, name: I32, kind: str, size: int) -> Candidate | None:
        """The template most like it: of the label's size if that one is like it at all."""
        wanted = self._bag(name)
        ranked: list[tuple[bool, _Order, float, Candidate]] = []
        for one in self.whole:
            if not len(one):
                continue
            apart = self.unlike(wanted, one)
            if apart <= _UNLIKE:
                ranked.append((apart > _LIKE, self._order(one, kind, size), apart, one))
        best = min(ranked, key=lambda r: (r[0], r[2] if r[0] else 0, r[1]), default=None)
        return best[3] if best is not None else None

    def unlike(self, wanted: dict[str, int], one: Candidate) -> float:
        """Share of kernels, by name without sizes, that only one of the two has; 0 to 1."""
        if not one.bag:
            one.bag = self._bag(one.name)
        both = wanted.keys() | one.bag.keys()
        apart = sum(abs(wanted.get(k, 0) - one.bag.get(k, 0)) for k in both)
        nameless = sum(count for k, count in one.bag.items() if k.startswith("?"))
        total = sum(wanted.values()) + len(one)
        return max(0.0, apart - 2 * nameless) / total if total else 0.0

    def _bag(self, name: I32) -> dict[str, int]:
        known = list(self.names.known)
        bag: dict[str, int] = {}
        for number, count in zip(*np.unique(name, return_counts=True), strict=True):
            key = family(known[int(number)])
            bag[key] = bag.get(key, 0) + int(count)
        return bag

    def _order(self, one: Candidate, kind: str, size: int) -> _Order:
        """Of its kind first; nearest size (the larger of two, whose graph a padded step runs);
        captures before eager steps."""
        template = self.templates[one.template]
        other = bool(kind and template.kind) and (kind == "decode") != (template.kind == "decode")
        if size < 0 or template.size < 0:
            return (other, 1, 0, template.eager, one.template)
        apart = template.size - size
        nearness = 2 * apart if apart >= 0 else 1 - 2 * apart
        return (other, 0, nearness, template.eager, one.template)


def _parts(template: Template) -> Iterable[slice]:
    """Where each piece begins and ends."""
    cuts: I64 = np.flatnonzero(np.diff(template.piece)) + 1
    edges = [0, *cuts.tolist(), len(template)]
    return [slice(a, b) for a, b in itertools.pairwise(edges) if b > a]


def _candidate(index: int, template: Template, number: I32, part: slice) -> Candidate:
    return Candidate(
        template=index,
        start=part.start,
        name=np.ascontiguousarray(number[part]),
        stream=template.stream[part],
        place=template.place[part],
        whole=False,
    )
