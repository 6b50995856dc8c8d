"""The whole of `atom eval`: tasks found, a server found or started, asked, judged and stored.

What is answered is in a journal at once, so that nothing that happens later loses it; the journal
goes when the run is in the history.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from atom.bench import history
from atom.bench.history import History, HistoryError
from atom.bench.target import describe_server, short_model
from atom.bench.types import RunResult
from atom.config import resolve
from atom.config.serial import changed
from atom.eval import acceptance, asked, lm_eval_files, resume, verdict
from atom.eval.baselines import Baselines
from atom.eval.errors import EvalStopped, ServerGone
from atom.eval.journal import Header, Journal, journal_folder
from atom.eval.loading import Loading
from atom.eval.results import Facts, run_result
from atom.eval.serving import Place, Served, Watcher, served
from atom.eval.settings import Settings
from atom.eval.types import Endpoint, EvalOutcome, Progress
from atom.eval.verdict import Judged

if TYPE_CHECKING:
    from atom.eval.compare import MetricComparison
    from atom.eval.tasks import Loaded

STORE_FAILED = 2


class Display(Protocol):
    """Who shows how it goes."""

    def say(self, text: str, *, important: bool = False) -> None: ...

    def waiting(self, what: str, waited_s: float) -> None: ...

    def progress(self, progress: Progress, /) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the command line asks for, beside the settings."""

    settings: Settings
    recipe: Path | None = None
    history: Path | None = None
    resume: bool = False
    command: Mapping[str, Any] = field(default_factory=dict)  # see `resume.command_of`
    env: Mapping[str, str] = field(default_factory=lambda: os.environ)

    def place(self) -> Place:
        server = self.settings.config.server
        return Place(
            base_url=self.settings.base_url,
            recipe=self.recipe,
            model=server.model,
            api_key=server.api_key,
            headers=self.settings.headers,
            verify_tls=server.verify_tls,
            server_args=server.server_args or "",
            ready_timeout_s=server.ready_timeout_s,
            env=self.env,
        )


@dataclass(slots=True)
class Report:
    """What came of it."""

    run: RunResult
    outcome: EvalOutcome
    judged: list[Judged]
    server: dict[str, float]  # of its metrics page: see `atom.eval.acceptance`
    acceptance_problem: str = ""
    problems: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    stored: bool = False
    # Against baselines that are runs, document by document; by `Judged.name`.
    paired: dict[str, MetricComparison] = field(default_factory=dict)

    def exit_code(self) -> int:
        if self.acceptance_problem or any(one.state == "below" for one in self.judged):
            return verdict.BELOW
        return STORE_FAILED if self.problems else 0

    def as_json(self) -> dict[str, Any]:
        """lm-eval's document; ours is under "atom", as a run of the history, with the verdicts."""
        from msgspec import to_builtins

        from atom.bench.metrics import result_json

        document = result_json(self.run)
        document["atom"]["verdicts"] = [
            one.as_json()
            | ({"paired": to_builtins(self.paired[one.name])} if one.name in self.paired else {})
            for one in self.judged
        ]
        document["atom"]["problems"] = [
            *self.problems,
            *([self.acceptance_problem] if self.acceptance_problem else []),
        ]
        return document


