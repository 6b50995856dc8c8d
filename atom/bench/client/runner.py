"""One run inside a worker: takes jobs, begins each at its moment, sends back the records."""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable
from time import perf_counter

from atom.bench.client import wire
from atom.bench.client.courier import Courier
from atom.bench.client.exchange import Exchange
from atom.bench.client.meter import Meter
from atom.bench.client.timer import ExactTimer
from atom.bench.types import RequestRecord

BEGIN_SLICE = 8  # jobs begun between two polls of the sockets: reads come first
FLUSH_TOKENS = 5000  # times encoded at once for the parent: about 0.2 ms
TICKS_PER_REPORT = 10
JOINS_AFTER_S = 0.1  # a start so late is that of one who joins, not of a slow one
# A place rests after a failed connection, so that a dead server is not asked thousands of times.
REST_S = 0.25


class Runner:
    """Closed loop: `places` jobs in flight. Open loop: jobs at their arrivals, at most `places`."""

    def __init__(
        self, setup: wire.Setup, send: Callable[[wire.ToParent], None], timer: ExactTimer
    ) -> None:
        self._setup = setup
        self._send = send
        self._timer = timer
        self._loop = asyncio.get_running_loop()
        self._courier = Courier(setup, timer, self._on_tokens, self._on_request_end)
        self._meter = Meter(timer, self._on_tick)
        self._begun = False  # the clock runs
        self._queue: deque[wire.Task] = deque()  # in order of arrival
        self._places = setup.places
        self._free: list[float] = []  # closed loop, a heap: since when each place is free
        self._free_since_s = 0.0  # closed loop: all places, at the start
        self._blocked = False  # open loop: a due job waits for a place
        self._unblocked_s = 0.0  # when a place last became free
        self._tasks: set[asyncio.Task[float]] = set()
        self._outbox: deque[RequestRecord] = deque()
        self._low = 0
        self._asked = False  # the parent has been told that jobs run short
        self._stopped = False
        self._scheduled = False
        self._ticks = 0
        self._rest = False  # the latest request found no connection
        self._started = self._done = self._failed = self._tokens = self._chunks = 0

    # What the parent says. Times in here are on the run's clock.

    def add(self, task: wire.Task) -> None:
        self._queue.append(task)
        self._asked = False
        self._schedule()

    def start(self, base_s: float, duration_s: float | None) -> None:
        self._courier.base_s = base_s
        # Who joins a run that is under way has had no free places since its beginning.
        now = self._now()
        self._free_since_s = now if now > JOINS_AFTER_S else 0.0
        self._timer.at(base_s, self._begin)
        if duration_s is not None:
            self._timer.at(base_s + duration_s, lambda: self.stop(0.0))

    def set_low(self, low: int) -> None:
        """Report at once when fewer than `low` jobs are on hand."""
        self._low = low
        self._asked = False

    def set_places(self, places: int) -> None:
        """A larger or smaller share; what is in flight beyond a smaller one ends in its time."""
        self._places = places
        if self._begun and not self._setup.open_loop:
            while len(self._free) + len(self._tasks) < places:
                heapq.heappush(self._free, self._now())
            while self._free and len(self._free) + len(self._tasks) > places:
                heapq.heappop(self._free)
        self._report()
        self._schedule()

    def stop(self, grace_s: float) -> None:
        """Begin nothing more; after `grace_s`, give up what is in flight."""
        self._stopped = True
        if grace_s > 0:
            self._loop.call_later(grace_s, self._give_up)
        else:
            self._give_up()
        self._report()

    async def finish(self) -> None:
        """Give up what is in flight; send the rest and the figures of the whole run."""
        self._stopped = True
        self._give_up()
        if self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        meter = self._meter
        meter.stop()
        final = wire.Final(
            meter.elapsed_s,
            meter.cpu_s,
            meter.waited_s,
            self._chunks,
            meter.lags_s,
            meter.send_delays_s,
            self._courier.clock.kernel,
            self._courier.clock.client,
        )
        self._courier.close()
        while self._outbox:
            self._flush()
        self._report()
        self._send(final)

    # Jobs

    def _now(self) -> float:
        return perf_counter() - self._courier.base_s

    def _begin(self) -> None:
        self._begun = True
        self._meter.start()
        if not self._setup.open_loop:
            self._free = [self._free_since_s] * (self._places or 0)
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled and self._begun:
            self._scheduled = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Begin what is due, a few at a time."""
        self._scheduled = False
        for _ in range(BEGIN_SLICE):
            if self._stopped or not self._queue:
                break
            intended = self._due(self._now())
            if intended is None:
                break
            self._take(intended)
        else:
            self._schedule()
        if len(self._queue) < self._low and not self._asked and not self._stopped:
            self._asked = True
            self._report()

    def _due(self, now: float) -> float | None:
        """When the next job was to begin, if it may; else its moment will wake the pump."""
        if not self._setup.open_loop:
            if not self._free:
                return None
            if self._free[0] > now:
                self._wake(self._free[0])
                return None
            intended = heapq.heappop(self._free)
            self._meter.send_delays_s.append(now - intended)
            return intended
        intended = self._queue[0].arrival_s or 0.0
        if intended > now:
            self._blocked = False
            self._wake(intended)
            return None
        if self._places is not None and len(self._tasks) >= self._places:
            self._blocked = True
            return None
        ready = max(intended, self._unblocked_s) if self._blocked else intended
        self._meter.send_delays_s.append(now - ready)
        return intended

    def _wake(self, when: float) -> None:
        self._timer.at(when + self._courier.base_s, self._schedule)

    def _take(self, intended: float) -> None:
        job = self._queue.popleft()
        self._started += 1
        task = self._loop.create_task(self._courier.job(job, intended, self._now()))
        self._tasks.add(task)
        task.add_done_callback(self._on_job_end)

    def _on_job_end(self, task: asyncio.Task[float]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error  # a bug of ours: the worker ends with it
        # The place is free since the answer's end arrived: what we needed to see that is our delay.
        now = self._unblocked_s = self._now() if task.cancelled() else task.result()
        if not self._setup.open_loop and len(self._tasks) + len(self._free) < (self._places or 0):
            heapq.heappush(self._free, now + REST_S if self._rest else now)
        self._schedule()
        if not self._tasks and (self._stopped or not self._queue):
            self._report()  # perhaps that was the last

    def _give_up(self) -> None:
        for task in list(self._tasks):
            task.cancel()

    def _on_request_end(self, one: Exchange) -> None:
        record = one.record
        self._chunks += one.tally.chunks
        self._done += 1
        self._failed += record.error is not None and record.error != "cancelled"
        self._rest = record.error == "connect"
        if not self._setup.keep_text:
            record.text = None
        self._outbox.append(record)

    def _on_tokens(self, count: int) -> None:
        self._tokens += count

    # Reports

    def _on_tick(self) -> None:
        self._flush()
        self._ticks += 1
        if self._ticks % TICKS_PER_REPORT == 0:
            self._report()

    def _flush(self) -> None:
        batch: list[RequestRecord] = []
        tokens = 0
        while self._outbox and tokens < FLUSH_TOKENS:
            record = self._outbox.popleft()
            tokens += len(record.token_times_s) + 10
            batch.append(record)
        if batch:
            self._send(wire.Ended(batch))

    def _report(self) -> None:
        self._send(
            wire.Tick(
                len(self._queue),
                self._started,
                len(self._tasks),
                self._done,
                self._failed,
                self._tokens,
                self._places,
                self._meter.cpu_s,
                self._meter.waited_s,
            )
        )
