"""The way to one server: HTTP requests that are repeated where that may help, until it is gone.

Connections are reused. A broken connection is followed by looks at /health for some seconds: a
server that does not answer them is gone, any other gets the request again.
"""

from __future__ import annotations

import asyncio
import errno
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, NamedTuple

from atom._version import __version__
from atom.bench.client.address import headers_of, parse_url
from atom.bench.client.errand import Answer
from atom.bench.client.http1 import reason
from atom.eval.errors import EvalError, ServerGone
from atom.eval.types import Counts, Endpoint

if TYPE_CHECKING:
    import aiohttp

Sleep = Callable[[float], Awaitable[None]]

HEALTH_PAUSES_S = (0.0, 0.5, 1.0, 1.5, 2.0)  # before each look: 5 s in all
HEALTH_TIMEOUT_S = 3.0
CONNECT_TIMEOUT_S = 10.0
LONGEST_WAIT_S = 300.0  # that a Retry-After may ask for
_BACKOFF_S, _BACKOFF_MOST_S = 0.5, 10.0
_BUSY = (429, 503)


class _Reply(NamedTuple):
    answer: Answer
    retry_after: str | None


@dataclass
class _Failure:
    """What happened to a request that will be sent again."""

    why: str
    wait_s: float | None = None  # None: the usual back-off
    busy: bool = False  # the server is there and says "later"


class _Broken(Exception):
    """The connection could not be made, or ended within the answer."""


class Link:
    """Belongs to one event loop. `sleep` is asyncio's, unless a test has its own."""

    def __init__(self, endpoint: Endpoint, counts: Counts, sleep: Sleep = asyncio.sleep) -> None:
        self.url = parse_url(endpoint.base_url).url
        self._counts = counts
        self._endpoint = endpoint
        self._headers = {
            **headers_of(endpoint.api_key, endpoint.headers),
            "Content-Type": "application/json",
        }
        if not any(name.lower() == "user-agent" for name in endpoint.headers):
            self._headers["User-Agent"] = f"atom-eval/{__version__}"
        self._sleep = sleep
        self._random = random.Random(0)
        self._session: aiohttp.ClientSession | None = None
        self._look: asyncio.Task[bool] | None = None

    async def open(self) -> None:
        import aiohttp

        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=self._endpoint.verify_tls),
            timeout=aiohttp.ClientTimeout(
                total=self._endpoint.timeout_s, sock_connect=CONNECT_TIMEOUT_S
            ),
            headers=self._headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            read_bufsize=1 << 20,
        )

    async def close(self) -> None:
        if self._look is not None:
            self._look.cancel()
            await asyncio.gather(self._look, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    async def post(self, path: str, body: bytes) -> Answer:
        """The answer, whatever its status, but for 429 and 5xx: those are asked again.

        Raises `ServerGone`: the server is not there any more, or fails each time.
        """
        return await self._ask("POST", path, body)

    async def get(self, path: str) -> Answer:
        return await self._ask("GET", path, None)

    async def _ask(self, method: str, path: str, body: bytes | None) -> Answer:
        attempt = 0
        while True:
            before = self._counts.requests
            outcome = await self._try(method, path, body)
            if isinstance(outcome, Answer):
                self._counts.requests += 1
                return outcome
            # "Later" is no failure as long as others get their answers.
            attempt = 1 if outcome.busy and self._counts.requests > before else attempt + 1
            if attempt > self._endpoint.max_retries:
                times = "once" if attempt == 1 else f"{attempt} times"
                raise ServerGone(f"{self.url}{path} failed {times}, last with: {outcome.why}")
            self._counts.retries += 1
            await self._sleep(self._pause(attempt) if outcome.wait_s is None else outcome.wait_s)

    async def _try(self, method: str, path: str, body: bytes | None) -> Answer | _Failure:
        try:
            answer, retry_after = await self._once(method, path, body)
        except asyncio.TimeoutError:
            raise ServerGone(
                f"{self.url}{path} gave no answer within {self._endpoint.timeout_s:g} s: "
                "fewer requests at once may help (--concurrency)"
            ) from None
        except _Broken as error:
            if not await self._alive():
                raise ServerGone(f"the server at {self.url} is gone: {error}") from None
            return _Failure(str(error))
        if answer.status not in _BUSY and answer.status < 500:
            return answer
        why = f"HTTP {answer.status}: {answer.error}"
        wait_s = _seconds(retry_after)
        if wait_s is not None and wait_s > LONGEST_WAIT_S:
            raise ServerGone(f"{self.url}{path} asks to wait for {wait_s:.0f} s, with {why}")
        return _Failure(why, wait_s, busy=answer.status in _BUSY)

    def _pause(self, attempt: int) -> float:
        """Doubled each time, and spread, so that not all come back at once."""
        most = min(_BACKOFF_MOST_S, _BACKOFF_S * 2.0 ** max(0, attempt - 1))
        return most * self._random.uniform(0.5, 1.0)

    async def _once(self, method: str, path: str, body: bytes | None) -> _Reply:
        import aiohttp

        assert self._session is not None, "open() comes first"
        try:
            async with self._session.request(method, self.url + path, data=body) as answer:
                data = await answer.read()
                return _Reply(Answer(answer.status, data), answer.headers.get("Retry-After"))
        except aiohttp.ConnectionTimeoutError:
            raise _Broken(f"no connection within {CONNECT_TIMEOUT_S:g} s") from None
        except asyncio.TimeoutError:
            raise
        except (aiohttp.ClientError, OSError) as error:
            inner = getattr(error, "certificate_error", None) or getattr(error, "os_error", None)
            if getattr(inner or error, "errno", None) in (errno.EMFILE, errno.ENFILE):
                raise EvalError(
                    f"{self._endpoint.concurrency} requests at once need more open files than "
                    "this process may have: fewer (--concurrency), or a higher ulimit -n"
                ) from None
            raise _Broken(reason(inner or error)) from None

    async def _alive(self) -> bool:
        """Whether the server answers at all; one look serves all that wait for it."""
        if self._look is None or self._look.done():
            self._look = asyncio.ensure_future(self._looks())
        return await asyncio.shield(self._look)

    async def _looks(self) -> bool:
        for pause in HEALTH_PAUSES_S:
            await self._sleep(pause)
            try:
                reply = await asyncio.wait_for(self._once("GET", "/health", None), HEALTH_TIMEOUT_S)
            except (_Broken, asyncio.TimeoutError):
                continue
            if reply.answer.status != 503:  # some have no /health: 404 is an answer, too
                return True
        return False


def _seconds(retry_after: str | None) -> float | None:
    """Of a Retry-After header: seconds or a date; None where it says neither."""
    if retry_after is None:
        return None
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        date = parsedate_to_datetime(retry_after)
    except (ValueError, TypeError):
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=timezone.utc)
    return max(0.0, (date - datetime.now(timezone.utc)).total_seconds())
