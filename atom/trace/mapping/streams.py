"""Kernels of a graph that ran on several streams at once, each found its place in the capture.

Time orders only what shares a stream: of two branches either may be ahead. What holds is that on
each stream kernels run in the order of capture, so the k-th of a name on the only stream that has
the name is the k-th captured. Those found bracket the others between them on their stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atom.trace.types import I32, I64, NONE

_ROUNDS = 16


@dataclass(frozen=True, slots=True)
class Placed:
    """[n] for each replayed kernel."""

    partner: I64  # index into the capture; -1: none, or not certain
    complete: bool  # one to one: as many of every name replayed as captured, and all placed
    certain: bool  # and by order alone, not by which stream seems to be which


def place_streams(
    name: I32, stream: I32, captured: I32, captured_stream: I32, place: I32
) -> Placed:
    """Partners of kernels given in time order; equal numbers are equal names."""
    state = _State(name, stream, captured, captured_stream, place)
    state.only_stream()
    state.learn_streams()
    for _ in range(_ROUNDS):
        if not state.bracket():
            break
        state.learn_streams()
    state.same_place()
    same = np.array_equal(np.sort(name), np.sort(captured))
    complete = same and bool((state.partner >= 0).all())
    return Placed(state.partner, complete, complete and not state.by_stream)


class _State:
    def __init__(
        self, name: I32, stream: I32, captured: I32, captured_stream: I32, place: I32
    ) -> None:
        self.name, self.stream = name, stream
        self.captured, self.captured_stream, self.place = captured, captured_stream, place
        self.partner = np.full(len(name), NONE, np.int64)
        self.taken: NDArray[np.bool_] = np.zeros(len(captured), bool)
        self.allowed: dict[int, int] = {}  # stream of the replay -> stream of the capture
        self.by_stream = False  # whether `allowed` has ruled out any candidate
        self.nodes = {int(n): np.flatnonzero(captured == n) for n in np.unique(name)}

    def assign(self, rows: Sequence[int] | I64, nodes: Sequence[int] | I64) -> None:
        self.partner[rows] = nodes
        self.taken[nodes] = True

    def only_stream(self) -> None:
        """Names that one stream has alone, all of them replayed: by their order."""
        for number, nodes in self.nodes.items():
            rows = np.flatnonzero(self.name == number)
            if len(rows) == len(nodes) and len(np.unique(self.stream[rows])) == 1:
                self.assign(rows, nodes)

    def learn_streams(self) -> None:
        """Which stream of the capture each replayed one is, as far as all found kernels agree."""
        done = np.flatnonzero(self.partner >= 0)
        ours, theirs = self.stream[done], self.captured_stream[self.partner[done]]
        pairs = {(int(a), int(b)) for a, b in zip(ours, theirs, strict=True)}
        left = [a for a, _ in pairs]
        right = [b for _, b in pairs]
        self.allowed = {
            a: b for a, b in pairs if b >= 0 and left.count(a) == 1 and right.count(b) == 1
        }

    def _groups(self) -> list[tuple[list[int], I64]]:
        """Kernels not yet placed that share stream, name and bracket, with their candidates."""
        found: list[tuple[list[int], I64]] = []
        for stream in np.unique(self.stream):
            rows = np.flatnonzero(self.stream == stream)
            known = self.partner[rows]
            low = np.maximum.accumulate(np.where(known >= 0, known, NONE))
            upper = np.where(known >= 0, known, len(self.captured))
            high = np.minimum.accumulate(upper[::-1])[::-1]
            groups: dict[tuple[int, int, int], list[int]] = {}
            for at in np.flatnonzero(known < 0):
                key = (int(self.name[rows[at]]), int(low[at]), int(high[at]))
                groups.setdefault(key, []).append(int(rows[at]))
            for (number, after, before), members in groups.items():
                nodes = self.nodes[number]
                fits = (nodes > after) & (nodes < before) & ~self.taken[nodes]
                wanted = self.allowed.get(int(stream))
                if wanted is not None:
                    other = fits & (self.captured_stream[nodes] != wanted)
                    self.by_stream |= bool(other.any())
                    fits &= ~other
                found.append((members, nodes[fits]))
        return found

    def bracket(self) -> bool:
        """Place groups that have exactly as many candidates, which no other group may want."""
        groups = self._groups()
        wanted = np.zeros(len(self.captured), np.int64)
        for _, candidates in groups:
            wanted[candidates] += 1
        sure = [g for g in groups if len(g[0]) == len(g[1]) and (wanted[g[1]] == 1).all()]
        for members, candidates in sure:
            if len(members):
                self.assign(members, candidates)
        return bool(sure)

    def same_place(self) -> None:
        """Whichever of the candidates it was: all belong to one module."""
        for members, candidates in self._groups():
            number = int(self.name[members[0]])
            nodes = self.nodes[number]
            waiting = int(((self.name == number) & (self.partner < 0)).sum())
            free = candidates[~self.taken[candidates]]
            # Fewer captured than replayed: one of them is extra, and nothing says which.
            enough = waiting <= int((~self.taken[nodes]).sum()) and len(members) <= len(free)
            if enough and len(np.unique(self.place[candidates])) == 1:
                self.assign(members, free[: len(members)])