class Evaluation:
    """One `atom eval`. `stop` set: nothing more is asked, what was answered is kept."""

    def __init__(self, request: Request, display: Display, stop: threading.Event) -> None:
        self.request = request
        self.settings = request.settings
        self.display = display
        self.stop = stop

    def run(self) -> Report:
        """Raises `AtomError`; what was answered until then is kept for --resume."""
        from atom.eval.tasks import find_tasks

        questions = self.settings.config.questions
        specs = find_tasks(
            self.settings.require_tasks(),
            hub=questions.hub,
            include_path=self.settings.include_path,
        )
        asked.check_expectations(self.settings, specs)
        with History(self.request.history) as store:
            store.check_writable()
            lm_eval_files.check_folder(self.settings.output)
            baselines = Baselines(store, self.settings.expectations)
            loading = Loading(specs, questions.seed)
            watcher = Watcher(
                self.display.say,
                self.display.waiting,
                lambda: self.stop.is_set() or loading.begun_and_failed(),
            )
            try:
                with served(self.request.place(), store.path.parent / "logs", watcher) as server:
                    self.display.say(
                        f"{describe_server(server.info)} at {server.base_url}: {server.info.model}"
                    )
                    return self._evaluate(loading, server, store, baselines)
            except EvalStopped:
                if not self.stop.is_set():
                    loading.result()  # raises what ended the wait
                raise

    # Asking

    def _evaluate(
        self,
        loading: Loading,
        server: Served,
        store: History,
        baselines: Baselines,
    ) -> Report:
        began = datetime.now(timezone.utc)
        loaded = loading.result()
        journal = self._journal([spec.name for spec in loading.specs], server)
        endpoint = self._endpoint(server)
        with journal:
            try:
                before = acceptance.scrape(endpoint)
                outcome = self._ask(loaded, endpoint, server, journal)
                figures = acceptance.figures(before, acceptance.scrape(endpoint))
            except ServerGone as error:
                raise _explained(error, server) from None
            except EvalStopped:
                raise
            except BaseException:
                # A mistake found before the first answer: nothing to go on with.
                if not len(journal):
                    journal.remove()
                raise
            report = self._report(outcome, figures, server, journal.header, baselines, began)
            self._keep(report, store, journal)
            self._write_files(report, endpoint, began)
        return report

    def _endpoint(self, server: Served) -> Endpoint:
        config = self.settings.config.server
        return Endpoint(
            base_url=server.base_url,
            model=server.info.model,
            api_key=server.api_key,
            headers=self.settings.headers,
            concurrency=config.concurrency,
            batch_size=config.batch_size,
            timeout_s=config.timeout_s,
            max_retries=config.max_retries,
            verify_tls=config.verify_tls,
        )

    def _journal(self, tasks: list[str], server: Served) -> Journal:
        folder = journal_folder(self.request.history)
        place = str(self.request.recipe) if self.request.place().own_server else server.base_url
        header = Header(
            run_id=history.new_run_id(),
            tasks=tasks,
            server=place,
            model=server.info.model,
            settings={
                **asked.score_settings(self.settings),
                resume.COMMAND: dict(self.request.command),
            },
        )
        if self.request.resume:
            journal = resume.reopen(folder, header)
            kept = len(journal)
            self.display.say(f"resuming {journal.header.run_id}: {kept:,} answers are kept")
            return journal
        other = resume.same(folder, header)
        if other is not None:
            self.display.say(
                f"the unfinished evaluation {other.header.run_id} of the same has "
                f"{other.answers:,} answers: --resume would go on with it"
            )
        return Journal.create(folder, header)

    def _ask(
        self, loaded: Loaded, endpoint: Endpoint, server: Served, journal: Journal
    ) -> EvalOutcome:
        from atom.eval.client import connect
        from atom.eval.harness import evaluate

        tokenizer = self.settings.config.server.tokenizer
        with connect(
            endpoint,
            journal=journal,
            tokenizer=None if tokenizer is None else Path(tokenizer).expanduser(),
            on_progress=self.display.progress,
            stop=self.stop.is_set,
            info=server.info,
        ) as client:
            outcome: EvalOutcome = evaluate(
                loaded, client, asked.options_of(self.settings), self.display.progress
            )
        if self.stop.is_set():
            raise EvalStopped("stopped: what was answered is kept (atom eval --resume)")
        return outcome

    # Judging and keeping

    def _report(
        self,
        outcome: EvalOutcome,
        figures: dict[str, float],
        server: Served,
        header: Header,
        baselines: Baselines,
        began: datetime,
    ) -> Report:
        expected = asked.canonical(self.settings)
        judged, problems = verdict.judge(outcome.tasks, expected, baselines.find)
        document = lm_eval_files.results_document(
            outcome,
            model=header.model,
            base_url=server.base_url,
            chat=self.settings.chat,
            date=began.timestamp(),
        )
        facts = Facts(
            run_id=header.run_id,
            name=self._name(header.model),
            model=header.model,
            started_at=began.isoformat(),
            seed=int(outcome.config.get("seed") or 0),
            load=self._load(),
            provenance=self._provenance(server),
            server=figures,
            notes=verdict.truncated_tasks(outcome.tasks),
            legacy=document,
        )
        run = run_result(outcome, judged, facts)
        if server.log is not None:
            run.artefacts.append({"kind": "log", "path": str(server.log.absolute())})
        least = self.settings.config.verdict.min_acceptance
        report = Report(run, outcome, judged, figures, acceptance.problem(least, figures))
        report.problems += problems
        report.paired = baselines.paired(run, outcome.samples, judged)
        if report.acceptance_problem:
            run.status = "slo_missed"
            run.notes.append(report.acceptance_problem)
        if least is not None:
            run.slo["acceptance_rate"] = least
        return report

    def _name(self, model: str) -> str:
        if self.settings.config.output.label:
            return self.settings.config.output.label
        recipe = self.request.recipe
        return recipe.stem if recipe is not None else short_model(model)

    def _load(self) -> dict[str, Any]:
        server = self.settings.config.server
        load: dict[str, Any] = {"concurrency": server.concurrency, "batch_size": server.batch_size}
        if server.server_args:
            load["server_args"] = server.server_args
        return load

    def _provenance(self, server: Served) -> dict[str, Any]:
        own = self.request.place().own_server
        return history.collect(
            seed=self.settings.config.questions.seed,
            base_url=server.base_url,
            server=server.info,
            server_config=changed(resolve(self.request.recipe, self.request.env)) if own else None,
            recipe=self.request.recipe,
            num_gpus=self.settings.config.server.num_gpus,
            metadata=self.settings.metadata,
        )

    def _keep(self, report: Report, store: History, journal: Journal) -> None:
        """Into the history; if it cannot take the run, into a file, or the journal stays."""
        from atom.eval.records import add_run

        try:
            add_run(store, report.run, report.outcome.samples)
            report.stored = True
        except HistoryError as error:
            self._problem(report, str(error))
            if error.saved is None:
                self._problem(report, f"its answers are in {journal.path} (atom eval --resume)")
                return
        journal.remove()

    def _write_files(self, report: Report, endpoint: Endpoint, began: datetime) -> None:
        folder = self.settings.output
        if folder is None:
            return
        try:
            report.files = lm_eval_files.write(
                folder, report.run.legacy, report.outcome.samples, began
            )
        except OSError as error:
            self._problem(report, f"--output {folder}: {error.strerror}: {error.filename}")

    def _problem(self, report: Report, text: str) -> None:
        report.problems.append(text)
        self.display.say(f"problem: {text}", important=True)


def _explained(error: ServerGone, server: Served) -> ServerGone:
    """The error, or why the recipe's server has ended: then that is the cause."""
    problem = server.died()
    return error if problem is None else ServerGone(f"{problem}; {error}")
