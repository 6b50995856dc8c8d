"""Which captured graph a replay is of: by its kernels first, then by what the labels say."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from atom.trace.mapping.names import Names, family
from atom.trace.mapping.types import Template
from atom.trace.types import I32, I64

_UNLIKE = 0.6  # share of kernels that differ, beyond which it is no template of this graph
_AS_GOOD = 0.02  # of that share: what one lost kernel must not decide

_Order = tuple[bool, int, int, bool, int]


@dataclass(slots=True)
class Candidate:
    """A template, or one of its pieces, in the numbers of `Names`."""

    template: int  # index
    start: int  # its nodes are [start, start + n) of the template's
    name: I32
    stream: I32
    place: I32
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
            self.whole.append(_candidate(index, template, number, slice(0, len(template))))
        for one in self.whole:
            self.by_sequence.setdefault(one.name.tobytes(), []).append(one)
            self.by_set.setdefault(np.sort(one.name).tobytes(), []).append(one)

    def equal(self, name: I32, kind: str, size: int, *, ordered: bool) -> Candidate | None:
        """The template with just these kernels (in this order) that fits the label best."""
        key = name if ordered else np.sort(name)
        found = (self.by_sequence if ordered else self.by_set).get(key.tobytes(), [])
        return min(found, key=lambda c: self._order(c, kind, size), default=None)

    def like(self, name: I32, kind: str, size: int) -> Candidate | None:
        """The template most like it by its kernels; of several as good, the label's."""
        wanted = self._bag(name)
        apart = [(self.unlike(wanted, one), one) for one in self.whole if len(one)]
        least = min((share for share, _ in apart), default=1.0)
        if least > _UNLIKE:
            return None
        best = [one for share, one in apart if share <= least + _AS_GOOD]
        return min(best, key=lambda one: self._order(one, kind, size))

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
    )
