"""`run_load`: one pass of load over a server, from the first request to the verdict."""

from __future__ import annotations

import selectors
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from time import perf_counter

from atom.bench.client import wire
from atom.bench.client.address import parse_url, server_of
from atom.bench.client.crew import Crew, Member, all_unreachable, check, totals
from atom.bench.client.health import judge
from atom.bench.errors import BenchError, ServerUnreachable
from atom.bench.types import Job, Load, LoadOutcome, OnProgress, Progress, RequestRecord, Target
from atom.utils.machine import usable_cpus

PROGRESS_S = 0.25
POLL_S = 0.02
STOP_GRACE_S = 2.0
START_TIMEOUT_S = 60.0
END_TIMEOUT_S = 60.0
UNREACHABLE_AFTER = 20  # requests without a connection and none with one: nobody is there

# (mode and server) -> the load that needed more than one worker, and how many.
_needed: dict[tuple[str, bool], tuple[float, int]] = {}


def run_load(
    target: Target,
    jobs: Iterator[Job],
    load: Load,
    *,
    on_progress: OnProgress | None = None,
    stop: threading.Event | None = None,
    on_start: Callable[[], None] | None = None,
    on_end: Callable[[], None] | None = None,
) -> LoadOutcome:
    """Send `jobs` to `target` as `load` says; every dispatched request is a record.

    `stop` set: nothing new begins, what is in flight gets 2 s and is then "cancelled"; the outcome
    is `interrupted`. `on_start` is called just before the clock starts, `on_end` when the last
    request has ended; both from the calling thread, as is `on_progress` (about 4 times a second).

    Raises `ServerUnreachable` if no request found a connection, `BenchError` for a load or a job
    that cannot be, or if a client process dies.
    """
    check(load)
    run = _Run(target, jobs, load, on_progress, stop)
    try:
        return run.measure(on_start, on_end)
    finally:
        run.close()


