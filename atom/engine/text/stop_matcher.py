"""Stop strings found in a stream of text: an Aho-Corasick automaton over characters.

One dictionary lookup per character whatever the number of stops, and its state says exactly how
much text must be held back: the longest end of the text that may still become a stop string.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """The automaton of some stop strings. Immutable: a stream keeps its own state (an int).

    State 0 is the root. The match that *ends* first wins, so a stream never waits for text that
    the model has yet to make; of several that end together, the longest.
    """

    __slots__ = ("_fail", "_hold", "_match", "_next", "stops")

    def __init__(self, stops: Sequence[str]) -> None:
        assert all(stops), "an empty stop string is refused at the door"
        self.stops = tuple(stops)
        self._next: list[dict[str, int]] = [{}]
        self._fail: list[int] = [0]
        self._match: list[int] = [-1]  # index of the longest stop that ends in this state
        depth = [0]
        for index, stop in enumerate(self.stops):
            self._insert(index, stop, depth)
        self._hold: list[int] = [0] * len(depth)
        self._link(depth)

    def _insert(self, index: int, stop: str, depth: list[int]) -> None:
        state = 0
        for char in stop:
            following = self._next[state].get(char)
            if following is None:
                following = len(self._next)
                self._next[state][char] = following
                self._next.append({})
                self._fail.append(0)
                self._match.append(-1)
                depth.append(depth[state] + 1)
            state = following
        if self._match[state] < 0:
            self._match[state] = index

    def _link(self, depth: list[int]) -> None:
        """Breadth first: a state's failure link is shallower, hence ready."""
        queue = list(self._next[0].values())
        for state in queue:
            fail = self._fail[state]
            if self._match[state] < 0:
                self._match[state] = self._match[fail]
            # A finished stop that nothing continues can only go on as something shorter.
            self._hold[state] = depth[state] if self._next[state] else self._hold[fail]
            for char, following in self._next[state].items():
                self._fail[following] = self.step(fail, char)
                queue.append(following)

    def step(self, state: int, char: str) -> int:
        while True:
            following = self._next[state].get(char)
            if following is not None:
                return following
            if state == 0:
                return 0
            state = self._fail[state]

    def hold(self, state: int) -> int:
        """How many characters at the end of the text may be the beginning of a stop string."""
        return self._hold[state]

    def scan(self, state: int, text: str) -> tuple[int, int, int]:
        """Read `text` up to the first match: (state, characters read, index of the stop or -1)."""
        match, follow, root = self._match, self.step, self._next[0]
        for position, char in enumerate(text, 1):
            state = follow(state, char) if state else root.get(char, 0)
            if match[state] >= 0:
                return state, position, match[state]
        return state, len(text), -1

    def skip(self, state: int, text: str) -> int:
        """Read `text` without looking for matches; returns the state."""
        for char in text:
            state = self.step(state, char)
        return state
