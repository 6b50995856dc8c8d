"""Replayed kernels to captured launches, step by step; equal steps are worked out once.

In order of trust: the trace numbers graph nodes, and in their order the kernels are the captured
ones; the kernels in time order are the captured ones by name (on several streams: in order on each
stream); the sequences are aligned. What is not certain stays without a module.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import replace as with_fields

import numpy as np

from atom.trace.mapping.align import SAME, align, align_but_one
from atom.trace.mapping.choose import Candidate, Candidates
from atom.trace.mapping.names import Names
from atom.trace.mapping.notes import incomplete, notes
from atom.trace.mapping.streams import place_streams
from atom.trace.mapping.types import Mapped, Replay, Template
from atom.trace.types import I8, I32, I64, NONE, Match, RankTrace

ALIGNED_AT_MOST = 1_000_000  # kernels in all, some 15 seconds; equal sequences count once


@dataclass(frozen=True, slots=True)
class Found:
    """Of one step's rows, launch by launch."""

    template: I32
    node: I32
    match: I8
    doubtful: int  # rows that two modules might have launched
    renamed: int  # rows whose partner has another name
    skipped: int = 0  # rows that were not aligned because too many have been


def map_replays(
    trace: RankTrace, replays: Sequence[Replay], templates: Sequence[Template]
) -> Mapped:
    """Which captured launch each replayed kernel is, as far as that is certain."""
    mapper = _Mapper(trace, templates)
    found = [mapper.step(replay) for replay in replays]
    mapper.by_node(replays, found)
    rows = [row for replay in replays for row in replay.launches]
    return Mapped(
        row=_join(rows, np.int64),
        template=_join([f.template for f in found], np.int32),
        node=_join([f.node for f in found], np.int32),
        match=_join([f.match for f in found], np.uint8),
        warnings=incomplete(replays, found, templates),
        notes=notes(replays, found, templates),
    )