class _Run:
    def __init__(
        self,
        target: Target,
        jobs: Iterator[Job],
        load: Load,
        on_progress: OnProgress | None,
        stop: threading.Event | None,
    ) -> None:
        self._target = target
        self._load = load
        self._on_progress = on_progress
        self._stop = stop
        self._crew = Crew(target, load, jobs, server_of(target))
        self._selector = selectors.DefaultSelector()
        self._records: list[RequestRecord] = []
        self._recent: list[RequestRecord] = []
        self._answered = False  # some request got further than a connection attempt
        self._rates: deque[tuple[float, int]] = deque()
        self._base = 0.0
        self._wall = 0.0
        self._shown_s = 0.0
        self._interrupted = False

    def measure(
        self, on_start: Callable[[], None] | None, on_end: Callable[[], None] | None
    ) -> LoadOutcome:
        for _ in range(count := self._workers_at_first()):
            self._watch(self._crew.add(count))
        self._wait(lambda: all(m.ready for m in self._crew.members), START_TIMEOUT_S, "start")
        self._crew.feed(0.0)
        if on_start is not None:
            on_start()
        try:
            machine = _MachineCpu()
            self._base = perf_counter() + 0.002
            self._wall = time.time() + 0.002
            self._start_ready()
            self._loop()
            share = machine.share()
        finally:
            if on_end is not None:
                on_end()
        for member in self._crew.members:
            member.process.send(wire.Finish())
        finals = [m for m in self._crew.members if m.started]
        self._wait(lambda: all(m.final for m in finals), END_TIMEOUT_S, "end")
        self._progress(force=True)
        return self._outcome(share)

    def close(self) -> None:
        self._selector.close()
        self._crew.release()

    # Workers

    def _key(self) -> tuple[str, bool]:
        return self._target.base_url, self._load.concurrency is not None

    def _level(self) -> float:
        """How heavy the load is, to compare with others of its mode."""
        if self._load.concurrency is not None:
            return float(self._load.concurrency)
        times = self._load.arrivals_s or ()
        return len(times) / max(times[-1], 1e-3) if times else 0.0

    def _most(self) -> int:
        """Workers there may be: no more than CPUs, or than places."""
        most = self._load.workers or max(1, int(usable_cpus()))
        closed = self._load.concurrency is not None
        places = self._load.concurrency if closed else self._load.max_in_flight
        return most if places is None else min(most, places)

    def _workers_at_first(self) -> int:
        if self._load.workers is not None:
            return self._most()
        level, count = _needed.get(self._key(), (0.0, 1))
        return min(count, self._most()) if self._level() >= level else 1

    def _watch(self, member: Member) -> None:
        self._selector.register(member.process.stdout, selectors.EVENT_READ, member)

    def _start_ready(self) -> None:
        for member in self._crew.members:
            if member.ready and not member.started:
                member.started = True
                member.process.send(wire.Start(self._base, self._load.duration_s))
                member.process.send(wire.Refill(max(2, (member.places or 0) // 2)))

    # Messages

    def _poll(self, timeout_s: float) -> None:
        for key, _ in self._selector.select(timeout_s):
            member: Member = key.data
            for message in member.process.receive():
                self._on_message(member, message)

    def _on_message(self, member: Member, message: wire.ToParent) -> None:
        match message:
            case wire.Ready():
                member.ready = True
            case wire.Tick():
                member.on_tick(message, self._now())
            case wire.Ended(records):
                self._records += records
                if self._on_progress is not None:
                    self._recent += records
                self._answered = self._answered or any(r.error != "connect" for r in records)
            case wire.Final():
                member.final = message

    def _wait(self, done: Callable[[], bool], timeout_s: float, what: str) -> None:
        deadline = perf_counter() + timeout_s
        while not done():
            if perf_counter() > deadline:
                raise BenchError(f"the client processes did not {what} within {timeout_s:g} s")
            self._poll(POLL_S)

    # The run

    def _now(self) -> float:
        return perf_counter() - self._base

    def _loop(self) -> None:
        crew = self._crew
        duration = self._load.duration_s
        kill_s = float("inf")
        while not (crew.exhausted and crew.idle):
            self._poll(POLL_S)
            now = self._now()
            if not self._interrupted and self._stop is not None and self._stop.is_set():
                self._interrupted = True
                crew.stop_feeding()
                kill_s = now + STOP_GRACE_S
                for member in crew.members:
                    member.process.send(wire.Stop(STOP_GRACE_S))
            if self._interrupted and (
                now > kill_s + 1.0 or all(m.tick.in_flight == 0 for m in crew.members)
            ):
                return
            if duration is not None and now >= duration:
                return
            if not self._answered and len(self._records) >= UNREACHABLE_AFTER:
                return
            if not crew.exhausted:
                crew.feed(now)
            if self._load.workers is None and crew.grow(now, self._most()):
                self._watch(crew.members[-1])
                _needed[self._key()] = self._level(), len(crew.members)
            self._start_ready()
            crew.balance()
            self._progress()

    def _progress(self, force: bool = False) -> None:
        now = self._now()
        if self._on_progress is None or not (force or now >= self._shown_s + PROGRESS_S):
            return
        self._shown_s = now
        done, failed, in_flight, tokens = totals(self._crew.members)
        self._rates.append((now, tokens))
        while len(self._rates) > 2 and self._rates[1][0] <= now - 1.0:
            self._rates.popleft()
        (before, tokens_before) = self._rates[0]
        rate = (tokens - tokens_before) / (now - before) if now > before else 0.0
        begun = self._crew.exhausted and all(m.on_hand == 0 for m in self._crew.members)
        phase = "draining" if begun and in_flight else "measuring"
        recent, self._recent = self._recent, []
        self._on_progress(
            Progress(now, phase, self._crew.total(), done, failed, in_flight, tokens, rate, recent)
        )

    def _outcome(self, machine_cpu_share: float) -> LoadOutcome:
        records = self._records
        if all_unreachable(records):
            url = parse_url(self._target.base_url).url
            raise ServerUnreachable(
                f"no server answers at {url}: {records[0].message} "
                f"({len(records)} requests, none found a connection)"
            )
        records.sort(key=lambda r: (r.dispatched_s, r.index, r.turn))
        finals = [m.final for m in self._crew.members if m.final is not None]
        last = max((r.ended_s for r in records), default=0.0)
        duration = self._load.duration_s
        timed_out = duration is not None and last >= duration and not self._interrupted
        return LoadOutcome(
            records=records,
            started_s=self._base,
            wall_clock=self._wall,
            duration_s=duration if timed_out and duration is not None else last,
            interrupted=self._interrupted,
            health=judge(finals, records, machine_cpu_share, self._load.arrivals_s is not None),
        )


class _MachineCpu:
    """The share of all cores that anybody used since this was made."""

    def __init__(self) -> None:
        self._before = self._times()

    def _times(self) -> tuple[float, float]:
        import psutil

        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        return sum(times) - getattr(times, "guest", 0.0), idle

    def share(self) -> float:
        (total, idle), (total_before, idle_before) = self._times(), self._before
        spent = total - total_before
        return min(1.0, max(0.0, 1 - (idle - idle_before) / spent)) if spent > 0 else 0.0
