"""Many JSON requests to one server, some at a time; blocking, answers in the order of requests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from atom.eval.errors import EvalError, ServerGone
from atom.eval.types import Endpoint

BACKOFF_S = 0.5  # doubled with each retry
RETRIED = {429, 500, 502, 503, 504}


class Reply(NamedTuple):
    status: int
    body: Any  # None where it was no JSON

    @property
    def error(self) -> str:
        """What the server says is wrong, on one line."""
        said = self.body
        if isinstance(said, dict):
            said = said.get("error", said.get("detail", said.get("message", "")))
            said = said.get("message", "") if isinstance(said, dict) else said
        return " ".join(f"HTTP {self.status}: {said or 'without a reason'}".split())[:400]


class Asker:
    """Speaks to `endpoint`. `gone` tells why a server of ours has ended, or None.

    Raises `ServerGone` when it does not answer any more, `EvalError` for a key or path that it
    refuses; other refusals are replies.
    """

    def __init__(self, endpoint: Endpoint, gone: Callable[[], str | None] = lambda: None) -> None:
        self.endpoint = endpoint
        self._gone = gone

    def post(self, path: str, body: Mapping[str, Any]) -> Reply:
        return self.post_all(path, [body])[0]

    def post_all(
        self,
        path: str,
        bodies: Sequence[Mapping[str, Any]],
        on_count: Callable[[int], None] = lambda _: None,
    ) -> list[Reply]:
        """Up to `endpoint.concurrency` at once. `on_count` is told how many have been answered."""
        return asyncio.run(self._all(path, bodies, on_count))

    async def _all(
        self, path: str, bodies: Sequence[Mapping[str, Any]], on_count: Callable[[int], None]
    ) -> list[Reply]:
        import aiohttp

        place = self.endpoint
        headers = {"Content-Type": "application/json", **place.headers}
        if place.api_key is not None:
            headers["Authorization"] = f"Bearer {place.api_key}"
        waiting = iter(range(len(bodies)))
        replies: list[Reply | None] = [None] * len(bodies)
        done = 0

        async def work(session: aiohttp.ClientSession) -> None:
            nonlocal done
            for number in waiting:
                replies[number] = await self._one(session, path, bodies[number])
                done += 1
                on_count(done)

        timeout = aiohttp.ClientTimeout(total=place.timeout_s, sock_connect=10.0)
        connector = aiohttp.TCPConnector(limit=0, ssl=_tls(place))
        async with aiohttp.ClientSession(
            timeout=timeout, connector=connector, headers=headers, trust_env=False
        ) as session:
            workers = [
                asyncio.create_task(work(session))
                for _ in range(min(place.concurrency, len(bodies)))
            ]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
        assert all(reply is not None for reply in replies)
        return [reply for reply in replies if reply is not None]

    async def _one(self, session: Any, path: str, body: Mapping[str, Any]) -> Reply:
        import aiohttp

        url, data = self.endpoint.base_url + path, msgspec.json.encode(body)
        problem = ""
        for attempt in range(self.endpoint.max_retries + 1):
            if attempt:
                self._look()
                await asyncio.sleep(BACKOFF_S * 2 ** (attempt - 1))
            try:
                async with session.post(url, data=data) as response:
                    reply = Reply(response.status, _decode(await response.read()))
            except asyncio.TimeoutError:
                problem = f"no answer within {self.endpoint.timeout_s:g} s"
                continue
            except (aiohttp.ClientError, OSError) as error:
                problem = str(error) or type(error).__name__
                continue
            if reply.status in (401, 403):
                raise EvalError(f"{self.endpoint.base_url} refuses the API key: {reply.error}")
            if reply.status not in RETRIED:
                return reply
            problem = reply.error
        self._look()
        raise ServerGone(f"{url} does not answer any more: {problem}")

    def _look(self) -> None:
        problem = self._gone()
        if problem is not None:
            raise ServerGone(problem)


def _tls(endpoint: Endpoint) -> bool:
    """What aiohttp calls it: False asks for no certificate."""
    return endpoint.verify_tls


def _decode(raw: bytes) -> Any:
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return {"message": raw[:200].decode(errors="replace")} if raw else None
