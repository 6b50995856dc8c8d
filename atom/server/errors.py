"""Errors as clients see them: OpenAI's shape, one clear message, never our internals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from pydantic import ValidationError
from starlette.responses import Response

from atom.errors import AtomError, EngineDeadError, RequestError

INVALID_REQUEST = "invalid_request_error"


class ApiError(Exception):
    """An answer that is not a success; `retry_after_s` becomes the Retry-After header."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type_: str = INVALID_REQUEST,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type_
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> Response:
        return Response(
            orjson.dumps(self.body()),
            status_code=self.status,
            media_type="application/json",
            headers=self.headers,
        )


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, param=param, code=code)


def unavailable(message: str, code: str) -> ApiError:
    return ApiError(503, message, type_="service_unavailable", code=code)


def too_busy(in_flight: int, limit: int, retry_after_s: int) -> ApiError:
    return ApiError(
        429,
        f"The server is full: {in_flight} sequences are running or queued, and {limit} may be. "
        f"Try again in {retry_after_s} s.",
        type_="rate_limit_error",
        code="queue_full",
        headers={"Retry-After": str(retry_after_s)},
    )


def internal(request_id: str) -> ApiError:
    return ApiError(
        500,
        f"An internal error occurred; the server's log has it under request id {request_id}.",
        type_="server_error",
        code="internal_error",
    )


def from_exception(error: BaseException) -> ApiError | None:
    """What a known exception means to a client; None: a bug of ours."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, EngineDeadError):
        return unavailable("The engine has died; the request is lost.", "engine_dead")
    if isinstance(error, RequestError):
        return bad_request(str(error), error.param, error.code)
    if isinstance(error, AtomError):
        return bad_request(str(error))
    return None


def from_validation(error: ValidationError) -> ApiError:
    """The first thing pydantic found, naming the field as clients write it: `stop[3]`."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    param = field_path(first["loc"])
    message = str(first["msg"]).removeprefix("Value error, ")
    return bad_request(f"{param}: {message}" if param else message, param or None)


def field_path(location: tuple[int | str, ...]) -> str:
    """`("messages", 0, "content")` -> `messages[0].content`."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part.isidentifier():  # pydantic adds names of union members, such as "list[str]"
            path += f".{part}" if path else part
    return path
