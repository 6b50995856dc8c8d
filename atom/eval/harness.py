"""Runs tasks: lm-eval's prompts, filters and metrics around the client's answers.

The steps and their order are those of lm-eval's evaluator, through what its tasks offer in public:
requests are built, answered kind by kind, filtered, measured. It prints, stores and judges nothing.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from atom.eval.catalog import lm_eval_version
from atom.eval.errors import EvalError
from atom.eval.options import DEFAULT_SEED, Options, TaskOptions
from atom.eval.quiet import compiled_once, offline, quiet
from atom.eval.samples import make_sample, prompts_hash
from atom.eval.scores import group_scores, task_scores
from atom.eval.tasks import Loaded, TaskSpec, load_tasks
from atom.eval.tasks.bundled import TASKS
from atom.eval.types import (
    Client,
    EvalOutcome,
    OnProgress,
    Progress,
    Sample,
    Score,
    TaskResult,
)

__all__ = ["Options", "TaskOptions", "evaluate"]

_KINDS = ("loglikelihood", "loglikelihood_rolling", "generate_until")
_SHOWN_EVERY = 64  # documents


def evaluate(
    tasks: Sequence[TaskSpec] | Loaded,
    client: Client,
    options: Options,
    on_progress: OnProgress = lambda progress, /: None,
) -> EvalOutcome:
    """Everything asked and measured. `tasks` that were loaded before are used up by it.

    Raises `EvalError` for tasks and options that do not go together, and what the client raises.
    """
    begin = time.monotonic()
    loaded = tasks if isinstance(tasks, Loaded) else load_tasks(tasks, seed=options.seed)
    run = _Run(loaded, client, options, on_progress)
    with run.among_lm_eval():
        plans = [run.plan(name) for name in loaded.tasks]
        run.build(plans)
    run.ask(plans)
    with run.among_lm_eval():
        results, samples = run.measure(plans)
    counts = client.counts
    return EvalOutcome(
        tasks=results,
        samples=samples,
        config=_config(options, loaded, client),
        duration_s=time.monotonic() - begin,
        answers=counts.items,
        kept=counts.kept,
        prompt_tokens=counts.prompt_tokens,
        output_tokens=counts.output_tokens,
        versions={"lm_eval": lm_eval_version()},
        notes=list(dict.fromkeys([*loaded.notes, *run.notes, *run.lm.notes, *client.notes])),
    )


@dataclass(slots=True)
class _Plan:
    """A task as it will be run."""

    name: str
    task: Any
    options: TaskOptions
    groups: tuple[str, ...]
    raw: dict[tuple[str, str], list[Any]] = field(default_factory=lambda: defaultdict(list))
    samples: list[Sample] = field(default_factory=list)


class _Run:
    """One evaluation, step by step."""

    def __init__(
        self, loaded: Loaded, client: Client, options: Options, on_progress: OnProgress
    ) -> None:
        from atom.eval.lm import ServerLM

        self._loaded = loaded
        self._options = options
        self._on_progress = on_progress
        self.notes: list[str] = []
        self.lm = ServerLM(client, options)

    @contextmanager
    def among_lm_eval(self) -> Iterator[None]:
        all_bundled = self._loaded.bundled == set(self._loaded.tasks)
        with offline(all_bundled), quiet(self.notes), compiled_once():
            yield

    # What will be asked

    def plan(self, name: str) -> _Plan:
        """The task with its options set, as lm-eval sets them."""
        task = self._loaded.tasks[name]
        groups = tuple(g for g, group in self._loaded.groups.items() if _holds(group, name))
        plan = _Plan(name, task, self._options.for_task(name, *groups), groups)
        if task.OUTPUT_TYPE == "generate_until":
            changes = dict(plan.options.gen_kwargs or {})
            if plan.options.max_gen_tokens is not None:
                changes["max_gen_toks"] = plan.options.max_gen_tokens
            if changes:
                task.set_config("generation_kwargs", changes, update=True)
        elif self._options.chat:
            raise EvalError(
                f"{name} compares log-probabilities, which the chat endpoint does not give: leave "
                "--chat out (--apply-chat-template works with it)"
            )
        self._set_fewshot(plan)
        seed = DEFAULT_SEED if self._options.seed is None else self._options.seed
        task.set_fewshot_seed(seed=seed)
        return plan

    def _set_fewshot(self, plan: _Plan) -> None:
        task, shots = plan.task, plan.options.num_fewshot
        default = task.get_config("num_fewshot")
        if shots is not None and default == 0 and shots != 0:
            self.notes.append(
                f"{plan.name} is always evaluated without examples, as in lm-eval: --num-fewshot "
                f"{shots} does not apply to it"
            )
            return
        chosen = shots if shots is not None else default or 0
        ours = TASKS.get(plan.name) if plan.name in self._loaded.bundled else None
        if chosen and ours is not None and ours.missing:
            raise EvalError(
                f"{plan.name}: its few-shot examples come from the split "
                f"{' and '.join(ours.missing)}, which is not bundled: --num-fewshot 0, or --hub "
                f"for the whole data set ({ours.hub.path})"
            )
        task.set_config("num_fewshot", chosen)
        if chosen and not task.has_training_docs() and not _fewshot_split(task):
            self.notes.append(
                f"{plan.name}: it has no other rows, so its few-shot examples come from those "
                "that are evaluated, as in lm-eval"
            )

    def build(self, plans: Sequence[_Plan]) -> None:
        """lm-eval's requests of all tasks."""
        for plan in plans:
            chosen = plan.options
            chat = bool(chosen.apply_chat_template) or self._options.chat
            multiturn = chosen.fewshot_as_multiturn
            with self._bar("building prompts", plan.name):
                plan.task.build_all_requests(
                    limit=_count(plan.task, chosen.limit),
                    system_instruction=chosen.system_instruction,
                    apply_chat_template=chat,
                    fewshot_as_multiturn=chat if multiturn is None else multiturn,
                    chat_template=self.lm.apply_chat_template if chat else None,
                    tokenizer_name="",
                )

    @contextmanager
    def _bar(self, phase: str, detail: str) -> Iterator[None]:
        """lm-eval's progress bar over documents becomes ours."""
        import lm_eval.api.task as module

        def counted(documents: Iterable[Any], total: int | None = None, **_: Any) -> Iterator[Any]:
            for done, document in enumerate(documents):
                if done % _SHOWN_EVERY == 0:
                    show(done, total)
                yield document
            show(total or 0, total)

        show = self._progress(phase, detail)
        kept, module.tqdm = module.tqdm, counted
        try:
            yield
        finally:
            module.tqdm = kept

    def _progress(self, phase: str, detail: str) -> Callable[[int, int | None], None]:
        begin = time.monotonic()

        def show(done: int, total: int | None) -> None:
            elapsed = time.monotonic() - begin
            self._on_progress(Progress(phase, done, total, 0, 0, elapsed, 0, detail))

        return show

    # Asking

    def ask(self, plans: Sequence[_Plan]) -> None:
        """All requests of one kind together, over all tasks: the client orders them."""
        by_kind: dict[str, list[Any]] = defaultdict(list)
        for plan in plans:
            for instance in plan.task.instances:
                by_kind[instance.request_type] += [instance] * (instance.repeats or 1)
        for kind in _KINDS:
            requests = by_kind.pop(kind, [])
            if requests:
                answers = getattr(self.lm, kind)(requests)
                for request, answer in zip(requests, answers, strict=True):
                    request.resps.append(answer)
        assert not by_kind, f"unknown requests: {list(by_kind)}"

    # Measuring

    def measure(self, plans: Sequence[_Plan]) -> tuple[list[TaskResult], list[Sample]]:
        results: dict[str, TaskResult] = {}
        for plan in plans:
            plan.task.apply_filters()
            self._values(plan)
            results[plan.name] = self._result(plan)
        for name, group in self._loaded.groups.items():
            found = self._group_result(name, group, results)
            if found is not None:
                results[name] = found
        ordered = [results[name] for name in self._loaded.order if name in results]
        return ordered, [sample for plan in plans for sample in plan.samples]

    def _values(self, plan: _Plan) -> None:
        """What each document contributes to each metric, and its record."""
        by_doc: dict[int, list[Any]] = defaultdict(list)
        for instance in plan.task.instances:
            by_doc[instance.doc_id].append(instance)
        show = self._progress("computing scores", plan.name)
        for done, (doc_id, instances) in enumerate(by_doc.items()):
            if done % _SHOWN_EVERY == 0:
                show(done, len(by_doc))
            instances.sort(key=lambda one: one.idx)
            doc = instances[0].doc
            metrics = {}
            for chosen in instances[0].filtered_resps:
                answers = [instance.filtered_resps[chosen] for instance in instances]
                for metric, value in plan.task.process_results(doc, answers).items():
                    plan.raw[metric, chosen].append(value)
                    metrics[f"{metric},{chosen}"] = value
            plan.samples.append(
                make_sample(plan.task, doc_id, doc, instances, metrics, self.lm.generated)
            )
        show(len(by_doc), len(by_doc))

    def _result(self, plan: _Plan) -> TaskResult:
        task = plan.task
        scores = task_scores(task, plan.raw, self._options.bootstrap_iters, self.notes)
        if len({len(values) for values in plan.raw.values()}) > 1:
            self.notes.append(f"{plan.name}: some metrics do not apply to all of its documents")
        generation = self._generation(task)
        return TaskResult(
            task=plan.name,
            kind="task",
            output_type=str(task.OUTPUT_TYPE),
            num_samples=len(plan.samples),
            num_documents=len(task.eval_docs),
            num_fewshot=task.get_config("num_fewshot") or 0,
            version=str(task.VERSION),
            metrics=scores,
            main_metric=main_metric(plan.name, scores),
            prompt_hash=prompts_hash(task.instances),
            truncated=sum(sample.finish_reason == "length" for sample in plan.samples),
            bundled=plan.name in self._loaded.bundled,
            generation=generation,
        )

    def _generation(self, task: Any) -> dict[str, Any]:
        from atom.eval.lm import generation_settings

        if task.OUTPUT_TYPE != "generate_until":
            return {}
        return generation_settings(task.config.generation_kwargs or {}, self._options)

    def _group_result(
        self, name: str, group: Any, results: Mapping[str, TaskResult]
    ) -> TaskResult | None:
        """None where the group has no score of its own."""
        members = [task.task_name for task in group.get_all_tasks()]
        rows = {m: (results[m].metrics, results[m].num_samples) for m in members if m in results}
        scores = group_scores(group, rows) if group.has_aggregation else {}
        if not scores:
            return None
        found = [results[member] for member in rows]
        shots = {result.num_fewshot for result in found}
        return TaskResult(
            task=name,
            kind="group",
            output_type="",
            num_samples=sum(result.num_samples for result in found),
            num_documents=sum(result.num_documents for result in found),
            num_fewshot=max(shots),
            version=str(group.version),
            metrics=scores,
            main_metric=main_metric(name, scores),
            prompt_hash=_joined(result.prompt_hash for result in found),
            truncated=sum(result.truncated for result in found),
            bundled=all(result.bundled for result in found),
            members=list(rows),
        )


