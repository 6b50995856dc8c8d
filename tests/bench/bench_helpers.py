"""Jobs for the mock server, and the pairing of what the client saw with what the mock did."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mock_behaviour import Behaviour
from mock_server import MockServer, Truth

from atom.bench.client import run_load
from atom.bench.types import Endpoint, Job, Load, LoadOutcome, RequestRecord, Target, Turn


def make_jobs(
    count: int,
    max_tokens: int = 8,
    endpoint: Endpoint = "completions",
    bodies: Sequence[dict[str, Any]] = ({},),
) -> Iterator[Job]:
    """`count` jobs whose prompt begins with their number; job i gets `bodies[i % len(bodies)]`."""
    for index in range(count):
        text = f"<{index}> tok tok tok"
        turn = Turn(max_tokens=max_tokens, extra_body=dict(bodies[index % len(bodies)]))
        if endpoint == "chat":
            turn = Turn(
                messages=[{"role": "user", "content": text}],
                max_tokens=max_tokens,
                extra_body=turn.extra_body,
            )
        else:
            turn = Turn(prompt=text, max_tokens=max_tokens, extra_body=turn.extra_body)
        yield Job(index, [turn])


def run_jobs(
    server: MockServer,
    jobs: Iterator[Job],
    load: Load,
    endpoint: Endpoint = "completions",
    **target: Any,
) -> LoadOutcome:
    model = server.behaviour.model
    where = Target(base_url=server.url, model=model, endpoint=endpoint, **target)
    return run_load(where, jobs, load)


def measured(
    behaviour: Behaviour, jobs: Iterator[Job], load: Load, **more: Any
) -> tuple[LoadOutcome, list[tuple[RequestRecord, Truth]]]:
    """One pass over a mock of its own: the outcome, and each record beside its truth."""
    with MockServer(behaviour) as server:
        outcome = run_jobs(server, jobs, load, **more)
    return outcome, paired(outcome, server.truth)


def paired(outcome: LoadOutcome, truths: Sequence[Truth]) -> list[tuple[RequestRecord, Truth]]:
    """By the number in the prompt; a record without its truth is an error."""
    by_number = {}
    for truth in truths:
        start = truth.prompt.index("<", 1 if truth.prompt.startswith("<|") else 0)
        by_number[int(truth.prompt[start + 1 : truth.prompt.index(">", start)])] = truth
    return [(record, by_number[record.index]) for record in outcome.records]


def eventually(holds: Callable[[], bool]) -> None:
    """Another process's doing has no moment of its own; it must come within seconds."""
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)
