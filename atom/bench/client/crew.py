"""The parent's side of a run: hands jobs to the workers, adds workers when one saturates.

A worker has its share of the places (closed loop) and a few jobs on hand, so that nothing waits for
the parent. One worker begins. When its CPU passes `GROW_AT` a second one starts and takes over
places as they become free: never are more jobs in flight than asked for. What a load needed is
remembered, so that the warm-up, or at the latest the second repeat, finds the right number.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from itertools import pairwise

from atom.bench.client import pool, wire
from atom.bench.client.body import common_body, first_content, request_body
from atom.bench.errors import BenchError
from atom.bench.types import Job, Load, RequestRecord, Target

GROW_AT = 0.5  # of a core: what is left absorbs bursts
GROW_WINDOW_S = 1.0
LOOKAHEAD_S = 2.0  # open loop: jobs are with a worker this long before their arrival
MAX_ON_HAND_BYTES = 32 << 20
MIN_ON_HAND, MAX_ON_HAND = 4, 8192


class Member:
    """A worker as the parent knows it."""

    def __init__(self, process: pool.WorkerProcess, number: int, places: int | None) -> None:
        self.process = process
        self.number = number
        self.places = places  # granted
        self.ready = self.started = False
        self.final: wire.Final | None = None
        self.sent = 0  # jobs
        self.sizes: deque[int] = deque()  # of their bodies, those that have not begun
        self.bytes_on_hand = 0
        self.tick = wire.Tick(0, 0, 0, 0, 0, 0, places, 0.0, 0.0)
        self.past: deque[tuple[float, float]] = deque()  # (moment, CPU seconds)

    def on_tick(self, tick: wire.Tick, now: float) -> None:
        for _ in range(tick.started - self.tick.started):
            self.bytes_on_hand -= self.sizes.popleft()
        self.tick = tick
        self.past.append((now, tick.cpu_s))
        while len(self.past) > 2 and self.past[1][0] <= now - GROW_WINDOW_S:
            self.past.popleft()

    @property
    def on_hand(self) -> int:
        return self.sent - self.tick.started

    @property
    def unfinished(self) -> int:
        return self.on_hand + self.tick.in_flight

    def cpu_share(self) -> float:
        """Over the last second; 0 before one has passed."""
        if not self.past:
            return 0.0
        (before, cpu_before), (now, cpu_now) = self.past[0], self.past[-1]
        enough = now - before >= 0.9 * GROW_WINDOW_S
        return (cpu_now - cpu_before) / (now - before) if enough else 0.0


class Crew:
    def __init__(
        self, target: Target, load: Load, jobs: Iterator[Job], server: wire.Server
    ) -> None:
        self._target = target
        self._load = load
        self._jobs = jobs
        self._server = server
        self._common = common_body(target)
        self._next: wire.Task | None = None  # taken from `jobs`, not yet handed out
        self._fed = 0
        self._turns_fed = 0
        self._rests_until = 0.0  # no growing before
        self.exhausted = False
        self.members: list[Member] = []

    def add(self, total: int) -> Member:
        """Start a worker; `total`: how many there will be."""
        number = len(self.members)
        share = self._share(number, total)
        if self.members and self.members[0].started and share is not None:
            share = 0  # the others hold all places yet
        member = Member(pool.take(), number, share)
        self.members.append(member)
        member.process.send(
            wire.Setup(
                number,
                self._server,
                self._target.endpoint,
                self._common,
                dict(self._target.extra_body),
                self._load.arrivals_s is not None,
                share,
                self._load.keep_text,
            )
        )
        return member

    def _share(self, number: int, total: int) -> int | None:
        closed = self._load.concurrency is not None
        places = self._load.concurrency if closed else self._load.max_in_flight
        if places is None:
            return None
        return places // total + (number < places % total)

    # Jobs

    def feed(self, now: float) -> None:
        """Hand out jobs until everybody has enough; `now` is on the run's clock."""
        while (task := self._peek()) is not None:
            member = self._who(task, now)
            if member is None:
                break
            self._next = None
            member.sent += 1
            member.sizes.append(len(task.body))
            member.bytes_on_hand += len(task.body)
            member.process.send(task)

    def _who(self, task: wire.Task, now: float) -> Member | None:
        able = [m for m in self.members if m.ready and m.bytes_on_hand < MAX_ON_HAND_BYTES]
        if task.arrival_s is not None:
            if task.arrival_s > now + LOOKAHEAD_S:
                return None
            return min(able, key=lambda m: m.unfinished / (m.places or 1), default=None)
        able = [m for m in able if m.places and m.on_hand < self._wanted(m)]
        return min(able, key=lambda m: m.on_hand / (m.places or 1), default=None)

    def _wanted(self, member: Member) -> int:
        """Jobs on hand: those that free places take at once, and the next one of each place, or
        half a second's worth."""
        places = member.places or 0
        idle = max(0, places - member.tick.in_flight)
        elapsed = member.past[-1][0] if member.past else 0.0
        rate = member.tick.started / elapsed if elapsed > 0.5 else 0.0
        wanted = idle + min(MAX_ON_HAND, max(MIN_ON_HAND, places, math.ceil(rate / 2)))
        if len(self.members) > 1 and self._load.num_requests is not None:
            # Towards the end, what one has on hand another could have begun.
            left = self._load.num_requests - self._fed
            wanted = min(wanted, idle + max(1, left // (2 * len(self.members))))
        return wanted

    def _peek(self) -> wire.Task | None:
        if self._next is None and not self.exhausted:
            limit = self._load.num_requests
            arrivals = self._load.arrivals_s
            job = None
            if (limit is None or self._fed < limit) and (
                arrivals is None or self._fed < len(arrivals)
            ):
                job = next(self._jobs, None)
            if job is None:
                self.exhausted = True
                return None
            self._next = self._task(job, None if arrivals is None else arrivals[self._fed])
            self._fed += 1
            self._turns_fed += len(job.turns)
        return self._next

    def total(self) -> int | None:
        """Requests of the whole run, as far as is known; None: it is not."""
        if self.exhausted:
            return self._turns_fed
        limits = [self._load.num_requests, len(self._load.arrivals_s or ()) or None]
        jobs = min((limit for limit in limits if limit is not None), default=None)
        if jobs is None or self._load.duration_s is not None:
            return None
        # Jobs to come are taken to have as many turns as those that have.
        return round(jobs * self._turns_fed / self._fed) if self._fed else jobs

    def _task(self, job: Job, arrival_s: float | None) -> wire.Task:
        content = first_content(job, self._target.endpoint)
        first = job.turns[0]
        body = request_body(
            self._common, self._target.extra_body, self._target.endpoint, content, first
        )
        turns = job.turns
        if len(turns) == 1:
            turns = [type(first)(max_tokens=first.max_tokens, input_len=first.input_len)]
        return wire.Task(job.index, turns, body, arrival_s)

    def stop_feeding(self) -> None:
        self._next = None
        self.exhausted = True

    # Growth

    def grow(self, now: float, most: int) -> bool:
        """Start one more worker if one saturates; True if so."""
        if now < self._rests_until or len(self.members) >= most or self.exhausted:
            return False
        if not all(m.started for m in self.members):
            return False
        if max(m.cpu_share() for m in self.members) <= GROW_AT:
            return False
        self._rests_until = now + 2 * GROW_WINDOW_S
        self.add(len(self.members) + 1)
        return True

    def balance(self) -> None:
        """Move places towards equal shares; more than asked for are never held."""
        total = len(self.members)
        if total < 2 or self.members[0].places is None:
            return
        asked = sum(self._share(number, total) or 0 for number in range(total))
        held = 0
        for member in self.members:
            share = self._share(member.number, total) or 0
            if (member.places or 0) > share:
                self._grant(member, share)
            held += max(member.places or 0, member.tick.in_flight, member.tick.places or 0)
        for member in self.members:
            share = self._share(member.number, total) or 0
            more = min(share - (member.places or 0), asked - held)
            if more > 0 and member.started:
                self._grant(member, (member.places or 0) + more)
                held += more

    def _grant(self, member: Member, places: int) -> None:
        member.places = places
        member.process.send(wire.Places(places))

    # The end

    @property
    def idle(self) -> bool:
        """Every job that was handed out has ended."""
        return all(m.unfinished == 0 for m in self.members)

    def release(self) -> None:
        """Workers that said their last word are kept for the next run, others ended."""
        for member in self.members:
            if member.final is not None:
                pool.give_back(member.process)
            else:
                member.process.end()
        self.members = []


def check(load: Load) -> None:
    """Raises `BenchError` for a load that cannot be."""
    closed, opened = load.concurrency is not None, load.arrivals_s is not None
    if closed == opened:
        raise BenchError("a load has either a concurrency or arrival times")
    numbers = {
        "concurrency": load.concurrency,
        "max in flight": load.max_in_flight,
        "number of requests": load.num_requests,
        "number of workers": load.workers,
    }
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise BenchError(f"the {name} must be at least 1, got {number}")
    if load.duration_s is not None and not load.duration_s > 0:
        raise BenchError(f"the duration must be above 0 s, got {load.duration_s:g}")
    times = load.arrivals_s or ()
    if any(b < a for a, b in pairwise(times)) or (times and times[0] < 0):
        raise BenchError("arrival times must not fall and not be negative")


def totals(members: list[Member]) -> tuple[int, int, int, int]:
    """Requests done and failed, jobs in flight, tokens: over all workers."""
    ticks = [m.tick for m in members]
    return (
        sum(t.done for t in ticks),
        sum(t.failed for t in ticks),
        sum(t.in_flight for t in ticks),
        sum(t.tokens for t in ticks),
    )


def all_unreachable(records: list[RequestRecord]) -> bool:
    return bool(records) and all(record.error == "connect" for record in records)
