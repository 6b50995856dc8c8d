"""`IdPool`: what the pools of window blocks and of checkpoints have in common.

The prefix cache has one chain of entries, and an entry may carry a window block and a checkpoint
too. An id is in one of three states: referenced, idle (unreferenced, but an entry carries it) or
free. Idle ones are evicted in this order, each group's least recently used first:

1. passed: their sequence ran on without them, and no hit has wanted them so far;
2. ends of sequences that no hit has wanted so far;
3. wanted by a hit; they may fill three quarters of the pool, the oldest then count as ends.

So neither a long prompt nor many that never come again drive out the prefixes that are in use.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol

KEPT_SHARE = 0.75  # of the pool, for what hits have wanted


class Entry(Protocol):
    """What `block_manager.CachedBlock` has for pools; -1: it carries none."""

    window_id: int
    checkpoint: int


class IdPool:
    """Ids 0 .. size - 1 and who has them. Subclasses say where an entry notes its id."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.num_cached = 0  # carried by an entry, referenced or idle
        self._ref_counts = [0] * size
        self._entries: list[Entry | None] = [None] * size
        self._wanted = bytearray(size)  # a hit has used it, or is expected to
        self._passed: OrderedDict[int, None] = OrderedDict()  # these oldest first
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._kept: OrderedDict[int, None] = OrderedDict()
        self._free = list(range(size - 1, -1, -1))

    @staticmethod
    def note(entry: Entry, id_: int) -> None:
        raise NotImplementedError

    @property
    def num_used(self) -> int:
        idle = len(self._passed) + len(self._idle) + len(self._kept)
        return self.size - len(self._free) - idle

    def take(self) -> int | None:
        """A referenced id whose content is free to be overwritten; None: all are referenced."""
        if self._free:
            id_ = self._free.pop()
        else:
            idle = self._passed or self._idle or self._kept
            if not idle:
                return None
            id_, _ = idle.popitem(last=False)
            self._drop_entry(id_)
        self._ref_counts[id_] = 1
        self._wanted[id_] = False
        return id_

    def pin(self, id_: int) -> None:
        """Another reference, by a hit."""
        if self._ref_counts[id_] == 0:
            self._leave_idle(id_)
        self._ref_counts[id_] += 1
        self._wanted[id_] = True

    def let_go(self, id_: int, passed: bool = False) -> None:
        self._ref_counts[id_] -= 1
        assert self._ref_counts[id_] >= 0, id_
        if self._ref_counts[id_]:
            return
        if self._entries[id_] is None:
            self._free.append(id_)
        elif self._wanted[id_]:
            self._keep(id_)
        elif passed:
            self._passed[id_] = None
        else:
            self._idle[id_] = None

    def _keep(self, id_: int) -> None:
        self._kept[id_] = None
        if len(self._kept) > self.size * KEPT_SHARE:
            oldest, _ = self._kept.popitem(last=False)
            self._wanted[oldest] = False
            self._idle[oldest] = None

    def demote(self, id_: int) -> None:
        """An idle id is among the first to go, unless a hit has wanted it."""
        if id_ in self._idle:
            del self._idle[id_]
            self._passed[id_] = None

    def want(self, id_: int) -> None:
        """A hit is expected of a referenced id: it is not evicted before others."""
        self._wanted[id_] = True

    def attach(self, id_: int, entry: Entry) -> None:
        """The entry, which carries none, carries this one, whose content has been computed."""
        assert self._entries[id_] is None, id_
        assert self._ref_counts[id_] > 0, id_
        self._entries[id_] = entry
        self.note(entry, id_)
        self.num_cached += 1

    def forget(self, id_: int) -> None:
        """The entry that carries it goes."""
        self._drop_entry(id_)
        if self._ref_counts[id_] == 0:
            self._leave_idle(id_)
            self._free.append(id_)

    def _drop_entry(self, id_: int) -> None:
        entry = self._entries[id_]
        assert entry is not None, id_
        self.note(entry, -1)
        self._entries[id_] = None
        self._wanted[id_] = False
        self.num_cached -= 1

    def _leave_idle(self, id_: int) -> None:
        for group in (self._idle, self._passed, self._kept):
            if id_ in group:
                del group[id_]
                return
        raise AssertionError(f"{id_} is not idle")

    def check_invariants(self, counts: list[int]) -> None:
        """Assert that every id is in one state and that `counts` are the references."""
        name = type(self).__name__
        assert counts == self._ref_counts, f"{name}: reference counts differ from the tables"
        free, idle = set(self._free), {*self._passed, *self._idle, *self._kept}
        used = {id_ for id_, count in enumerate(counts) if count}
        groups = (self._free, self._passed, self._idle, self._kept, used)
        total = sum(len(group) for group in groups)
        assert total == self.size == len(free | idle | used), f"{name}: an id is lost"
        for id_, entry in enumerate(self._entries):
            assert entry is not None or id_ not in idle, f"{name}: {id_} is idle for none"
            assert entry is None or id_ not in free, f"{name}: {id_} is free and carried"
        assert self.num_cached == sum(e is not None for e in self._entries), name
