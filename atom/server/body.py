"""Bytes from a client to a JSON object; the size is bounded while reading, before parsing."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from starlette.requests import ClientDisconnect, Request

from atom.server.errors import ApiError, bad_request

MAX_DEPTH = 64
_LARGE = 256 * 1024  # bodies above this are parsed off the event loop


class ClientGone(Exception):
    """The client closed the connection; there is nobody to answer."""


async def read_object(request: Request, max_bytes: int) -> dict[str, Any]:
    """The request's JSON object; raises `ApiError` 400, 413 or 415, or `ClientGone`."""
    media_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if media_type != "application/json":
        raise ApiError(
            415,
            "The body must be JSON, sent with the header Content-Type: application/json.",
            code="unsupported_media_type",
        )
    raw = await _read(request, max_bytes)
    value = await asyncio.to_thread(_parse, raw) if len(raw) > _LARGE else _parse(raw)
    if not isinstance(value, dict):
        raise bad_request("The body must be a JSON object.", code="invalid_json")
    return value


async def _read(request: Request, max_bytes: int) -> bytes:
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > max_bytes:
        raise _too_large(max_bytes)
    raw = bytearray()
    try:
        async for piece in request.stream():
            raw += piece
            if len(raw) > max_bytes:
                raise _too_large(max_bytes)
    except ClientDisconnect:
        raise ClientGone from None
    return bytes(raw)


def _too_large(max_bytes: int) -> ApiError:
    return ApiError(
        413,
        f"The body is larger than {max_bytes} bytes (--max-body-bytes).",
        code="body_too_large",
    )


def _parse(raw: bytes) -> Any:
    try:
        value = orjson.loads(raw)  # refuses NaN, infinities, bad UTF-8 and lone surrogates
    except orjson.JSONDecodeError as error:
        raise bad_request(f"The body is not valid JSON: {error}.", code="invalid_json") from None
    if _deeper_than(value, MAX_DEPTH):
        raise bad_request(
            f"The body is nested deeper than {MAX_DEPTH} levels.", code="invalid_json"
        )
    return value


def _deeper_than(value: Any, limit: int) -> bool:
    """Level by level over containers only, so that a long list of numbers costs one pass."""
    level: list[Any] = [value]
    for _ in range(limit):
        level = [child for parent in level for child in _containers(parent)]
        if not level:
            return False
    return True


def _containers(value: Any) -> list[Any]:
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list):
        return []
    return [child for child in value if isinstance(child, (dict, list))]
