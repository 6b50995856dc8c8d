"""An event loop in a thread of its own, and the calling thread that waits for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from concurrent.futures import Future, wait
from typing import Any, TypeVar

T = TypeVar("T")

TICK_S = 0.2
_GRACE_S = 5.0


class LoopThread:
    """Runs coroutines for a thread that has no loop. Ends with `close`."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="eval-client", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()

    def call(self, work: Coroutine[Any, Any, T], tick: Callable[[], None]) -> T:
        """The coroutine's result. `tick` is called in this thread while it is waited for; what it
        raises (and a KeyboardInterrupt) cancels the work."""
        future: Future[T] = Future()
        tasks: list[asyncio.Task[T]] = []

        def begin() -> None:
            task = self._loop.create_task(work)
            task.add_done_callback(lambda ended: _hand_over(ended, future))
            tasks.append(task)

        self._loop.call_soon_threadsafe(begin)
        try:
            while not wait([future], TICK_S).done:
                tick()
        except BaseException:
            # Callbacks run in order: it has begun by then.
            self._loop.call_soon_threadsafe(lambda: tasks[0].cancel())
            wait([future], _GRACE_S)
            raise
        return future.result()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()


def _hand_over(task: asyncio.Task[T], future: Future[T]) -> None:
    if task.cancelled():
        future.set_exception(asyncio.CancelledError())
    elif (error := task.exception()) is not None:
        future.set_exception(error)
    else:
        future.set_result(task.result())


async def in_parallel(work: Callable[[T], Awaitable[None]], items: Iterable[T], limit: int) -> None:
    """At most `limit` at once, begun in order. The first failure ends the others."""
    waiting = iter(items)

    async def worker() -> None:
        for item in waiting:
            await work(item)

    tasks = [asyncio.ensure_future(worker()) for _ in range(limit)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
