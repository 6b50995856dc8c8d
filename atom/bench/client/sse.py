"""Server-sent events out of a byte stream that is cut anywhere.

Knows the format (WHATWG HTML, 9.2.6) and nothing of what events hold. Lines end in LF, CRLF or CR,
lines that begin with a colon are comments, several data lines of an event are joined with LF.
"""

from __future__ import annotations

from typing import NamedTuple

MAX_EVENT_BYTES = 16 << 20  # beyond it the stream is no event stream
_FIELDS = (b"data", b"event", b"id", b"retry")
_BOM = b"\xef\xbb\xbf"


class NotEvents(ValueError):
    """The bytes are not server-sent events."""


class Event(NamedTuple):
    data: bytes
    name: bytes = b""  # the event field; b"" is the usual "message"


class EventParser:
    """`feed` returns the events that the bytes completed."""

    __slots__ = ("_after_cr", "_data", "_first", "_name", "_rest", "_seen")

    def __init__(self) -> None:
        self._rest = b""  # of a line that has not ended
        self._data: list[bytes] = []
        self._name = b""
        self._seen = False  # whether the event in the making had a line at all
        self._first = True
        self._after_cr = False

    def feed(self, data: bytes) -> list[bytes] | list[Event]:
        """Events in order: bare data where all are plain messages (the fast path), else `Event`s.

        Raises `NotEvents`.
        """
        # Nearly every read is one or more whole events of one line each.
        if (
            not (self._rest or self._seen or self._after_cr)
            and data[:6] == b"data: "
            and data[-2:] == b"\n\n"
        ):
            parts = data[6:-2].split(b"\n\ndata: ")
            if data.count(b"\n") == 2 * len(parts) and b"\r" not in data:
                self._first = False
                return parts
        return self._slow(data)

    def _slow(self, data: bytes) -> list[Event]:
        if not data:
            return []
        if self._first:
            data = self._rest + data
            if _BOM.startswith(data[:3]):  # the whole mark, or a part of it that may become one
                if len(data) < len(_BOM):
                    self._rest = data
                    return []
                data = data[len(_BOM) :]
            self._first = False
            self._rest = b""
        if self._after_cr and data:  # the second half of a CRLF is no line's end
            data = data.removeprefix(b"\n")
        self._after_cr = data.endswith(b"\r")
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest
        if len(self._rest) > MAX_EVENT_BYTES:
            raise NotEvents(f"a line of more than {MAX_EVENT_BYTES >> 20} MiB")
        events: list[Event] = []
        for line in lines:
            self._line(line, events)
        return events

    def _line(self, line: bytes, events: list[Event]) -> None:
        if not line:
            if self._data:
                events.append(Event(b"\n".join(self._data), self._name))
            self._data, self._name, self._seen = [], b"", False
            return
        self._seen = True
        field, colon, value = line.partition(b":")
        if not field and colon:
            return  # a comment
        if field not in _FIELDS:
            shown = line[:60].decode("utf-8", "replace")
            raise NotEvents(f"a line that is no field of an event: {shown!r}")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
        elif field == b"event":
            self._name = value