class _Mapper:
    def __init__(self, trace: RankTrace, templates: Sequence[Template]) -> None:
        self.trace, self.templates = trace, templates
        self.names = Names()
        self.candidates = Candidates(templates, self.names)
        self.name = self.names.of(trace.strings, trace.gpu.name, trace.gpu.kind)
        self.done: dict[tuple[object, ...], Found] = {}
        self.left = ALIGNED_AT_MOST

    def step(self, replay: Replay) -> Found:
        """Equal steps, i.e. of equal kernels on equal streams, share one answer."""
        cuts = tuple(len(r) for r in replay.launches)
        ordered = self._by_node(replay.launches)
        numbered = ordered is not None and sum(cuts) > 0
        if ordered is None:
            ordered = [np.arange(n) for n in cuts]
        rows = _join([r[o] for r, o in zip(replay.launches, ordered, strict=True)], np.int64)
        stream = _ranked(self.trace.gpu.stream[rows])
        key = (
            replay.kind,
            replay.size,
            cuts,
            numbered,
            self.name[rows].tobytes(),
            stream.tobytes(),
        )
        if key not in self.done:
            self.done[key] = self._map(replay, rows, stream, cuts, numbered)
        found = self.done[key]
        if not numbered:
            return found
        # The answer is in the order of the nodes, the rows were given in time order.
        back = _join(
            [np.argsort(o) + start for o, start in zip(ordered, _starts(cuts), strict=True)],
            np.int64,
        )
        return _reordered(found, back)

    def _by_node(self, launches: Sequence[I64]) -> list[I64] | None:
        """Order of each launch's rows by graph node; `None` if the trace does not number them, or
        on some stream in another order than they ran."""
        found = []
        for rows in launches:
            node = self.trace.gpu.graph_node[rows]
            if (node < 0).any() or len(np.unique(node)) < len(node):
                return None
            by_stream = np.argsort(self.trace.gpu.stream[rows], kind="stable")
            back = np.diff(node[by_stream]) < 0
            if (back & (np.diff(self.trace.gpu.stream[rows][by_stream]) == 0)).any():
                return None
            found.append(np.argsort(node, kind="stable"))
        return found

    def _map(
        self, replay: Replay, rows: I64, stream: I32, cuts: tuple[int, ...], numbered: bool
    ) -> Found:
        exact = self._exact(replay, rows, stream, numbered)
        if exact is not None:
            return exact
        if numbered:  # node numbers told nothing: once more by time
            back = [np.argsort(part) for part in np.split(rows, np.cumsum(cuts)[:-1])]
            order = _join(
                [o + start for o, start in zip(back, _starts(cuts), strict=True)], np.int64
            )
            found = self._map(replay, rows[order], stream[order], cuts, False)
            again = np.argsort(order)
            return _reordered(found, again)
        parts = [slice(a, a + n) for a, n in zip(_starts(cuts), cuts, strict=True)]
        each = [self._exact(replay, rows[p], stream[p], False) for p in parts]
        if len(parts) > 1 and all(e is not None for e in each):
            return _concatenate([e for e in each if e is not None])
        return self._inexact(replay, rows, stream, parts)

    def _exact(self, replay: Replay, rows: I64, stream: I32, numbered: bool) -> Found | None:
        """All of a template, nothing else."""
        name = self.name[rows]
        if numbered or len(np.unique(stream)) <= 1:
            one = self.candidates.equal(name, replay.kind, replay.size, ordered=True)
            if one is None:
                return None
            match = Match.GRAPH_NODE if numbered else Match.CAPTURE
            return _filled(one, np.arange(len(rows)), np.full(len(rows), match), 0, 0)
        one = self.candidates.equal(name, replay.kind, replay.size, ordered=False)
        if one is None:
            return None
        placed = place_streams(name, stream, one.name, one.stream, one.place)
        if not placed.complete:
            return None
        match = Match.CAPTURE if placed.certain else Match.ALIGNED
        return _filled(one, placed.partner, np.full(len(rows), match), 0, 0)

    def _inexact(self, replay: Replay, rows: I64, stream: I32, parts: Sequence[slice]) -> Found:
        """Aligned with the template most like the step, or each launch with its own."""
        name = self.name[rows]
        best = self.candidates.like(name, replay.kind, replay.size)
        if best is not None:
            pieces = self.candidates.pieces[best.template]
            if len(parts) > 1 and len(pieces) == len(parts):
                return _concatenate(
                    [self._align(piece, name[p], stream[p])
                     for piece, p in zip(pieces, parts, strict=True)]
                )  # fmt: skip
            return self._align(best, name, stream)
        if len(parts) == 1:
            return _nothing(len(rows))
        found = []
        for p in parts:
            own = self.candidates.like(name[p], replay.kind, replay.size)
            found.append(
                _nothing(p.stop - p.start) if own is None else self._align(own, name[p], stream[p])
            )
        return _concatenate(found)

    def _align(self, one: Candidate, name: I32, stream: I32) -> Found:
        if np.array_equal(name, one.name) and len(np.unique(stream)) <= 1:
            return _filled(one, np.arange(len(name)), np.full(len(name), Match.CAPTURE), 0, 0)
        if len(np.unique(stream)) > 1:
            placed = place_streams(name, stream, one.name, one.stream, one.place)
            match = np.where(placed.partner >= 0, Match.ALIGNED, Match.NONE)
            doubtful = int(((placed.partner < 0) & np.isin(name, one.name)).sum())
            return _filled(one, placed.partner, match, doubtful, 0)
        if not len(name) or not len(one):
            return _nothing(len(name))
        but_one = align_but_one(name, one.name, one.place)
        if but_one is not None:
            match = np.where(but_one.partner >= 0, Match.ALIGNED, Match.NONE)
            return _filled(one, but_one.partner, match, int(but_one.doubtful.sum()), 0)
        if self.left <= 0:
            return with_fields(_nothing(len(name)), skipped=len(name))
        self.left -= len(name)
        table, a, b = self.names.costs(name, one.name)
        aligned = align(a, b, one.place, table)
        if aligned is None:
            return _nothing(len(name))
        partner = aligned.partner
        has = partner >= 0
        same = has & (table[a, b[np.maximum(partner, 0)]] == SAME)
        # Without a gap every place is the same, and a kernel of another name changes none of them.
        at_place = aligned.gaps == 0 and bool(has.all()) and len(name) == len(one)
        match = np.where(has, Match.ALIGNED, Match.NONE)
        if at_place:
            match[same] = Match.CAPTURE
        renamed = has & (one.name[np.maximum(partner, 0)] != name) & ~same
        return _filled(one, partner, match, int(aligned.doubtful.sum()), int(renamed.sum()))

    def by_node(self, replays: Sequence[Replay], found: list[Found]) -> None:
        """Rows without a certain place whose graph node another, complete launch has shown."""
        sure = [one.match == Match.GRAPH_NODE for one in found]
        if all(each.all() for each in sure) or not any(each.any() for each in sure):
            return
        cuts = np.cumsum([len(one.match) for one in found])[:-1]
        rows = _join([row for replay in replays for row in replay.launches], np.int64)
        _, node = np.unique(self.trace.gpu.graph_node[rows], return_inverse=True)
        key = node.reshape(-1).astype(np.int64) * len(self.names.known) + self.name[rows]
        shown = _join(sure, np.bool_)
        template = _join([one.template for one in found], np.int32)
        number = _join([one.node for one in found], np.int32)
        keys, first = np.unique(key[shown], return_index=True)
        at = np.minimum(np.searchsorted(keys, key), len(keys) - 1)
        its_template = template[shown][first][at]
        its_number = number[shown][first][at]
        # A number that two graphs use tells nothing.
        clash = shown & ((its_template != template) | (its_number != number))
        known = ~shown & (keys[at] == key) & ~np.isin(key, key[clash])
        known &= self.trace.gpu.graph_node[rows] >= 0
        match = _join([one.match for one in found], np.uint8)
        template[known], number[known] = its_template[known], its_number[known]
        match[known] = Match.GRAPH_NODE
        parts = zip(*(np.split(x, cuts) for x in (template, number, match)), strict=True)
        for index, (one, (t, n, m)) in enumerate(zip(list(found), parts, strict=True)):
            doubtful = min(one.doubtful, int((m == 0).sum()))
            found[index] = with_fields(one, template=t, node=n, match=m, doubtful=doubtful)