def main_metric(task: str, scores: Mapping[str, Score]) -> str:
    """The metric that a threshold is for: a share of right answers, as lenient as the task has."""
    ours = TASKS.get(task)
    if ours is not None and ours.main_metric in scores:
        return ours.main_metric
    first = next(iter(scores), "")
    for metric in ("exact_match", "acc", "acc_norm", "f1", "mcc"):
        filters = [name for name in scores if name.partition(",")[0] == metric]
        lenient = [name for name in filters if name.endswith(",flexible-extract")]
        if filters:
            return (lenient or filters)[0]
    return first


def _holds(group: Any, name: str) -> bool:
    return any(task.task_name == name for task in group.get_all_tasks())


def _fewshot_split(task: Any) -> bool:
    """Whether the task says where its examples come from."""
    config = getattr(task, "fewshot_cfg", None)
    return config is not None and (config.split is not None or config.samples is not None)


def _count(task: Any, limit: float | None) -> int | None:
    """Documents to evaluate: all, a count, or a share, rounded up as lm-eval does."""
    if limit is None:
        return None
    return math.ceil(len(task.eval_docs) * limit) if limit < 1 else int(limit)


def _joined(hashes: Iterable[str]) -> str:
    return hashlib.sha256(" ".join(hashes).encode()).hexdigest()[:16]


def _config(options: Options, loaded: Loaded, client: Client) -> dict[str, Any]:
    """What changes a score, but for what `TaskResult` says."""
    given = asdict(options)
    del given["bootstrap_iters"]
    config = {key: value for key, value in given.items() if value not in (None, {}, False)}
    config["seed"] = DEFAULT_SEED if options.seed is None else options.seed
    everything = (options, *options.per_task.values())
    if any(part.apply_chat_template for part in everything) and not options.chat:
        template = client.special_tokens().chat_template
        if template is not None:
            config["chat_template_sha"] = hashlib.sha256(template.encode()).hexdigest()
    config["bundled"] = sorted(loaded.bundled)
    return config
