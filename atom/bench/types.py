"""What crosses between the rooms of the benchmark. It imports none of them.

Every moment is in seconds on the run's clock: `time.perf_counter()` (one clock for all processes of
a machine on Linux), whose zero is `LoadOutcome.started_s`. Structs cross process borders as msgspec
bytes and are stored as JSON.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import msgspec

Message = dict[str, str]  # {"role": ..., "content": ...}
Endpoint = Literal["completions", "chat"]

# Why a request failed. Each failed request has exactly one; none is ever dropped.
ErrorKind = Literal[
    "connect",  # no connection, or reset before an answer began
    "timeout",  # the client's own time limit for one request
    "http",  # another status than 200; `RequestRecord.status` holds it
    "stream",  # an error event within the stream
    "early_close",  # the stream ended without [DONE] and without a finish reason
    "malformed",  # not server-sent events, or not JSON
    "no_tokens",  # ended well, but never carried a token
    "cancelled",  # given up by us: Ctrl-C, or the end of a timed run
]


class Turn(msgspec.Struct, frozen=True, omit_defaults=True):
    """One request of a job. Exactly one of `prompt` and `messages` is set."""

    prompt: str | list[int] | None = None  # for the completions endpoint
    messages: list[Message] | None = None  # for the chat endpoint; in turn > 0: what is added
    max_tokens: int = 128
    input_len: int | None = None  # tokens that the workload meant this request to have in all
    delay_s: float = 0.0  # think time: waited after the previous turn's end
    extra_body: dict[str, Any] = {}  # merged into the request's body, over everything else


class Job(msgspec.Struct, frozen=True, omit_defaults=True):
    """One conversation; nearly always a single turn. Turns run one after another.

    Turn n > 0 is sent with everything said before: the earlier messages and the server's own
    answers for chat, prompt + answer text + prompt for completions.
    """

    index: int  # position in the workload, from 0
    turns: list[Turn]
    arrival_s: float | None = None  # trace replay: when it arrives, before time scaling
    label: str = ""  # where it comes from: a row's id, a category


class Workload(Protocol):
    """A source of jobs. Job i depends on the seed and i alone: the same bytes every time."""

    name: str  # the data set's name as given: random, sharegpt, ...
    endpoint: Endpoint  # what its turns are for
    length: int | None  # number of jobs; None: it never ends

    def jobs(self, start: int = 0) -> Iterator[Job]:
        """Jobs from number `start` on."""
        ...

    def describe(self) -> dict[str, Any]:
        """Provenance: every parameter, the convention of lengths, the file's hash."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A server and how it is spoken to."""

    base_url: str  # http://host:port, without /v1
    model: str
    endpoint: Endpoint = "completions"
    api_key: str | None = None  # never printed, never stored
    headers: Mapping[str, str] = field(default_factory=dict)
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    ignore_eos: bool = True
    temperature: float = 0.0
    timeout_s: float = 600.0  # of one request
    continuous_usage: bool = True  # ask for usage in every chunk; off where a server refuses it
    verify_tls: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How requests are sent. Exactly one of `concurrency` and `arrivals_s` is set.

    A run ends after `num_requests` jobs or `duration_s` seconds (then what is in flight is given up
    and recorded as "cancelled", outside of the statistics).
    """

    concurrency: int | None = None  # closed loop: jobs in flight
    arrivals_s: Sequence[float] | None = None  # open loop: intended start of job i, from 0
    max_in_flight: int | None = None  # open loop: a cap; waiting at it is recorded, not hidden
    num_requests: int | None = None  # jobs
    duration_s: float | None = None
    workers: int | None = None  # client processes; None: as many as are needed
    keep_text: bool = False  # into RequestRecord.text


class RequestRecord(msgspec.Struct, omit_defaults=True):
    """One request as the client saw it; the sample of all metrics.

    `intended_s` <= `dispatched_s` <= `sent_s`: when the workload wanted it (open loop: its arrival;
    closed loop: the moment its place became free), when the client took it up, when its bytes had
    been written. Latencies count from `intended_s` in open loop, from `sent_s` in closed loop.
    """

    index: int  # of the job
    turn: int = 0
    worker: int = 0
    intended_s: float = 0.0
    dispatched_s: float = 0.0
    sent_s: float = 0.0
    ended_s: float = 0.0  # the end of the stream, or the moment of failure
    first_text_s: float | None = None  # first chunk with visible text
    # Chunks that advanced the token count, and by how many tokens each. The sum of token_counts is
    # output_tokens where `counted_by` is continuous_usage.
    token_times_s: list[float] = []
    token_counts: list[int] = []
    counted_by: Literal["continuous_usage", "usage", "chunks", ""] = ""
    input_tokens: int | None = None  # from usage
    output_tokens: int | None = None  # from usage; None: the server did not tell
    cached_tokens: int | None = None  # from usage
    asked_input: int | None = None  # Turn.input_len
    asked_output: int = 0  # Turn.max_tokens
    finish_reason: str | None = None
    error: ErrorKind | None = None
    status: int | None = None  # of HTTP, where it is not 200
    message: str = ""  # of the error, one line
    server: dict[str, float] = {}  # what the server told about it: queue_s, ttft_s, ...
    text: str | None = None  # kept only with --save-detailed


class ClientHealth(msgspec.Struct):
    """Whether the client could have distorted what it measured."""

    workers: int
    cpu_share: list[float]  # of one core, per worker, over the measured part
    lag_p50_ms: float  # how late a 10 ms ticker woke, over all workers
    lag_p99_ms: float
    lag_max_ms: float
    send_delay_p99_ms: float  # dispatched - intended, less waits at max_in_flight
    chunks_per_s: float
    machine_cpu_share: float  # all cores, everybody's processes, 0 to 1
    bound: bool = False  # the verdict
    reason: str = ""  # one sentence: why, or how far from it
    arrival_clock: str = ""  # whose moments of arrival: "kernel" or "client"; "" unknown


class Progress(NamedTuple):
    """Where a running load is; given to the display about four times a second."""

    elapsed_s: float
    phase: str  # warm-up, measuring, draining
    total: int | None  # requests; None: a timed run
    done: int
    failed: int
    in_flight: int
    tokens: int  # so far
    token_rate: float  # output tokens per second over the last second
    recent: Sequence[RequestRecord]  # ended since the last report


class LoadOutcome(msgspec.Struct):
    """One pass of load over a server."""

    records: list[RequestRecord]  # every request that was dispatched
    started_s: float  # perf_counter; record times count from it
    wall_clock: float  # time.time() at started_s
    duration_s: float
    interrupted: bool
    health: ClientHealth


class OnProgress(Protocol):
    def __call__(self, progress: Progress, /) -> None: ...


class Interval(msgspec.Struct):
    """An estimate with its confidence interval (of 1 - alpha, 0.95 unless said)."""

    value: float
    low: float
    high: float


class RepeatResult(msgspec.Struct):
    """One pass, summarised: `metrics` by name (see `atom.bench.names`), None: unknown."""

    seed: int
    started_at: str  # ISO 8601, UTC
    duration_s: float
    metrics: dict[str, float | None]
    errors: dict[str, int]  # cause -> requests, e.g. "http 503: queue is full"
    health: ClientHealth
    window_s: tuple[float, float] | None  # steady state, on the run's clock; None: none was found
    server: dict[str, float] = {}  # from its metrics page: acceptance, queue time, ...
    notes: list[str] = []


class RunResult(msgspec.Struct):
    """One point of a benchmark: one load on one server, repeated. What the history stores."""

    run_id: str  # sortable: <UTC stamp>-<6 hex digits>
    kind: str  # "bench", "eval"
    name: str  # recipe name or model, for people
    model: str
    load: dict[str, Any]  # mode, concurrency or request_rate, burstiness, num_requests, ...
    workload: dict[str, Any]  # Workload.describe()
    provenance: dict[str, Any]  # see `atom.bench.history.provenance`
    fingerprint: str  # runs that may be compared as "the same thing": see history.provenance
    repeats: list[RepeatResult]
    metrics: dict[str, Interval]  # over the repeats
    legacy: dict[str, Any]  # the fields of the seeds' benchmark_serving JSON
    status: str = "ok"  # ok, interrupted, client_bound, errors, slo_missed
    sweep_id: str = ""  # points of one sweep share it
    slo: dict[str, float] = {}  # metric -> limit
    notes: list[str] = []
    artefacts: list[dict[str, str]] = []  # {"kind": trace | records | ..., "path": ...}


def chain(jobs: Iterable[Job], limit: int | None) -> Iterator[Job]:
    """The first `limit` jobs; all of them for None."""
    for count, job in enumerate(jobs):
        if limit is not None and count >= limit:
            return
        yield job