def _reordered(found: Found, order: I64) -> Found:
    return with_fields(
        found,
        template=found.template[order],
        node=found.node[order],
        match=found.match[order],
    )


def _ranked(stream: I32) -> I32:
    """Streams numbered by their first appearance: numbers differ from run to run."""
    _, first, inverse = np.unique(stream, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse].astype(np.int32)


def _starts(cuts: Sequence[int]) -> list[int]:
    return np.concatenate([[0], np.cumsum(cuts)[:-1]]).astype(int).tolist() if cuts else []


def _filled(one: Candidate, partner: I64, match: I64, doubtful: int, renamed: int) -> Found:
    has = partner >= 0
    return Found(
        np.where(has, one.template, NONE).astype(np.int32),
        np.where(has, partner + one.start, NONE).astype(np.int32),
        match.astype(np.uint8),
        doubtful,
        renamed,
    )


def _nothing(n: int) -> Found:
    none = np.full(n, NONE, np.int32)
    return Found(none, none, np.zeros(n, np.uint8), 0, 0)


def _concatenate(found: Sequence[Found]) -> Found:
    return Found(
        _join([f.template for f in found], np.int32),
        _join([f.node for f in found], np.int32),
        _join([f.match for f in found], np.uint8),
        sum(f.doubtful for f in found),
        sum(f.renamed for f in found),
        sum(f.skipped for f in found),
    )


def _join(parts: Sequence[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate(parts).astype(dtype) if len(parts) else np.empty(0, dtype)
