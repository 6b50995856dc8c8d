"""Runs and samples as bytes and back: JSON, packed with zlib where it is long.

JSON has no infinity and no NaN, and msgspec would write them as null without a word: here they are
the texts "inf", "-inf" and "nan", which become numbers again where a type says so.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import msgspec

from atom.bench.types import RequestRecord, RunResult

RECORDS_PER_BLOCK = 256  # unpacked at once when samples are read
_PACKING = 6
_LARGE = 2**63  # the end of SQLite's and most JSON readers' integers

_record_encoder = msgspec.json.Encoder()
_record_decoder = msgspec.json.Decoder(list[RequestRecord], strict=False)


def plain_run(run: RunResult) -> dict[str, Any]:
    """A run as plain JSON values."""
    values: dict[str, Any] = plain(run)
    return values


def plain(value: Any) -> Any:
    """Anything as what JSON can hold. A value of a foreign type becomes its number or its text:
    better than a run that cannot be stored."""
    return finite(msgspec.to_builtins(value, enc_hook=_foreign))


def _foreign(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)  # numpy's scalars have item


def run_from_plain(values: Mapping[str, Any]) -> RunResult:
    """The inverse; raises `msgspec.ValidationError` where something is missing or wrong."""
    return msgspec.convert(values, RunResult, strict=False)


def encode_run(run: RunResult) -> tuple[str, bytes | None]:
    """The run as JSON text, and apart from it, packed, the long lists of `legacy`, if there are.

    The lists (one value or more per request: itls, generated_texts) may be megabytes, and few who
    read runs want them.
    """
    long = {key: value for key, value in run.legacy.items() if isinstance(value, list)}
    short = {key: value for key, value in run.legacy.items() if key not in long}
    values = plain_run(msgspec.structs.replace(run, legacy=short))
    packed = pack(msgspec.json.encode(plain(long))) if long else None
    return msgspec.json.encode(values).decode(), packed


def decode_run(text: str, packed: bytes | None = None) -> RunResult:
    """The run that `encode_run` wrote; without `packed` its legacy fields lack the long lists."""
    run = msgspec.json.decode(text, type=RunResult, strict=False)
    if packed is not None:
        run.legacy.update(msgspec.json.decode(unpack(packed)))
    return run


def encode_records(records: Iterable[RequestRecord]) -> Iterator[bytes]:
    """Samples in packed blocks of `RECORDS_PER_BLOCK`."""
    rest = iter(records)
    while block := list(islice(rest, RECORDS_PER_BLOCK)):
        yield pack(_encode_block(block))


def _encode_block(block: list[RequestRecord]) -> bytes:
    """Straight, unless there is something that JSON cannot hold: `plain` looks at each number."""
    try:
        data = _record_encoder.encode(block)
    except (TypeError, ValueError, OverflowError):
        data = b"null"
    # Where a number is not finite msgspec writes null; fields that are None are not written.
    return _record_encoder.encode(plain(block)) if b"null" in data else data


def decode_records(blocks: Iterable[bytes]) -> Iterator[RequestRecord]:
    for block in blocks:
        yield from _record_decoder.decode(unpack(block))


def records_from_plain(values: Sequence[Any]) -> list[RequestRecord]:
    return msgspec.convert(values, list[RequestRecord], strict=False)


def pack(data: bytes) -> bytes:
    return zlib.compress(data, _PACKING)


def unpack(data: bytes) -> bytes:
    return zlib.decompress(data)


def finite(value: Any) -> Any:
    """The same tree with texts for the numbers that JSON cannot say, and no half characters."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, int):
        return value if -_LARGE <= value < _LARGE else str(value)
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {finite(str(key)): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
