"""Takes events off a growing text that holds the inside of a JSON list.

A chunk is cut at `},{` where that lies between two events: it does if and only if the chunk
decodes, as a cut within an event leaves brackets or a string open. A chunk that does not decode is
repaired, and failing that read event by event; from what is no event it goes on at the next `},{`.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from atom.trace.reader import event as ev

_BETWEEN = re.compile(rb"\}(\s*,\s*)(?=\{)")
_RESUME = re.compile(rb'\}\s*,?\s*(?=\{\s*")')
_SEPARATOR = re.compile(rb"[\s,]*")
# The list's bracket, then the object's or another key; or the text so far ends within those.
_AFTER_LIST = re.compile(rb'\]\s*(?:\}?\s*$|,\s*(?:$|"[^"]*(?:$|"\s*(?:$|:))))')
_WINDOW = 64 << 10  # from a chunk's end, where its cut is looked for first
_TRIES = 4  # cuts that are tried
_ENDS = 8  # places tried as the end of an event that is no sound JSON
_LONGEST = 32 << 20  # bytes of one event; beyond them it counts as damage
_MARGIN = 64  # bytes kept of damage, as an event may begin within them

Events = list[ev.Event]


class Chunks:
    """`take` with all that was not taken before, as the text grows, then `last` once."""

    def __init__(self) -> None:
        self.decoder: msgspec.json.Decoder[Any] = ev.FLOAT
        self.ended = False  # the list's closing bracket was seen
        self.tail = b""  # then: what came behind it
        self.cut_bytes = 0  # of an event that the text ends within
        self.lost_bytes = 0  # within the events, of what is no event
        self.damages = 0  # places where that is so
        self.not_utf8 = 0  # chunks that are not
        self._sound = True  # the last thing seen was an event
        self._open = False  # why `_decode` failed: the text ends within an event

    def take(self, text: bytes) -> tuple[Events, bytes]:
        """As many events as are whole, and the rest of the text; b"" once the list has ended."""
        cuts = [*_BETWEEN.finditer(text, max(0, len(text) - _WINDOW))]
        for cut in (cuts or [*_BETWEEN.finditer(text)])[: -_TRIES - 1 : -1]:
            end = cut.start() + 1
            found = self._decode(_list(text, end), text[end:])
            if found is None and not self._open:
                fixed = ev.repaired(text[:end])
                if fixed != text[:end]:
                    self.not_utf8 += not _is_utf8(text[:end])
                    text = fixed + text[end:]
                    end = len(fixed)
                    found = self._decode(_list(fixed, end), text[end:])
            if found is not None:
                return found, b"" if self.ended else text[end:].lstrip(b", \t\r\n")
            if not self._open:
                break
        return self._carefully(text, final=False)

    def last(self, text: bytes) -> Events:
        """What remains when there is no more text."""
        text = text.strip().removeprefix(b",")
        if self._sound:
            # The list and what follows it; or whole events, and no bracket.
            found = self._decode(b"[" + text, b"")
            if found is None:
                found = self._decode(b"[" + ev.repaired(text), b"")
            if found is not None:
                return found
        found, rest = self._carefully(text, final=True)
        if self._sound:
            self.cut_bytes = len(rest)
        return found

    def reopen(self) -> bytes:
        """What came behind the list's end, if events do, so that the bracket was damage; else b"",
        and the list has ended."""
        assert self.ended
        if not self._events_follow(self.tail, -1):
            return b""
        text, self.tail, self.ended = self.tail, b"", False
        return text

    def _decode(self, whole: bytes, behind: bytes) -> Events | None:
        """The events of a list, fast; None if they do not decode. If the list ends before `whole`
        does, so do the events."""
        self._open = False
        try:
            found: Events = self.decoder.decode(whole)
        except UnicodeDecodeError:
            return None
        except msgspec.DecodeError as error:
            place = ev.trailing(error)
            if place < 0:
                # Half of a surrogate pair reads as truncated, too.
                self._open = ev.truncated(error) and b"\\ud" not in whole
                return None
            end = len(whole[:place].rstrip())
            if not _AFTER_LIST.match(whole, end - 1):
                return None
            try:
                found = self.decoder.decode(whole[:end])
            except (msgspec.DecodeError, UnicodeDecodeError):
                return None
            # With `behind`, the last byte is the bracket of `_list`.
            self._close(whole[end:-1] + behind if behind else whole[end:])
            return found
        if not behind:
            self._close(b"")
        self._sound = True
        return found

    def _close(self, tail: bytes) -> bytes:
        self.ended, self.tail = True, tail
        return b""

    def _carefully(self, text: bytes, *, final: bool) -> tuple[Events, bytes]:
        """Event by event, past what is none."""
        found: Events = []
        view, place = memoryview(text), 0
        while True:
            separator = _SEPARATOR.match(text, place)
            assert separator is not None
            place = separator.end()
            if place >= len(text):
                return found, b""
            if self._sound and _AFTER_LIST.match(text, place):
                return found, self._close(text[place + 1 :])
            opens = text[place] == ord("{")
            size = ev.end_of_value(view[place:]) if opens else -1
            # More text may complete it; none will if events follow.
            hopeful = not final or (self._sound and not self._events_follow(text, place))
            if size == 0 and hopeful and len(text) - place < _LONGEST:
                return found, text[place:]
            one, size = self._one(text, place, size) if opens else (None, 0)
            if one is not None and (self._sound or isinstance(one.ph, str)):
                found.append(one)
                place += size
                self._sound = True
                continue
            if opens and not final and len(text) - place < _WINDOW:
                return found, text[place:]  # its end may be still to come
            self.damages += self._sound
            self._sound = False
            after = _RESUME.search(text, place + 1)
            skipped = max(place, len(text) if final else len(text) - _MARGIN)
            end = after.end() if after else skipped
            self.lost_bytes += end - place
            place = end
            if after is None:
                return found, text[place:]

    def _events_follow(self, text: bytes, place: int) -> bool:
        for count, after in enumerate(_RESUME.finditer(text, place + 1)):
            size = ev.end_of_value(memoryview(text)[after.end() :])
            event = text[after.end() : after.end() + size]
            one = ev.decode_one(event, self.decoder) if size > 0 else None
            if one is not None and isinstance(one.ph, str):
                return True
            if count == _MARGIN:
                break
        return False

    def _one(self, text: bytes, place: int, size: int) -> tuple[ev.Event | None, int]:
        """The event at `place`, of `size` bytes if that is above 0, and its size."""
        if size > 0:
            return ev.decode_one(text[place : place + size], self.decoder), size
        for count, after in enumerate(_RESUME.finditer(text, place + 1)):
            size = after.start() + 1 - place
            one = ev.decode_one(text[place : place + size], self.decoder)
            if one is not None:
                return one, size
            if count == _ENDS:
                break
        return None, 0


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _list(text: bytes, end: int) -> bytes:
    """A list of what comes before `end`."""
    return b"".join((b"[", memoryview(text)[:end], b"]"))
