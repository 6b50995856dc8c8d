"""A profile of a running server: load from `atom.bench`, between POST /start_profile and
/stop_profile.

With a number of requests all of them are recorded. With a number of seconds the load runs before
and after, so that what is recorded is a stretch of steady work, and its size is bounded.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msgspec import structs

from atom.bench import client
from atom.bench.client import ServerInfo
from atom.bench.history.provenance import is_local
from atom.bench.session import draw_seed
from atom.bench.types import Job, Load, LoadOutcome, Progress, Target, Workload, chain
from atom.bench.workloads import WorkloadSpec, make_workload, open_tokens
from atom.errors import AtomError
from atom.profile import collect, folder, verdict
from atom.profile.display import Display
from atom.profile.errors import ProfileError
from atom.profile.interrupt import gentle

SETTLE_S = 30.0  # the recording begins at last so long after the load
WARMUP_SEED = 1_000_003
WARMUP_TOKENS = 16  # of an answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What the command line asks for. One of `requests` and `seconds` is set."""

    url: str
    model: str | None = None
    api_key: str | None = None
    concurrency: int = 8
    input_len: int = 512
    output_len: int = 64
    requests: int | None = None
    seconds: float | None = 3.0
    trace_dir: Path | None = None  # where the server writes, if it does not say
    output_dir: Path | None = None  # None: the traces stay where they are
    seed: int | None = None  # of the prompts; None: drawn, so that none is in the prefix cache


@dataclass(slots=True)
class Profile:
    """What came of it. `files`: traces on this machine; `elsewhere`: paths on the server's."""

    document: dict[str, Any]
    folder: Path | None = None
    files: list[Path] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)
    verdict: verdict.Verdict | None = None
    problems: list[str] = field(default_factory=list)
    interrupted: bool = False


def run(ask: Ask, display: Display) -> Profile:
    """Record the server under load, then read the traces if they are on this machine.

    Raises `ServerUnreachable`, or `BenchError` and `ProfileError` in one line: the profiler is off
    or busy, the load is refused, the folder cannot be written.
    """
    if ask.output_dir is not None:
        folder.make(ask.output_dir)
    info = client.probe(ask.url, ask.api_key, model=ask.model)
    _check_lengths(ask, info)
    target, notes = client.negotiate(
        Target(base_url=info.base_url, model=info.model, api_key=ask.api_key)
    )
    display.say(f"{info.kind} {info.version or ''} at {info.base_url}: {info.model}")
    workload = _Prompts(ask, target, info)
    with gentle(lambda text: display.say(text, important=True)) as stop:
        try:
            _warm_up(ask, target, workload, stop, display)
            since = time.time()
            record = _requests if ask.requests is not None else _window
            outcome, said = record(ask, target, workload, stop, display)
        except AtomError:
            if stop.is_set():  # Ctrl-C reaches the load's processes, too
                raise KeyboardInterrupt from None
            raise
        interrupted = stop.is_set()
    _check_answers(outcome)
    made = Profile(
        _document(ask, info, outcome, workload.seed), interrupted=interrupted, problems=list(notes)
    )
    _collect(made, ask, info, said, since, display)
    return made


# -- the load -----------------------------------------------------------------------------------


class _Prompts:
    """Random prompts of exact lengths; the warm-up's are others."""

    def __init__(self, ask: Ask, target: Target, info: ServerInfo) -> None:
        tokens = open_tokens(target)
        spec = WorkloadSpec(
            input_len=ask.input_len, output_len=ask.output_len, max_len=info.max_model_len
        )
        self._make: Callable[[int], Workload] = lambda seed: make_workload(spec, tokens, seed)
        self.seed = draw_seed() if ask.seed is None else ask.seed

    def jobs(self) -> Iterator[Job]:
        return self._make(self.seed).jobs()

    def warm_up(self) -> Iterator[Job]:
        for job in self._make(self.seed + WARMUP_SEED).jobs():
            turns = [
                structs.replace(turn, max_tokens=min(turn.max_tokens, WARMUP_TOKENS))
                for turn in job.turns
            ]
            yield structs.replace(job, turns=turns)


def _check_lengths(ask: Ask, info: ServerInfo) -> None:
    total = ask.input_len + ask.output_len
    if info.max_model_len is not None and total > info.max_model_len:
        raise ProfileError(
            f"--input-len {ask.input_len} and --output-len {ask.output_len} make {total} tokens, "
            f"and a sequence of {info.model} holds at most {info.max_model_len}"
        )


def _warm_up(
    ask: Ask, target: Target, workload: _Prompts, stop: threading.Event, display: Display
) -> None:
    display.say(f"warm-up: {ask.concurrency} requests")
    load = Load(concurrency=ask.concurrency, num_requests=ask.concurrency)
    jobs = chain(workload.warm_up(), ask.concurrency)
    _check_answers(client.run_load(target, jobs, load, stop=stop))


def _requests(
    ask: Ask, target: Target, workload: _Prompts, stop: threading.Event, display: Display
) -> tuple[LoadOutcome, dict[str, Any]]:
    """All requests are recorded, from before the first to after the last."""
    display.say(f"recording {ask.requests} requests, {ask.concurrency} at a time")
    load = Load(concurrency=ask.concurrency, num_requests=ask.requests)
    _check_stop(stop)
    client.profile(target, "start")
    try:
        outcome = client.run_load(target, chain(workload.jobs(), ask.requests), load, stop=stop)
    finally:
        display.say("waiting until the traces are written")
        said = client.profile(target, "stop")
    return outcome, said


