"""The prefix cache and the blocks, the slow and obvious way: lists, tuples and no hashes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Entry:
    """A published block. `key` is the salt and every token up to the block's end."""

    serial: int
    block_id: int
    key: tuple[str, tuple[int, ...]]
    parent: int  # serial of the entry before it; 0 for a first block
    window_id: int = -1  # the window block that holds the same tokens
    checkpoint: int = -1  # the slot of the state at its end


class NaiveCache:
    """`window`: tokens that window caches show, 0 for none."""

    def __init__(self, block_size: int, window: int = 0, has_state: bool = False) -> None:
        self.block_size = block_size
        self.window = window
        self.has_state = has_state
        self.entries: list[Entry] = []
        self.users: dict[int, list[str]] = {}  # block -> who holds it
        self._serial = 0

    def match(self, salt: str, tokens: list[int]) -> list[Entry]:
        """The published blocks of the longest head of `tokens` that leaves a token to compute and
        that computing can go on from."""
        hits: list[Entry] = []
        parent = 0
        for end in range(self.block_size, len(tokens), self.block_size):
            entry = self.find(salt, tokens[:end], parent)
            if entry is None:
                break
            hits.append(entry)
            parent = entry.serial
        while hits and not self.goes_on(hits):
            hits.pop()
        return hits

    def goes_on(self, hits: list[Entry]) -> bool:
        """Whether everything that the token after `hits` needs is alive."""
        if self.has_state and hits[-1].checkpoint < 0:
            return False
        end = len(hits) * self.block_size
        seen = range(max(0, end - self.window + 1), end) if self.window else range(0)
        return all(hits[position // self.block_size].window_id >= 0 for position in seen)

    def find(self, salt: str, head: list[int], parent: int) -> Entry | None:
        key = (salt, tuple(head))
        return next((e for e in self.entries if e.key == key and e.parent == parent), None)

    def hold(self, name: str, block_ids: list[int]) -> None:
        for block_id in block_ids:
            self.users.setdefault(block_id, []).append(name)

    def drop(self, name: str) -> None:
        for block_id in list(self.users):
            if name in self.users[block_id]:
                self.users[block_id].remove(name)
                if not self.users[block_id]:
                    del self.users[block_id]

    def overwrite(self, block_id: int) -> None:
        """The block was handed out anew: what it held is gone."""
        self.entries = [e for e in self.entries if e.block_id != block_id]

    def overwrite_window(self, window_id: int) -> None:
        for entry in self.entries:
            if entry.window_id == window_id:
                entry.window_id = -1

    def overwrite_checkpoint(self, slot: int) -> None:
        for entry in self.entries:
            if entry.checkpoint == slot:
                entry.checkpoint = -1

    def entry(self, serial: int) -> Entry | None:
        return next((e for e in self.entries if e.serial == serial), None)

    def publish(self, block_id: int, salt: str, head: list[int], parent: int) -> int:
        """Enter a computed block; returns the serial that stands for this content (or -1)."""
        if parent != 0 and all(e.serial != parent for e in self.entries):
            return -1  # what precedes it was evicted: nobody could find it
        existing = self.find(salt, head, parent)
        if existing is not None:
            return existing.serial
        # The same content under an evicted parent cannot be found any more; it gives way.
        key = (salt, tuple(head))
        self.entries = [e for e in self.entries if e.key != key]
        self._serial += 1
        self.entries.append(Entry(self._serial, block_id, key, parent))
        return self._serial
