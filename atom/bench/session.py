"""Measures points: warm-up, repeats, precision, the profiled pass. One `RunResult` for each point.

It sends load and summarises; it prints nothing, stores nothing and judges nothing but whether a run
can be trusted (`status`).
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from atom.bench import client, history, metrics, results
from atom.bench.errors import BenchError, ServerUnreachable, TooManyErrors
from atom.bench.metrics import LegacyFields, MetricOptions
from atom.bench.points import Point
from atom.bench.settings import Settings
from atom.bench.types import (
    Interval,
    LoadOutcome,
    Progress,
    RepeatResult,
    RequestRecord,
    RunResult,
    Target,
    Workload,
    chain,
)
from atom.bench.verdicts import describe_error, precision_names, status, workload_notes
from atom.bench.workloads import TokenSource, make_workload

# The warm-up's prompts come from another seed, so that no measured prompt is in a prefix cache.
WARMUP_SEED = 1_000_003
# Seeds of one point; the next point begins a block later.
SEEDS_PER_POINT = 1_000
WARMUP_ATTEMPTS = 2  # a lone failure of a lone request is no broken server
MOST_PROFILED = 32  # requests of the profiled pass: traces grow by megabytes a second
WARMUP_TOKENS = 32  # of an answer: enough for every kernel and graph to have run


class Display(Protocol):
    """Who shows how it goes. Everything is called from the thread that measures."""

    def say(self, text: str, *, important: bool = False) -> None: ...

    def waiting(self, what: str, seconds: float) -> None: ...

    def begin_point(self, point: Point, repeats: int) -> None: ...

    def begin_pass(self, name: str) -> None: ...

    def progress(self, progress: Progress, /) -> None: ...

    def end_pass(self, result: RepeatResult) -> None: ...

    def end_point(self, run: RunResult) -> None: ...


@dataclass(slots=True)
class Measured:
    """A point that was measured, with its samples."""

    run: RunResult
    records: list[list[RequestRecord]]
    point: Point
    broken: BenchError | None = None  # what ended it before its time: no more can be measured


@dataclass(slots=True)
class _Passes:
    """The repeats of a point so far."""

    results: list[RepeatResult] = field(default_factory=list)
    records: list[list[RequestRecord]] = field(default_factory=list)
    whole: list[int] = field(default_factory=list)  # numbers of those that were not broken off
    options: MetricOptions | None = None
    workload: Workload | None = None
    broken: BenchError | None = None

    def take(self, result: RepeatResult, outcome: LoadOutcome, options: MetricOptions) -> None:
        if not outcome.interrupted:
            self.whole.append(len(self.results))
        self.results.append(result)
        self.records.append(outcome.records)
        self.options = options

    def intervals(self) -> dict[str, Interval]:
        """Over the repeats; what was broken off counts only where there is nothing else."""
        assert self.options is not None
        chosen = self.whole or [len(self.results) - 1]
        return metrics.combine(
            [self.results[i] for i in chosen], [self.records[i] for i in chosen], self.options
        )


class Session:
    """Everything that the points of one `atom bench` share.

    `provenance` is asked for each run, while the server holds its model. `gone` says why the
    recipe's server has ended, or None.
    """

    def __init__(
        self,
        settings: Settings,
        target: Target,
        tokens: TokenSource | None,
        *,
        max_len: int | None,
        display: Display,
        stop: threading.Event,
        seed: int,
        name: str,
        provenance: Callable[[], dict[str, Any]],
        gone: Callable[[], str | None] = lambda: None,
        sweep_id: str = "",
        notes: Sequence[str] = (),
    ) -> None:
        self.settings = settings
        self.target = target
        self.stop = stop
        self.seed = seed
        self._tokens = tokens
        self._max_len = max_len
        self._display = display
        self._name = name
        self._provenance = provenance
        self._gone = gone
        self._sweep_id = sweep_id
        self._notes = list(notes)
        results.check_metadata(settings)
        self._collected: dict[str, Any] | None = None
        self._blocks = 0  # of seeds, handed out

    def prepare(self, point: Point) -> tuple[Point, Workload]:
        """The point as it will be measured, and its first repeat's workload; sends no load.

        Raises `BenchError` for whatever is wrong with the data.
        """
        return self._fitted(point, self._next_seed())

    def measure(self, point: Point) -> Measured:
        """Warm up and measure one point. What is there when `stop` is set is kept.

        Raises `ServerUnreachable` or `TooManyErrors` when there is nothing to keep.
        """
        settings = self.settings
        seed = self._next_seed()
        point, workload = self._fitted(point, seed)
        self._display.begin_point(point, settings.repeats)
        self._warm_up(point, seed)
        passes = _Passes(workload=workload)
        while not self.stop.is_set() and self._more(passes):
            number = len(passes.results)
            self._display.begin_pass(f"repeat {number + 1}")
            try:
                if number:
                    workload = self._workload(point, seed + number)
                outcome, options = self._pass(point, workload, seed + number)
            except BenchError as error:
                if not passes.results:
                    raise self._explained(error) from None
                passes.broken = self._explained(error)
                break
            result = metrics.summarize(outcome, options)
            passes.take(result, outcome, options)
            self._display.end_pass(result)
            if not result.metrics.get("completed"):
                break  # it will not become better
        if not passes.results:
            raise KeyboardInterrupt  # before anything was measured
        run = self._result(point, passes)
        self._display.end_point(run)
        return Measured(run, passes.records, point, passes.broken)

    def profile(self, point: Point) -> list[str]:
        """One pass of a request per place under the server's profiler: where its traces lie.

        Raises `BenchError` where the server has no profiler.
        """
        count = min(point.warmups(), point.num_requests or MOST_PROFILED)
        point = replace(point, num_requests=count, duration_s=None)
        seed = self._next_seed()
        point, workload = self._fitted(point, seed)
        self._display.begin_pass("profile")
        client.profile(self.target, "start")
        try:
            self._load(point, workload, seed)
        finally:
            said = client.profile(self.target, "stop")
        found = said.get("traces")
        return [str(path) for path in found] if isinstance(found, list) else []

    def _next_seed(self) -> int:
        self._blocks += 1
        return self.seed + (self._blocks - 1) * SEEDS_PER_POINT

    def _more(self, passes: _Passes) -> bool:
        """Whether another repeat is due."""
        done, settings = len(passes.results), self.settings
        if done < settings.repeats:
            return True
        limit = settings.config.statistics.max_repeats
        return settings.precision is not None and done < limit and not self._precise(passes)

    def _precise(self, passes: _Passes) -> bool:
        assert self.settings.precision is not None
        intervals = passes.intervals()
        return metrics.precision(intervals, precision_names(intervals)) <= self.settings.precision

    def _workload(self, point: Point, seed: int) -> Workload:
        spec = self.settings.workload_spec(max_len=self._max_len, limit=point.num_requests)
        return make_workload(spec, self._tokens, seed)

    def _fitted(self, point: Point, seed: int) -> tuple[Point, Workload]:
        workload = self._workload(point, seed)
        return point.fit(workload, asked=self.settings.count_asked), workload

    def _warm_up(self, point: Point, seed: int) -> None:
        asked = self.settings.config.load.warmup
        count = point.warmups() if asked is None else asked
        if not count or self.stop.is_set():
            return
        failed: RequestRecord | None = None
        for attempt in range(WARMUP_ATTEMPTS):
            self._display.begin_pass("warm-up")
            failed = self._warm_up_once(point, seed + attempt, count)
            if failed is None:
                return
        assert failed is not None
        raise self._explained(
            TooManyErrors(f"every warm-up request failed: {describe_error(failed)}")
        )

    def _warm_up_once(self, point: Point, seed: int, count: int) -> RequestRecord | None:
        """The first failure if every request failed, else None."""
        workload = self._workload(replace(point, num_requests=count), seed + WARMUP_SEED)
        if workload.length is not None:
            count = min(count, workload.length)
        load = Point(
            concurrency=min(count, point.concurrency or count),
            num_requests=count,
            workers=point.workers,
        ).load(workload, seed)
        jobs = (_shortened(job) for job in chain(workload.jobs(), count))
        outcome = client.run_load(
            self.target, jobs, load, on_progress=self._display.progress, stop=self.stop
        )
        if any(r.error is None for r in outcome.records):
            return None
        return next((r for r in outcome.records if r.error != "cancelled"), None)

    def _pass(
        self, point: Point, workload: Workload, seed: int
    ) -> tuple[LoadOutcome, MetricOptions]:
        before = self._scrape()
        outcome = self._load(point, workload, seed)
        after = self._scrape()
        statistics = self.settings.config.statistics
        options = MetricOptions(
            closed=point.closed,
            percentiles=tuple(statistics.metric_percentiles),
            objectives=self.settings.objectives,
            goodput=self.settings.goodput,
            num_gpus=self._num_gpus(),
            stationary=point.stationary,
            seed=seed,
            server=client.delta(before, after) if before and after else {},
        )
        return outcome, options

    def _load(self, point: Point, workload: Workload, seed: int) -> LoadOutcome:
        keep_text = self.settings.config.output.save_detailed
        load = point.load(workload, seed, keep_text=keep_text)
        return client.run_load(
            self.target,
            chain(workload.jobs(), load.num_requests),
            load,
            on_progress=self._display.progress,
            stop=self.stop,
        )

    def _scrape(self) -> dict[str, float]:
        """The server's metrics page; empty where it has none: then nothing of it is reported."""
        target = self.target
        return client.server_metrics(
            target.base_url, target.api_key, target.headers, verify_tls=target.verify_tls
        )

    def _num_gpus(self) -> int:
        hardware = self._known().get("hardware") or {}
        return int(hardware.get("num_gpus") or 0)

    def _known(self) -> dict[str, Any]:
        """The provenance, asked for once the warm-up has seen to it that the model is loaded."""
        if self._collected is None:
            self._collected = self._provenance()
        return self._collected

    def _explained(self, error: BenchError) -> BenchError:
        """The error, or why the recipe's server has ended: then that is the cause."""
        problem = self._gone()
        return error if problem is None else ServerUnreachable(problem)

    def _result(self, point: Point, passes: _Passes) -> RunResult:
        # The point's own, which gives the same prompts when it is measured alone.
        provenance = {**self._known(), "seed": passes.results[0].seed}
        assert passes.workload is not None
        load, workload = point.describe(), passes.workload.describe()
        arguments = self.settings.config.server.server_args
        if arguments:
            load["server_args"] = arguments
        run = RunResult(
            run_id=history.new_run_id(),
            kind="bench",
            name=self._name,
            model=self.target.model,
            load=load,
            workload=workload,
            provenance=provenance,
            fingerprint=history.fingerprint(
                model=self.target.model, load=load, workload=workload, provenance=provenance
            ),
            repeats=passes.results,
            metrics=passes.intervals(),
            legacy={},
            sweep_id=self._sweep_id,
            slo=dict(self.settings.objectives),
        )
        limit = self.settings.config.statistics.max_error_rate
        run.status, reasons = status(run, max_error_rate=limit, ended=self._ended(passes))
        run.notes = [*reasons, *self._notes, *workload_notes(passes.workload, run)]
        run.legacy = metrics.legacy(run, passes.records, self.legacy_fields(point))
        return run

    def _ended(self, passes: _Passes) -> str:
        """Why the point ended before its time, or ""."""
        count = len(passes.results)
        if passes.broken is not None:
            return f"broken off after {count} repeats: {passes.broken}"
        whole = len(passes.whole) >= self.settings.repeats
        return f"interrupted in repeat {count}" if self.stop.is_set() and not whole else ""

    def legacy_fields(self, point: Point) -> LegacyFields:
        config = self.settings.config
        rate = point.arrivals.rate if point.arrivals is not None else None
        return LegacyFields(
            backend="openai-chat" if self.target.endpoint == "chat" else "vllm",
            tokenizer_id=config.server.tokenizer or "",
            request_rate=float("inf") if rate is None else rate,
            burstiness=config.load.burstiness,
            max_concurrency=point.concurrency or point.max_in_flight,
            metadata=self.settings.metadata,
            selected=config.statistics.percentile_metrics,
            percentiles=tuple(config.statistics.metric_percentiles),
            detailed=config.output.save_detailed,
        )


def draw_seed() -> int:
    """A seed for who gives none: small enough to be typed again."""
    return random.SystemRandom().randrange(1_000_000)


def _shortened(job: Any) -> Any:
    """A warm-up job: the first turn, its answer cut."""
    import msgspec

    turn = job.turns[0]
    turn = msgspec.structs.replace(turn, max_tokens=min(turn.max_tokens, WARMUP_TOKENS), delay_s=0)
    return msgspec.structs.replace(job, turns=[turn], arrival_s=None)