def _window(
    ask: Ask, target: Target, workload: _Prompts, stop: threading.Event, display: Display
) -> tuple[LoadOutcome, dict[str, Any]]:
    """A stretch of a load that goes on before and after it."""
    _check_stop(stop)
    recorder = _Recorder(ask, target, stop, display)
    load = Load(concurrency=ask.concurrency, duration_s=3600.0)
    recorder.thread.start()
    try:
        outcome = client.run_load(
            target, workload.jobs(), load, on_progress=recorder.watch, stop=recorder.over
        )
    finally:
        recorder.over.set()
        recorder.thread.join()
    if recorder.error is not None:
        raise recorder.error
    if not recorder.recorded:
        _check_stop(stop)
        raise ProfileError("the load ended before the recording began; see the server's log")
    return outcome, recorder.said


class _Recorder:
    """A thread that starts and stops the profiler while the main one sends the load."""

    def __init__(self, ask: Ask, target: Target, stop: threading.Event, display: Display) -> None:
        assert ask.seconds is not None
        self.over = threading.Event()  # the load may end
        self.said: dict[str, Any] = {}
        self.recorded = False
        self.error: AtomError | None = None
        self.thread = threading.Thread(target=self._run, name="profile", daemon=True)
        self._steady = threading.Event()
        self._seconds, self._places = ask.seconds, ask.concurrency
        self._target, self._stop, self._display = target, stop, display

    def watch(self, progress: Progress) -> None:
        """Steady: every place is taken, and answers flow."""
        if progress.in_flight >= self._places and progress.tokens:
            self._steady.set()
        if self._stop.is_set():
            self.over.set()

    def _run(self) -> None:
        began = time.monotonic()
        while not self._steady.wait(0.05):
            if self.over.is_set() or time.monotonic() - began > SETTLE_S:
                break
        try:
            if not self.over.is_set():
                self._record()
        except AtomError as error:
            self.error = error
        finally:
            self.over.set()

    def _record(self) -> None:
        self._display.say(f"recording for {self._seconds:g} s, {self._places} requests at a time")
        client.profile(self._target, "start")
        self.over.wait(self._seconds)
        self._display.say("waiting until the traces are written")
        self.said = client.profile(self._target, "stop")
        self.recorded = True


def _check_stop(stop: threading.Event) -> None:
    if stop.is_set():
        raise KeyboardInterrupt


def _check_answers(outcome: LoadOutcome) -> None:
    failed = [r for r in outcome.records if r.error not in (None, "cancelled")]
    if failed and not any(r.error is None for r in outcome.records):
        first = failed[0]
        what = f"HTTP {first.status}" if first.status else first.error
        raise ProfileError(f"every request failed: {what}: {first.message}")


# -- the traces ---------------------------------------------------------------------------------


def _collect(
    made: Profile, ask: Ask, info: ServerInfo, said: dict[str, Any], since: float, display: Display
) -> None:
    found = said.get("traces")
    paths = [str(path) for path in found] if isinstance(found, list) else []
    if paths:
        made.files, made.elsewhere = collect.here(paths, since)
    elif ask.trace_dir is not None:
        made.files = collect.written_since(ask.trace_dir, since)
    else:
        made.problems.append(
            f"the {info.kind} server does not say where its traces are; give --trace-dir DIR if "
            "its folder is on this machine"
        )
    if made.elsewhere:
        made.problems.append(_elsewhere(made.elsewhere, info))
    if made.files and ask.output_dir is not None:
        made.folder = ask.output_dir
        made.files = collect.bring(made.files, ask.output_dir)
    if made.files:
        display.say("reading the traces")
        made.verdict, _ = verdict.read(made.files, "auto")
        made.problems += made.verdict.problems
    _complete(made)
    if made.folder is not None:
        folder.write(made.folder, made.document)


def _elsewhere(paths: list[str], info: ServerInfo) -> str:
    listed = ", ".join(paths)
    if is_local(info.base_url):
        return f"not to be seen from here (the server's container?): {listed}; copy them out"
    return f"on the server's machine, {info.base_url}: {listed}; copy them and run atom trace there"


def _document(ask: Ask, info: ServerInfo, outcome: LoadOutcome, seed: int) -> dict[str, Any]:
    from atom.bench.history import provenance

    where = provenance.collect(seed=seed, base_url=info.base_url, server=info)
    answered = [r for r in outcome.records if r.error is None]
    tokens = sum(sum(r.token_counts) for r in outcome.records)
    kept = ("command", "server", "hardware", "driver", "time", "host", "seed")
    return {
        "schema": folder.SCHEMA,
        "mode": "url",
        "status": "",
        "atom": where["atom"],
        "model": info.model,
        "load": {
            "concurrency": ask.concurrency,
            "input_len": ask.input_len,
            "output_len": ask.output_len,
            "requests": ask.requests,
            "seconds": ask.seconds if ask.requests is None else None,
            "answered": len(answered),
            "failed": sum(r.error not in (None, "cancelled") for r in outcome.records),
            "output_tokens": tokens,
            # Of the whole load, with the profiler on for a part of it: no benchmark's figure.
            "output_tokens_per_s": round(tokens / outcome.duration_s, 3)
            if outcome.duration_s
            else None,
        },
        "files": [],
        "elsewhere": [],
        "trace": None,
        **{key: where[key] for key in kept},
    }


def _complete(made: Profile) -> None:
    document = made.document
    document["status"] = "interrupted" if made.interrupted else "complete"
    base = made.folder
    document["files"] = (
        [str(path) for path in made.files] if base is None else folder.relative(base, made.files)
    )
    document["bytes"] = folder.num_bytes(made.files)
    document["elsewhere"] = made.elsewhere
    document["trace"] = None if made.verdict is None else dataclasses.asdict(made.verdict)
