"""From request records to samples of latency, and what a request counts for.

With t0 the origin (`sent_s` in closed loop, `intended_s` in open loop), c_1 .. c_m the chunks that
carried tokens, w_1 .. w_m their tokens and n the output tokens by `usage`:

    TTFT = c_1 - t0                     E2EL = c_m - t0
    TPOT = (c_m - c_1) / (n - 1)        for n > 1 (vLLM's and the original's definition)
    ITL  = (c_j - c_j-1) / w_j          for j > 1, standing for w_j tokens
    chunk gap = c_j - c_j-1             for j > 1; what the original calls ITL
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from atom.bench.metrics.statistics import Array, Sample, pool
from atom.bench.types import RequestRecord

# Given up by us at the end of a timed run or on Ctrl-C: neither a success nor a failure.
CANCELLED = "cancelled"


class Outcome(NamedTuple):
    """The records of one pass, told apart by how they ended."""

    completed: list[RequestRecord]
    failed: list[RequestRecord]
    cancelled: list[RequestRecord]


def split(records: Iterable[RequestRecord]) -> Outcome:
    outcome = Outcome([], [], [])
    for record in records:
        if record.error is None:
            outcome.completed.append(record)
        elif record.error == CANCELLED:
            outcome.cancelled.append(record)
        else:
            outcome.failed.append(record)
    return outcome


def origin(record: RequestRecord, closed: bool) -> float:
    """The moment its latencies count from."""
    return record.sent_s if closed else record.intended_s


def last_token_s(record: RequestRecord) -> float:
    return record.token_times_s[-1] if record.token_times_s else record.ended_s


def token_weights(record: RequestRecord) -> Array | None:
    """Tokens of each chunk; None where the server did not tell how many there were.

    Without continuous usage the total is known and its distribution is not: it is spread evenly.
    """
    counts: Array = np.asarray(record.token_counts, dtype=np.float64)
    if record.output_tokens is None:
        return counts if record.counted_by == "continuous_usage" else None
    told = counts.sum()
    if told == record.output_tokens or not told:
        return counts
    scaled: Array = counts * (record.output_tokens / told)
    return scaled


def _ttft(record: RequestRecord, closed: bool) -> float | None:
    return record.token_times_s[0] - origin(record, closed) if record.token_times_s else None


def _first_text(record: RequestRecord, closed: bool) -> float | None:
    return None if record.first_text_s is None else record.first_text_s - origin(record, closed)


def _tpot(record: RequestRecord, closed: bool) -> float | None:
    if record.output_tokens is None or record.output_tokens < 2 or not record.token_times_s:
        return None
    return (record.token_times_s[-1] - record.token_times_s[0]) / (record.output_tokens - 1)


def _e2el(record: RequestRecord, closed: bool) -> float:
    return last_token_s(record) - origin(record, closed)


def _client_queue(record: RequestRecord, closed: bool) -> float:
    return record.sent_s - record.intended_s


def _server_queue(record: RequestRecord, closed: bool) -> float | None:
    return record.server.get("queue_s")


def _mean_itl(record: RequestRecord, closed: bool) -> float | None:
    """The request's own mean, which is what a goodput limit on `itl` means."""
    weights = token_weights(record)
    if weights is None or len(weights) < 2:
        return None
    return (record.token_times_s[-1] - record.token_times_s[0]) / float(weights[1:].sum())


# One number per request, in seconds; None: not known, or it has none.
PER_REQUEST: dict[str, Callable[[RequestRecord, bool], float | None]] = {
    "ttft": _ttft,
    "tpot": _tpot,
    "e2el": _e2el,
    "client_queue": _client_queue,
    "server_queue": _server_queue,
    "first_text": _first_text,
    "itl": _mean_itl,
}


def latencies(completed: Sequence[RequestRecord], closed: bool) -> dict[str, Sample]:
    """Every latency of `names.LATENCIES` in milliseconds; those that nobody has are left out."""
    samples: dict[str, Sample] = {}
    for what, of in PER_REQUEST.items():
        if what == "itl":  # over requests it is pooled by token
            continue
        values = [of(record, closed) for record in completed]
        known = [(i, v) for i, v in enumerate(values) if v is not None]
        if known:
            owners, seconds = zip(*known, strict=True)
            samples[what] = Sample(np.array(seconds) * 1e3, None, np.array(owners, dtype=np.int64))
    samples.update(_gaps(completed))
    return samples


def _gaps(completed: Sequence[RequestRecord]) -> dict[str, Sample]:
    gaps: list[Sample] = []
    tokens: list[Sample] = []
    for owner, record in enumerate(completed):
        if len(record.token_times_s) < 2:
            continue
        gap = np.diff(np.asarray(record.token_times_s)) * 1e3
        owners = np.full(len(gap), owner, dtype=np.int64)
        gaps.append(Sample(gap, None, owners))
        weights = token_weights(record)
        if weights is not None:
            tokens.append(Sample(gap / weights[1:], weights[1:], owners))
    samples = {}
    for what, parts in (("itl", tokens), ("chunk_gap", gaps)):
        if parts:
            samples[what] = pool(parts, [0] * len(parts))  # owners count over all already
    return samples


def _single(record: RequestRecord) -> bool:
    return record.output_tokens == 1 or len(record.token_times_s) <= 1


def within(record: RequestRecord, limits: dict[str, float], closed: bool) -> bool | None:
    """Whether a completed request kept every limit (milliseconds); None: it cannot be told.

    A request of one token has no TPOT and no gap: nothing was slow about it (vLLM's rule).
    """
    verdict: bool | None = True
    for what, limit in limits.items():
        value = PER_REQUEST[what](record, closed)
        if value is not None:
            if value * 1e3 > limit:
                return False
        elif what not in ("tpot", "itl") or not _single(record):
            verdict = None
    return verdict
