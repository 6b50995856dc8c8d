"""Carries a job through its turns: connection, request, answer, think time, the next request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from atom.bench.client import wire
from atom.bench.client.body import request_body
from atom.bench.client.connections import Pool
from atom.bench.client.exchange import Exchange
from atom.bench.client.http1 import reason
from atom.bench.client.timer import ExactTimer
from atom.bench.types import RequestRecord


class Courier:
    """`on_end` is called once for each request that was dispatched, however it ended."""

    def __init__(
        self,
        setup: wire.Setup,
        timer: ExactTimer,
        on_tokens: Callable[[int], None],
        on_end: Callable[[Exchange], None],
    ) -> None:
        self._setup = setup
        self._timer = timer
        self._on_tokens = on_tokens
        self._on_end = on_end
        self._pool = Pool(setup.server, asyncio.get_running_loop())
        self.clock = self._pool.clock
        self.base_s = 0.0

    def close(self) -> None:
        self._pool.close()

    async def job(self, task: wire.Task, intended_s: float, dispatched_s: float) -> float:
        """All turns of a job; the first that fails is the last. Cancelled: gives up the request.

        Returns when the last answer's last byte arrived, or its failure.
        """
        setup = self._setup
        body = task.body
        answers: list[str] = []
        for number, turn in enumerate(task.turns):
            if number:
                intended_s += turn.delay_s
                await self._timer.until(intended_s + self.base_s)
                dispatched_s = self._timer.now() - self.base_s
                said = wire.conversation(task.turns, number, answers)
                body = request_body(setup.common, setup.extra_body, setup.endpoint, said, turn)
            record = RequestRecord(
                index=task.index,
                turn=number,
                worker=setup.worker,
                intended_s=intended_s,
                dispatched_s=dispatched_s,
                asked_input=turn.input_len,
                asked_output=turn.max_tokens,
            )
            goes_on = number + 1 < len(task.turns)
            one = await self._request(record, body, setup.keep_text or goes_on)
            if record.error is not None:
                break
            answers.append("".join(one.tally.texts or ()))
            intended_s = record.ended_s
        return one.over_s - self.base_s

    async def _request(self, record: RequestRecord, body: bytes, keep_text: bool) -> Exchange:
        request = self._setup.server.head + b"%d\r\n\r\n" % len(body) + body
        one = Exchange(record, self.base_s, keep_text, self._on_tokens)
        try:
            await self._send(one, request)
            if await one.done == "stale":
                one = Exchange(record, self.base_s, keep_text, self._on_tokens)
                await self._send(one, request, fresh=True)
                outcome = await one.done
                assert outcome == "ended", "a fresh connection cannot be stale"
        except asyncio.CancelledError:
            one.give_up("cancelled", "given up by the client")
            raise
        finally:
            self._on_end(one)
        return one

    async def _send(self, one: Exchange, request: bytes, fresh: bool = False) -> None:
        try:
            connection = await self._pool.get(fresh)
        except OSError as error:
            one.give_up("connect", reason(error))
            return
        one.send(request, connection, self._setup.server.timeout_s)
