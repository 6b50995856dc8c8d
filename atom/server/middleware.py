"""What stands before every route, as plain ASGI: request ids, counting, keys."""

from __future__ import annotations

import hmac
import logging
import re
import time
import uuid
from collections.abc import Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from atom.server.body import ClientGone
from atom.server.errors import ApiError, internal
from atom.server.state import ServerState

log = logging.getLogger("atom.server")
access_log = logging.getLogger("atom.access")

# Routes that need no key; every other path, known or not, does.
OPEN_PATHS = frozenset({"/health", "/ready"})

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def request_id(scope: Scope) -> str:
    """The id of the HTTP request, as set by `Observe`."""
    found: str = scope["atom.request_id"]
    return found


class Observe:
    """Outermost: gives each request an id, counts its answer, and turns bugs into a clean 500."""

    def __init__(self, app: ASGIApp, state: ServerState) -> None:
        self._app = app
        self._state = state
        self._log_access = state.config.server.access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        name = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope["atom.request_id"] = name
        status = 0
        began = time.perf_counter()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = name
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except ClientGone:
            self._state.metrics.client_disconnects += 1
        except Exception as error:
            log.error("request %s failed", name, exc_info=error)
            if status == 0:
                await internal(name).response()(scope, receive, send_with_id)
        finally:
            self._count(scope, status, time.perf_counter() - began)

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        method = scope["method"] if scope["method"] in _METHODS else "other"
        route = scope.get("route")  # set by the router: labels stay few whatever clients ask for
        handler = getattr(route, "path", "other")
        if status:
            self._state.metrics.on_http(method, handler, status)
        if self._log_access:
            access_log.info(
                "%s %s %s %d %.3f s id=%s%s",
                (scope.get("client") or ("-",))[0],
                method,
                handler,
                status,
                seconds,
                request_id(scope),
                "".join(f" {k}={v!r}" for k, v in scope.get("atom.noted", {}).items()),
            )


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class RequireKey:
    """Refuses requests without one of the keys. Decides on the raw path of the ASGI scope."""

    def __init__(self, app: ASGIApp, keys: Iterable[str]) -> None:
        self._app = app
        self._keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            error = self._refuse(Headers(scope=scope).get("authorization", ""))
            if error is not None:
                await error.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _refuse(self, header: str) -> ApiError | None:
        scheme, _, key = header.partition(" ")
        given = key.strip().encode("latin-1", "replace") if scheme.lower() == "bearer" else b""
        # All keys are compared, so that time tells nothing of which one came close.
        known = [hmac.compare_digest(given, key) for key in self._keys]
        if given and any(known):
            return None
        return ApiError(
            401,
            "The API key is wrong." if given else "Send Authorization: Bearer with an API key.",
            type_="authentication_error",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )
