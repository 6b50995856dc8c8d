"""A file as lists of events, and the keys beside them; says what was damaged or is no trace."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from atom.trace.errors import TraceError
from atom.trace.reader import event as ev
from atom.trace.reader.chunks import Chunks
from atom.trace.reader.source import Source, looks_like

_EVENTS = re.compile(rb'"traceEvents"\s*:\s*\[')
_TIMES = re.compile(rb'"ts"\s*:\s*"?(\d+)\.\d')
_BOM = b"\xef\xbb\xbf"
_SURE = 64 << 10  # bytes behind the list's end after which it is one, if no event is in them
_BESIDE = 64 << 20  # bytes of keys before, and after, the events
_NO_NS = 2**43  # microseconds from which on a float64 has no ns


class EventStream:
    """`events` once; then `other`, `warnings` and the counters are complete."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.source = Source(path)
        self.chunks = Chunks()
        self.other: dict[str, Any] = {}
        self.num_events = 0
        self.exact = False  # events are `ExactEvent`
        self._bare = False  # a list without an object round it
        self._notes: list[str] = []

    def events(self) -> Iterator[list[ev.Event]]:
        """Lists of events, in the file's order.

        Raises:
            TraceError: this is no trace; says what it looks like.
        """
        seen = False
        for found in self._chunks():
            seen = seen or any(isinstance(event.ph, str) for event in found)
            self.num_events += len(found)
            yield found
        if not seen and (self.num_events or self._bare):
            what = "a JSON list" if self._bare else "it has traceEvents"
            raise TraceError(f"{self.path}: not a trace: {what}, but no event in it has a ph")
        self._finish()

    def _chunks(self) -> Iterator[list[ev.Event]]:
        chunks, is_end = self.chunks, False  # the list's end, beyond doubt
        with contextlib.closing(iter(self.source)) as blocks:
            text = self._begin(blocks)
            while True:
                if chunks.ended:
                    chunks.tail = (chunks.tail + text)[: _BESIDE + 1]
                    text = b""
                    if not is_end and len(chunks.tail) > _SURE:
                        text = chunks.reopen()
                        is_end = chunks.ended
                if not chunks.ended:
                    found, text = chunks.take(text)
                    yield found
                block = next(blocks, b"")
                if not block:
                    break
                text += block
        while not is_end:
            if chunks.ended:
                text = chunks.reopen()
            is_end = chunks.ended
            if not is_end:
                yield chunks.last(text)
                is_end = not chunks.ended  # all text was taken

    def _begin(self, blocks: Iterator[bytes]) -> bytes:
        """Reads the keys before the events; what was read beyond them."""
        head = b""
        for block in blocks:
            head += block
            start = head[:64].removeprefix(_BOM).lstrip()
            if start.startswith(b"["):
                self._bare = True
                return self._choose(head[head.index(b"[") + 1 :])
            if start and not start.startswith(b"{"):
                break
            if found := _EVENTS.search(head):
                self._keys(head[: found.end()] + b"]}", "before")
                return self._choose(head[found.end() :])
            if len(head) > _BESIDE:
                break
        raise TraceError(f"{self.path}: not a trace: {self._what(head)}")

    def _choose(self, text: bytes) -> bytes:
        """Exact times cost time: they are for files whose clock needs them."""
        times = _TIMES.finditer(text[: 1 << 20])
        if any(int(found.group(1)) >= _NO_NS for found in times):
            self.exact, self.chunks.decoder = True, ev.EXACT
        return text

    def _what(self, head: bytes) -> str:
        text = head.removeprefix(_BOM).lstrip()
        if not text.startswith(b"{"):
            return looks_like(self.path, head)
        try:
            keys = list(msgspec.json.decode(ev.repaired(text)))
        except (msgspec.DecodeError, RecursionError):
            return "it begins as JSON, but traceEvents was not found before it ends or breaks"
        named = ", ".join(map(str, keys[:6])) + (", ..." if len(keys) > 6 else "")
        return f"JSON without traceEvents; its keys are {named}" if keys else "an empty JSON object"

    def _finish(self) -> None:
        tail = self.chunks.tail.strip()
        if not self.chunks.ended:
            self.source.cut |= not self._bare or bool(self.chunks.cut_bytes)
        elif len(tail) > _BESIDE:
            self._notes.append("the keys after traceEvents were left out: they are too long")
        elif not self._bare and tail != b"}":
            self._keys(b"{" + tail.removeprefix(b","), "after")

    def _keys(self, text: bytes, where: str) -> None:
        text = text.removeprefix(_BOM)
        for candidate in (text, ev.repaired(text)):
            try:
                found = msgspec.json.decode(candidate)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                continue
            found.pop("traceEvents", None)
            self.other.update(found)
            return
        self._notes.append(f"the keys {where} traceEvents are damaged and were left out")

    @property
    def warnings(self) -> list[str]:
        """One line each."""
        notes, chunks = [*self.source.warnings, *self._notes], self.chunks
        size = max(self.source.num_bytes, 1)
        if chunks.damages:
            places = "one place" if chunks.damages == 1 else f"{chunks.damages:,} places"
            lost = f"{chunks.lost_bytes:,} of {size:,} bytes ({chunks.lost_bytes / size:.2%})"
            notes.append(f"damaged in {places}: {lost} are no events and were left out")
        if chunks.not_utf8:
            notes.append(f"bytes that are not UTF-8 were replaced, in {chunks.not_utf8:,} chunks")
        if self.source.cut:
            rest = f" and {chunks.cut_bytes:,} of one more" if chunks.cut_bytes else ""
            notes.append(
                f"the file is cut within its events: {self.num_events:,} were read"
                f"{rest.replace('of one', 'bytes of one')}; what came after them is missing"
            )
        return notes
