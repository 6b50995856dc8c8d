"""Single requests beside the load: aiohttp, synchronous, with errors as one line."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from atom.bench.client.address import Address, headers_of, parse_url
from atom.bench.client.http1 import reason
from atom.bench.client.tally import error_text
from atom.bench.errors import ServerUnreachable

MAX_BODY_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: bytes

    @property
    def json(self) -> Any:
        """The decoded body; None if it is not JSON."""
        try:
            return msgspec.json.decode(self.body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None

    @property
    def error(self) -> str:
        return error_text(self.body) if self.body.strip() else "(no text)"


class Errand:
    """A server for single requests. Raises `BenchError` for a URL or header that cannot be."""

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        verify_tls: bool = True,
        timeout_s: float = 10.0,
    ) -> None:
        self.address: Address = parse_url(base_url)
        self._headers = headers_of(api_key, headers or {})
        self._verify = verify_tls
        self._timeout_s = timeout_s

    @property
    def url(self) -> str:
        return self.address.url

    def get(self, path: str) -> Answer:
        return self._run("GET", path, None)

    def post(self, path: str, body: Any) -> Answer:
        return self._run("POST", path, body)

    def _run(self, method: str, path: str, body: Any) -> Answer:
        try:
            return asyncio.run(self._request(method, path, body))
        except (OSError, asyncio.TimeoutError) as error:
            raise ServerUnreachable(
                f"no server answers at {self.url}: {_reason(error, self._timeout_s)}"
            ) from None

    async def _request(self, method: str, path: str, body: Any) -> Answer:
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=self._timeout_s)
        connector = aiohttp.TCPConnector(ssl=self._verify)
        data = None if body is None else msgspec.json.encode(body)
        headers = {**self._headers, **({"Content-Type": "application/json"} if data else {})}
        try:
            async with (
                aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
                session.request(method, self.url + path, data=data, headers=headers) as answer,
            ):
                return Answer(answer.status, await answer.content.read(MAX_BODY_BYTES))
        except aiohttp.ClientError as error:
            # Those that are no OSError: a server that hangs up, or does not speak HTTP.
            raise OSError(_reason(error, self._timeout_s)) from None


def _reason(error: BaseException, timeout_s: float) -> str:
    """Of an exception of asyncio's or aiohttp's, in one line."""
    if isinstance(error, asyncio.TimeoutError):
        return f"no answer within {timeout_s:g} s"
    # aiohttp wraps what happened.
    inner = getattr(error, "certificate_error", None) or getattr(error, "os_error", None)
    return reason(inner or error)
