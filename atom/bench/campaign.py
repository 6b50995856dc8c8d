"""The whole of `atom bench`: a server found or started, points measured, kept and judged.

Every point is stored as soon as it is measured; what comes later cannot lose it.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from atom.bench import client, compare, history, points, results, search
from atom.bench.client import ServerInfo
from atom.bench.compare.gate import COUNTED, MIN_BASELINE, RERUN_NOTE, select_baseline
from atom.bench.errors import BenchError, ServerUnreachable
from atom.bench.history import History, HistoryError
from atom.bench.outcome import Report, Traced
from atom.bench.server_process import RecipeServer, Stopped
from atom.bench.session import Display, Measured, Session, draw_seed
from atom.bench.settings import DEFAULT_URL, Settings
from atom.bench.target import Request, ask, describe_server, make_target, short_model
from atom.bench.types import Interval, RunResult, Target
from atom.bench.workloads import TokenSource, needs_tokens, open_tokens
from atom.config import resolve
from atom.config.serial import changed

READY_S = 1200.0  # a large model on a cold disk
RETRY_S = 0.5
BASELINE_LIMIT = 32  # runs looked at for the gate's eight: some of them did not go well


class _Interrupted(Exception):
    """A search was given up."""


class Campaign:
    """One `atom bench`. `stop` set: nothing new begins, what was measured is kept."""

    def __init__(self, request: Request, display: Display, stop: threading.Event) -> None:
        self.request = request
        self.settings = request.settings
        self.display = display
        self.stop = stop
        self.report = Report()
        self._measured: dict[str, Measured] = {}
        self._log: Path | None = None

    def run(self) -> Report:
        """Measure everything. Raises `AtomError` only when there is nothing to report."""
        with contextlib.ExitStack() as stack:
            store = stack.enter_context(History(self.request.history))
            store.check_writable()
            results.check_place(self.settings)
            try:
                session = self._open(stack, store)
                self._measure_all(session, store)
                if self.report.runs and not self.stop.is_set():
                    self._profile(session, store)
                    self._gate(session, store)
            except (KeyboardInterrupt, Stopped):
                self.report.interrupted = True
            except BenchError as error:
                if not self.report.runs:
                    raise
                # What was measured before is worth more than the error.
                self._problem(str(error))
                self.report.failed = error.exit_code
        self.report.interrupted = self.report.interrupted or self.stop.is_set()
        return self.report

    # The server

    def _open(self, stack: contextlib.ExitStack, store: History) -> Session:
        server: RecipeServer | None = None
        base_url = self.settings.base_url or DEFAULT_URL
        if self.request.own_server:
            server = stack.enter_context(self._start_server(store))
            base_url = server.url
        info = self._probe(base_url)
        target, notes = client.negotiate(make_target(self.request, base_url, info))
        for note in notes:
            self.display.say(note)
        self.display.say(f"{describe_server(info)} at {base_url}: {target.model}")
        seed = self.settings.config.load.seed
        seed = draw_seed() if seed is None else seed
        several = len(self.settings.points) > 1 or self.settings.search is not None
        session = Session(
            self.settings,
            target,
            self._tokens(target, info),
            max_len=info.max_model_len,
            display=self.display,
            stop=self.stop,
            seed=seed,
            name=self._name(target.model),
            provenance=lambda: self._provenance(base_url, info, seed),
            gone=server.died if server is not None else lambda: None,
            sweep_id=history.new_run_id() if several else "",
            notes=notes,
        )
        drawn = self.settings.config.load.seed is None
        self.display.say(f"seed {seed}{' (drawn)' if drawn else ''}")
        return session

    def _start_server(self, store: History) -> RecipeServer:
        recipe = self.request.recipe
        assert recipe is not None
        stamp = f"{datetime.now(timezone.utc):%Y%m%d-%H%M%S}"
        self._log = store.path.parent / "logs" / f"{stamp}-{recipe.stem}-{os.getpid()}.log"
        server, aims = self.settings.config.server, self.settings.config.objectives
        arguments = _split(server.server_args or "")
        if (aims.profile or aims.auto_profile) and not any("torch" in a for a in arguments):
            config = resolve(recipe, self.request.env)
            traces = config.profile.torch_profiler_dir or store.path.parent / "traces" / stamp
            arguments += ["--torch-profiler-dir", str(traces)]
        self.display.say(f"starting atom serve {recipe}; its log is {self._log}")
        return RecipeServer(
            recipe,
            self._log,
            args=arguments,
            ready_s=READY_S if server.ready_timeout_s is None else server.ready_timeout_s,
            stopped=self.stop.is_set,
            waiting=lambda s: self.display.waiting(f"the server of {recipe} is starting", s),
        )

    def _probe(self, base_url: str) -> ServerInfo:
        """What answers there; waits for it where that was asked for."""
        config = self.settings.config.server
        wait_s = 0.0 if self.request.own_server else config.ready_timeout_s or 0.0
        began = time.monotonic()
        while True:
            try:
                return ask(self.request, base_url)
            except ServerUnreachable:
                waited = time.monotonic() - began
                if waited >= wait_s:
                    raise
                self.display.waiting(f"nothing at {base_url} yet", waited)
            if self.stop.wait(RETRY_S):
                raise Stopped

    def _tokens(self, target: Target, info: ServerInfo) -> TokenSource | None:
        spec = self.settings.workload_spec(max_len=info.max_model_len, limit=None)
        tokenizer = self.settings.config.server.tokenizer
        if not needs_tokens(spec) and tokenizer is None:
            return None
        return open_tokens(target, tokenizer)

    def _name(self, model: str) -> str:
        if self.settings.config.output.label:
            return self.settings.config.output.label
        recipe = self.request.recipe
        return recipe.stem if recipe is not None else short_model(model)

    def _provenance(self, base_url: str, info: ServerInfo, seed: int) -> dict[str, Any]:
        config = None
        if self.request.own_server:
            config = changed(resolve(self.request.recipe, self.request.env))
        return history.collect(
            seed=seed,
            base_url=base_url,
            server=info,
            server_config=config,
            recipe=self.request.recipe,
            num_gpus=self.settings.config.server.num_gpus,
            metadata=self.settings.metadata,
        )

    # Measuring

    def _measure_all(self, session: Session, store: History) -> None:
        if self.settings.search is not None:
            self._search(session, store)
            return
        for point in self.settings.points:
            if self.stop.is_set():
                return
            self._one(session, store, point)

    def _one(self, session: Session, store: History, point: points.Point) -> RunResult:
        measured = session.measure(point)
        self._keep(measured, store)
        if measured.broken is not None:
            raise measured.broken
        return measured.run

    def _search(self, session: Session, store: History) -> None:
        wanted = self.settings.search
        assert wanted is not None

        def measure(level: float) -> Mapping[str, Interval]:
            run = self._one(session, store, search_point(self.settings, level))
            if self.stop.is_set():
                raise _Interrupted
            return run.metrics

        with contextlib.suppress(_Interrupted):
            self.report.search = search.find_max(
                measure,
                self.settings.objectives,
                low=wanted.low,
                high=wanted.high,
                integer=wanted.what == "concurrency",
                budget=self.settings.config.objectives.max_runs,
                max_error_rate=self.settings.config.statistics.max_error_rate,
            )

    def _keep(self, measured: Measured, store: History) -> None:
        """Into the history and, if asked for, a result file; a failure is told, nothing is lost."""
        run = measured.run
        self.report.runs.append(run)
        self._measured[run.run_id] = measured
        if self._log is not None:
            run.artefacts.append({"kind": "log", "path": str(self._log.absolute())})
        try:
            store.add(run, measured.records)
        except HistoryError as error:
            self._problem(str(error))
        several = len(self.settings.points) != 1
        try:
            path = results.write(self.settings, run, measured.point, several=several)
        except OSError as error:
            self._problem(f"the result file: {error.strerror}: {error.filename}")
        else:
            self.report.files += [] if path is None else [path]

    def _problem(self, text: str) -> None:
        self.report.problems.append(text)
        self.display.say(f"problem: {text}", important=True)

    # Judging

    def _gate(self, session: Session, store: History) -> None:
        asked = self.settings.config.objectives.gate
        if asked is False or self.report.search is not None or self.settings.search is not None:
            return
        judged: list[tuple[RunResult, Sequence[RunResult]]] = []
        for run in self.report.runs:
            if run.status not in COUNTED:
                continue
            before = store.find(fingerprint=run.fingerprint, limit=BASELINE_LIMIT)
            earlier = select_baseline(run, before)
            if asked or len(earlier) >= MIN_BASELINE:
                judged.append((run, earlier))
        if not judged:
            return

        def rerun(current: RunResult) -> RunResult:
            self.display.say("beyond threshold and noise: measuring it once more")
            measured = session.measure(self._measured[current.run_id].point)
            measured.run.notes.append(RERUN_NOTE + current.run_id)
            self._keep(measured, store)
            self.report.runs.remove(measured.run)  # it answers the gate, not the user
            return measured.run

        self.report.gates = compare.gate_all(judged, rerun)
        if self.settings.config.objectives.auto_profile:
            bad = {g.run_id: g.baseline_runs for g in self.report.gates if g.regressed}
            for run in [r for r in self.report.runs if r.run_id in bad]:
                now = _traces(run) or self._trace(session, store, run)
                if now:
                    earlier_id, paths = _last_traces(store, bad[run.run_id])
                    self.report.traced.append(Traced(run.run_id, now, earlier_id, paths))

    def _profile(self, session: Session, store: History) -> None:
        if self.settings.config.objectives.profile:
            for run in self.report.runs:
                self._trace(session, store, run)

    def _trace(self, session: Session, store: History, run: RunResult) -> list[str]:
        paths: list[str] = []
        try:
            paths = session.profile(self._measured[run.run_id].point)
            for path in paths:
                run.artefacts.append({"kind": "trace", "path": path})
                store.attach(run.run_id, "trace", path)
        except BenchError as error:
            self._problem(f"no trace: {error}")
        else:
            self.display.say(f"trace: {', '.join(paths) or 'the server does not say where'}")
        return paths


def _traces(run: RunResult) -> list[str]:
    return [a["path"] for a in run.artefacts if a.get("kind") == "trace"]


def _last_traces(store: History, run_ids: Sequence[str]) -> tuple[str, list[str]]:
    """The last of these runs, oldest first, whose traces are on this machine, and they."""
    for run_id in reversed(run_ids):
        paths = _traces(store.get(run_id))
        if paths and all(Path(path).exists() for path in paths):
            return run_id, paths
    return "", []


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise BenchError(f"--server-args {text}: {error}") from None


def search_point(settings: Settings, level: float) -> points.Point:
    """The point of a search at this level."""
    from atom.bench.settings import sized

    assert settings.search is not None
    load = settings.config.load
    if settings.search.what == "concurrency":
        point = points.closed_point(round(level))
    else:
        burstiness = float("inf") if load.arrival == "constant" else load.burstiness
        point = points.open_point(f"{level:.4g}", burstiness, load.max_concurrency)
    return sized(point, settings.config)
