"""What a reader of one pass has to know: what was left out, what does not add up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from atom.bench.metrics.options import MetricOptions
from atom.bench.metrics.samples import Outcome
from atom.bench.metrics.statistics import Sample
from atom.bench.metrics.window import Window, mean_flight
from atom.bench.types import LoadOutcome, RequestRecord

# Prompts longer or shorter than asked by more than this are another workload.
INPUT_DRIFT = 0.005
OUTPUT_SHORT = 0.01
# Little's law holds exactly over a stationary window; beyond this the window is not stationary.
LITTLE = 0.10
# In-flight requests of the second half of an open run over those of the first.
RISING = 1.5


def notes(
    outcome: LoadOutcome,
    parts: Outcome,
    samples: Mapping[str, Sample],
    window: Window | None,
    metrics: Mapping[str, float | None],
    options: MetricOptions,
) -> list[str]:
    """One sentence each; none when there is nothing to say."""
    made = [
        _given_up(parts, outcome),
        _unknown_tokens(parts.completed),
        _input_length(parts.completed),
        _output_length(parts.completed),
        _no_window(outcome, window, options),
    ]
    if window is not None:
        made.append(_little(outcome.records, window))
        if options.closed:
            made.append(_burst(parts.completed, window))
        else:
            made.append(_rising(outcome.records, window))
    return [note for note in made if note]


def _given_up(parts: Outcome, outcome: LoadOutcome) -> str:
    count = len(parts.cancelled)
    if not count:
        return ""
    why = "interrupted" if outcome.interrupted else "in flight at the end of the time"
    return f"{count} requests were given up ({why}); they are in no statistic of latency or errors"


def _unknown_tokens(completed: Sequence[RequestRecord]) -> str:
    unknown = sum(r.output_tokens is None for r in completed)
    if not unknown:
        return ""
    return (
        f"the server sent no usage for {unknown} of {len(completed)} requests: output tokens, TPOT "
        "and ITL are unknown and not guessed from chunks"
    )


def _input_length(completed: Sequence[RequestRecord]) -> str:
    pairs = [(r.input_tokens, r.asked_input) for r in completed]
    known = [(n, asked) for n, asked in pairs if n is not None and asked]
    if not known:
        return ""
    got, asked = np.mean([n for n, _ in known]), np.mean([a for _, a in known])
    if abs(got / asked - 1) <= INPUT_DRIFT:
        return ""
    return (
        f"prompts were {got:.1f} tokens on average where {asked:.1f} were asked for "
        f"({got / asked - 1:+.1%})"
    )


def _output_length(completed: Sequence[RequestRecord]) -> str:
    pairs = [(r.output_tokens, r.asked_output) for r in completed]
    known = [(n, asked) for n, asked in pairs if n is not None and asked]
    short = sum(n < asked for n, asked in known)
    if not known or short <= OUTPUT_SHORT * len(known):
        return ""
    got, asked = np.mean([n for n, _ in known]), np.mean([a for _, a in known])
    return (
        f"{short} of {len(known)} answers ended before their limit: {got:.1f} tokens on average "
        f"where up to {asked:.1f} were allowed"
    )


def _no_window(outcome: LoadOutcome, window: Window | None, options: MetricOptions) -> str:
    if window is not None or not options.stationary or not outcome.records:
        return ""
    if options.closed:
        return "no steady state: a run needs at least 3 requests per place of --concurrency"
    return "no steady state: arrivals must go on for longer than the slowest requests take"


def _little(records: Sequence[RequestRecord], window: Window) -> str:
    """In flight = rate x time in flight (Little). Over a stationary window both sides agree."""
    inside = [r for r in records if window.start < r.ended_s <= window.end]
    measured = mean_flight(records, window.start, window.end)
    if len(inside) < 30 or len(inside) < 5 * measured:  # too few for the borders not to matter
        return ""
    stay = sum(r.ended_s - r.sent_s for r in inside)
    expected = stay / window.length
    if measured <= 0 or abs(expected / measured - 1) <= LITTLE:
        return ""
    return (
        f"not stationary: {measured:.1f} requests were in flight in the steady window, but its "
        f"requests' rate times their duration gives {expected:.1f} (Little's law)"
    )


def _burst(completed: Sequence[RequestRecord], window: Window) -> str:
    """Requests sent all at once at the start wait for each other; say when that shows."""
    first = [r.token_times_s[0] - r.sent_s for r in completed if r.token_times_s]
    steady = [
        r.token_times_s[0] - r.sent_s
        for r in completed
        if r.token_times_s and window.start <= r.sent_s <= window.end
    ]
    if len(steady) < 10:
        return ""
    whole, settled = float(np.mean(first)) * 1e3, float(np.mean(steady)) * 1e3
    if settled <= 0 or whole / settled <= 1.1:
        return ""
    return (
        f"the requests sent at once at the start raise the mean TTFT: {whole:.1f} ms, "
        f"{settled:.1f} ms in steady state"
    )


def _rising(records: Sequence[RequestRecord], window: Window) -> str:
    middle = (window.start + window.end) / 2
    early = mean_flight(records, window.start, middle)
    late = mean_flight(records, middle, window.end)
    if late < RISING * early or late - early < 5:
        return ""
    return (
        f"requests pile up: {early:.0f} in flight in the first half of the steady window, "
        f"{late:.0f} in the second; the server does not keep up with this rate"
    )
