"""One event of the JSON, decoded: only the fields that are used, everything else is skipped."""

from __future__ import annotations

import contextlib
import json
import re
from typing import Any

import msgspec
from msgspec import Raw, Struct, field

from atom.trace.types import NONE

# Files have numbers as strings, null for unknown, and names that are numbers.
Scalar = int | float | str | None

_ABSENT = Raw(b"")


class Args(Struct, gc=False, frozen=True):
    """Of an event's "args"."""

    external: Scalar = field(default=NONE, name="External id")
    correlation: Scalar = NONE
    device: Scalar = None
    stream: Scalar = None
    graph_node: Scalar = field(default=NONE, name="graph node id")
    nbytes: Scalar = field(default=NONE, name="bytes")
    kernel: Scalar = None
    name: Scalar = None  # of metadata
    dims: Raw = field(default=_ABSENT, name="Input Dims")
    types: Raw = field(default=_ABSENT, name="Input type")
    concrete: Raw = field(default=_ABSENT, name="Concrete Inputs")
    strides: Raw = field(default=_ABSENT, name="Input Strides")
    grid: Raw = _ABSENT
    block: Raw = _ABSENT
    collective: Raw = field(default=_ABSENT, name="Collective name")  # this, and what follows
    in_nelems: Raw = field(default=_ABSENT, name="In msg nelems")
    out_nelems: Raw = field(default=_ABSENT, name="Out msg nelems")
    group_size: Raw = field(default=_ABSENT, name="Group size")
    dtype: Raw = _ABSENT


NO_ARGS = Args()


class Event(Struct, gc=False):
    """An item of traceEvents."""

    ph: Scalar = None
    cat: Scalar = None
    name: Scalar = None
    pid: Scalar = None
    tid: Scalar = None
    ts: Scalar | Raw = None  # microseconds
    dur: Scalar = None
    args: Args | None = NO_ARGS


class FloatEvent(Event, gc=False):
    """As JSON's numbers are usually read."""

    ts: Scalar = None


class ExactEvent(Event, gc=False):
    """Keeps the digits of ts: above 2**43 us a float64 cannot hold the nanoseconds."""

    ts: Raw = _ABSENT


FLOAT = msgspec.json.Decoder(list[FloatEvent])
EXACT = msgspec.json.Decoder(list[ExactEvent])
_ANY_VALUE = msgspec.json.Decoder(Raw)
_BYTE = re.compile(r"\(byte (\d+)\)$")
_HIGH, _LOW = rb"\\u[dD][89abAB][0-9a-fA-F]{2}", rb"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_ESCAPE = re.compile(  # (sound) or (half of a surrogate pair) or a stray backslash
    rb'(%b%b|\\["\\/bfnrt]|(?!%b|%b)\\u[0-9a-fA-F]{4})|(%b|%b)|\\' % ((_HIGH, _LOW) * 3)
)
# Only as an object's value: `": nan` cannot be within a string, whose quotes are escaped.
_NOT_A_NUMBER = re.compile(
    rb'("(?: :|:)\s*)[-+]?(?:[nN][aA][nN]|[iI][nN][fF](?:[iI][nN][iI][tT][yY])?)(?=\s*[,}\]])'
)


def trailing(error: msgspec.DecodeError) -> int:
    """Where in the text a complete value was followed by something else; -1 for other errors."""
    text = str(error)
    found = _BYTE.search(text) if "trailing characters" in text else None
    return int(found.group(1)) - 1 if found else -1


def truncated(error: msgspec.DecodeError, size: int = 1 << 62) -> bool:
    """Whether the text, of `size` bytes, is sound so far, but ends too early."""
    text = str(error)
    found = None if "trailing characters" in text else _BYTE.search(text)
    # The text may end within a number, which reads as malformed at its end.
    return "truncated" in text or (found is not None and int(found.group(1)) >= size)


def repaired(text: bytes) -> bytes:
    """Without what profilers get wrong: bytes that are not UTF-8, halves of surrogates, escapes
    that JSON has not (Windows paths), nan and inf."""
    try:
        text.decode()
    except UnicodeDecodeError:
        text = text.decode("utf-8", "replace").encode()
    if b"\\" in text:
        text = _escapes(text)
    return _NOT_A_NUMBER.sub(_null, text)


def _null(found: re.Match[bytes]) -> bytes:
    escaped = found.string[max(found.start() - 1, 0) : found.start()] == b"\\"
    return found.group() if escaped else found.group(1) + b"null"


def _escapes(text: bytes) -> bytes:
    def fixed(found: re.Match[bytes]) -> bytes:
        return found.group(1) or (b"\\ufffd" if found.group(2) else b"\\\\")

    return _ESCAPE.sub(fixed, text)


def end_of_value(text: memoryview) -> int:
    """Where the JSON value at the start of `text` ends; 0: not within `text`; -1: it is none."""
    try:
        _ANY_VALUE.decode(text)
    except msgspec.DecodeError as error:
        if truncated(error, len(text)):
            return 0
        place = trailing(error)
        return len(bytes(text[:place]).rstrip()) if place > 0 else -1
    return len(text)


def decode_one(text: bytes, decoder: msgspec.json.Decoder[Any]) -> Event | None:
    """One event, leniently: control characters within strings pass, fields of a wrong type are
    left out. None if it is no JSON object."""
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
        return _first(decoder, text)
    try:
        # nan and inf become null.
        value = json.loads(repaired(text), strict=False, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    cleaned: dict[str, Any] = {
        key: found for key, found in value.items() if isinstance(found, Scalar)
    }
    args = value.get("args")
    if isinstance(args, dict):
        shapes = ("Input Dims", "Input type", "Concrete Inputs", "Input Strides", "grid", "block")
        cleaned["args"] = {
            key: found for key, found in args.items() if key in shapes or isinstance(found, Scalar)
        }
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
        clean = _escapes(json.dumps(cleaned).encode())
        return _first(decoder, clean)
    return None


def _first(decoder: msgspec.json.Decoder[Any], text: bytes) -> Event:
    found: Event = decoder.decode(b"[" + text + b"]")[0]
    return found
