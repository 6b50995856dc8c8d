"""Records of loads that never ran: a server that steps through batches, in simulated time."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from atom.bench.types import ClientHealth, LoadOutcome, RequestRecord

Lengths = Callable[[int, random.Random], int]
HEALTH = ClientHealth(
    workers=1,
    cpu_share=[0.1],
    lag_p50_ms=0.1,
    lag_p99_ms=0.2,
    lag_max_ms=0.5,
    send_delay_p99_ms=0.1,
    chunks_per_s=100.0,
    machine_cpu_share=0.2,
)


def outcome(records: Sequence[RequestRecord], duration_s: float | None = None) -> LoadOutcome:
    end = max((r.ended_s for r in records), default=1.0)
    return LoadOutcome(
        records=list(records),
        started_s=0.0,
        wall_clock=1_700_000_000.0,
        duration_s=end if duration_s is None else duration_s,
        interrupted=False,
        health=HEALTH,
    )


def request(
    index: int = 0,
    *,
    at: float = 0.0,
    ttft: float = 0.1,
    itl: float = 0.01,
    tokens: int = 10,
    speed: float = 1.0,
    **more: object,
) -> RequestRecord:
    """A request that went well, one token a chunk; times are multiplied by `speed`."""
    times = [at + (ttft + i * itl) * speed for i in range(tokens)]
    record = RequestRecord(
        index=index,
        intended_s=at,
        dispatched_s=at,
        sent_s=at,
        ended_s=times[-1],
        first_text_s=times[0],
        token_times_s=times,
        token_counts=[1] * tokens,
        counted_by="continuous_usage",
        input_tokens=100,
        output_tokens=tokens,
        asked_input=100,
        asked_output=tokens,
    )
    for name, value in more.items():
        setattr(record, name, value)
    return record


def closed_loop(
    concurrency: int,
    count: int,
    lengths: Lengths,
    seed: int,
    *,
    step_s: float = 0.01,
    per_request_s: float = 0.0002,
    prefill_s: float = 0.02,
    speed: float = 1.0,
) -> list[RequestRecord]:
    """A batching server under a closed loop: each step gives one token to every running request and
    reads up to four prompts, which makes the step longer."""
    rng = random.Random(seed)
    now, started = 0.0, 0
    running: list[RequestRecord] = []
    waiting: list[RequestRecord] = []
    done: list[RequestRecord] = []
    while len(done) < count:
        while started < count and len(running) + len(waiting) < concurrency:
            tokens = lengths(started, rng)
            waiting.append(request(started, at=now, tokens=1, output_tokens=tokens))
            waiting[-1].token_times_s, waiting[-1].token_counts = [], []
            started += 1
        reading, waiting = waiting[:4], waiting[4:]
        now += (step_s + per_request_s * len(running) + prefill_s * len(reading)) * speed
        batch, running = running + reading, []
        for record in batch:
            record.token_times_s.append(now)
            record.token_counts.append(1)
            if len(record.token_times_s) == record.output_tokens:
                record.ended_s, record.asked_output = now, record.output_tokens
                record.first_text_s = record.token_times_s[0]
                done.append(record)
            else:
                running.append(record)
    return sorted(done, key=lambda r: r.index)


def noisy_run(rng: random.Random, count: int = 80, noise: float = 0.015) -> list[RequestRecord]:
    """One repeat whose speed differs from the others' by `noise`; eight in flight."""
    speed = rng.lognormvariate(0.0, noise)
    free = [0.0] * 8
    records = []
    for index in range(count):
        place = free.index(min(free))
        record = request(
            index,
            at=free[place],
            ttft=0.1 * rng.lognormvariate(0.0, 0.4),
            itl=0.01 * rng.lognormvariate(0.0, 0.1),
            tokens=16,
            speed=speed,
        )
        free[place] = record.ended_s
        records.append(record)
    return records
