"""Builds lm-eval's task objects: bundled rows for bundled tasks, the hub's or a cache's for others.

What goes wrong with data is said in one line: what is missing, how to get it, where it goes.
"""

from __future__ import annotations

import random
import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atom.eval import catalog
from atom.eval.errors import EvalError
from atom.eval.quiet import hub_is_away, offline, quiet
from atom.eval.tasks import bundled
from atom.eval.tasks.find import TaskSpec

# lm-eval's own defaults: of Python's generator, and of numpy's and the few-shot examples.
RANDOM_SEED = 0
OTHER_SEED = 1234
_UNSAFE = re.compile(r"^unsafe_code:\s*true", re.MULTILINE | re.IGNORECASE)
_FILE_FORMATS = ("json", "csv", "parquet", "arrow", "text", "xml")  # of the user's own files


@dataclass(slots=True)
class Loaded:
    """lm-eval's objects of what was asked for; their data is in memory or in a cache's files."""

    tasks: dict[str, Any] = field(default_factory=dict)  # name -> lm_eval.api.task.Task
    groups: dict[str, Any] = field(default_factory=dict)  # name -> lm_eval.api.group.Group
    bundled: set[str] = field(default_factory=set)  # tasks whose data came with atom
    order: list[str] = field(default_factory=list)  # tasks and groups as they were asked for
    notes: list[str] = field(default_factory=list)


def load_tasks(specs: Sequence[TaskSpec], *, seed: int | None = None) -> Loaded:
    """Builds the tasks; where all are bundled, the libraries are told to stay off the network.

    `seed`: of the generators that tasks may draw from while they are built, as lm-eval sets them.
    Raises `EvalError` for data that is not there and tasks that lm-eval cannot build.
    """
    catalog.lm_eval_version()
    loaded = Loaded()
    away = any(_wants_hub(spec) for spec in specs) and hub_is_away()
    stay_off = away or all(spec.bundled for spec in specs)
    with offline(stay_off), quiet(loaded.notes), _seeded(seed):
        for spec in specs:
            parts = _build(spec)
            _refuse_twice(loaded, parts, spec)
            loaded.tasks.update(parts.tasks)
            loaded.groups.update(parts.groups)
            loaded.bundled |= parts.bundled
            loaded.order += parts.order
    for name, task in loaded.tasks.items():
        _refuse_unfit(name, task)
    return loaded


def _wants_hub(spec: TaskSpec) -> bool:
    """Whether data may have to be fetched."""
    return any(
        entry.dataset_path
        and entry.dataset_path not in _FILE_FORMATS
        and not Path(entry.dataset_path).exists()
        and not bundled.has_rows_of(entry.dataset_path, entry.dataset_name)
        for entry in spec.entries
    )


def _build(spec: TaskSpec) -> Loaded:
    if not spec.bundled:
        return _lm_evals(spec)
    if spec.name in bundled.TASKS:
        tasks = {spec.name: _bundled_task(spec.name)}
        return Loaded(tasks, {}, {spec.name}, [spec.name])
    from lm_eval.api.group import Group

    given = bundled.GROUPS[spec.name]
    group = Group.from_config(
        {
            "group": spec.name,
            "task": list(given.members),
            "aggregate_metric_list": [
                {"metric": metric, "aggregation": "mean", "weight_by_size": False}
                for metric in given.metrics
            ],
            "metadata": {"version": given.version},
        }
    )
    tasks = {name: _bundled_task(name) for name in given.members}
    for task in tasks.values():
        group.add(task)
    return Loaded(tasks, {spec.name: group}, set(tasks), [spec.name, *tasks])


def _bundled_task(name: str) -> Any:
    from lm_eval.api.task import ConfigurableTask

    return ConfigurableTask(config=bundled.configuration(name))


def _lm_evals(spec: TaskSpec) -> Loaded:
    by_name = {entry.name: entry for entry in spec.entries}
    _check_code(by_name)
    if spec.kind == "task":
        task, ours = _with_our_rows(by_name[spec.name])
        if task is not None:
            return Loaded({spec.name: task}, {}, {spec.name} if ours else set(), [spec.name])
    manager = _manager(by_name)
    try:
        found = manager.load([spec.name])
    except Exception as error:
        raise _explained(spec, by_name, error) from error
    tasks, groups = dict(found["tasks"]), dict(found.get("groups") or {})
    return Loaded(tasks, groups, set(), [*groups, *tasks])


def _manager(entries: Mapping[str, catalog.Entry]) -> Any:
    """lm-eval's manager, which knows the names that are needed and reads no other file."""
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._index import Entry, Kind

    manager = TaskManager(include_defaults=False)
    for entry in entries.values():
        kind = Kind.PY_TASK if entry.is_class else Kind[entry.kind.upper()]
        tags = set(entry.members) if entry.kind == "tag" else set()
        path = Path(entry.path) if entry.path else None
        manager.task_index[entry.name] = Entry(entry.name, kind, path, tags=tags)
    return manager


def _with_our_rows(entry: catalog.Entry) -> tuple[Any, bool]:
    """The task with bundled rows, where it reads a data set that is bundled to the letter.

    So gsm8k_cot and its like need no network. None where it does not.
    """
    if entry.is_class or entry.path is None:
        return None, False
    for task in bundled.TASKS.values():
        if not task.exact_rows or task.hub != (entry.dataset_path, entry.dataset_name):
            continue
        from lm_eval.api.task import ConfigurableTask
        from lm_eval.tasks._yaml_loader import load_yaml

        config = load_yaml(entry.path)
        splits = (config.get(f"{kind}_split") for kind in _SPLITS)
        if any(split not in task.files for split in splits if split):
            return None, False
        kept = {key: value for key, value in config.items() if key not in ("tag", "group")}
        return ConfigurableTask(config={**kept, "custom_dataset": bundled.dataset_of(task)}), True
    return None, False


_SPLITS = ("training", "validation", "test", "fewshot")


def _refuse_code(name: str) -> EvalError:
    return EvalError(
        f"{name} runs code that the model wrote, which atom eval does not do on this machine: use "
        "lm-eval with --confirm_run_unsafe_code in a sandbox"
    )


def _check_code(entries: Mapping[str, catalog.Entry]) -> None:
    """Before such a task is built: that asks the hub for the code that runs code."""
    for entry in entries.values():
        if entry.path and _UNSAFE.search(Path(entry.path).read_text(encoding="utf-8")):
            raise _refuse_code(entry.name)


def _refuse_unfit(name: str, task: Any) -> None:
    if getattr(task, "UNSAFE_CODE", False):
        raise _refuse_code(name)
    if getattr(task, "MULTIMODAL", False):
        raise EvalError(f"{name} asks about pictures or sound; atom eval sends text only")


def _refuse_twice(loaded: Loaded, parts: Loaded, spec: TaskSpec) -> None:
    """The same task twice would be counted twice in a group."""
    for name in parts.tasks:
        if name in loaded.tasks:
            raise EvalError(
                f"{name} was asked for twice: {spec.name} holds it, too; name one of them"
            )


@contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    """The global generators as lm-eval sets them, put back afterwards."""
    import numpy as np

    state, arrays = random.getstate(), np.random.get_state()
    random.seed(RANDOM_SEED if seed is None else seed)
    np.random.seed(OTHER_SEED if seed is None else seed)
    try:
        yield
    finally:
        random.setstate(state)
        np.random.set_state(arrays)


def _explained(spec: TaskSpec, entries: Mapping[str, catalog.Entry], error: Exception) -> EvalError:
    """Why lm-eval could not build a task, in one line."""
    lacking = next((e for e in _chain(error) if isinstance(e, ImportError)), None)
    if lacking is not None:
        package = getattr(lacking, "name", None) or "a package that is not installed"
        return EvalError(
            f"{spec.name} needs {package}: pip install {package}, or the extra of lm-eval that "
            f"the task's page names ({_one_line(lacking)})"
        )
    frames = traceback.extract_tb(error.__traceback__)
    if not any(frame.name in ("download", "load_dataset") for frame in frames):
        return EvalError(
            f"{spec.name}: lm-eval cannot build it: {type(error).__name__}: {_one_line(error)}"
        )
    return EvalError(_missing_data(spec, entries, error))


def _missing_data(spec: TaskSpec, entries: Mapping[str, catalog.Entry], error: Exception) -> str:
    where = _failed_dataset(error) or next(
        ((e.dataset_path, e.dataset_name) for e in entries.values() if e.dataset_path), ("", "")
    )
    path, name = where
    reason = _one_line(error)
    if "Offline" in reason:
        reason = "the Hugging Face hub cannot be reached from here, or was told not to be"
    what = f"{path!r}" + (f" (configuration {name!r})" if name else "")
    arguments = ", ".join(repr(part) for part in (path, name) if part)
    count = len({(e.dataset_path, e.dataset_name) for e in entries.values() if e.dataset_path})
    several = f", and likewise the others of the {count} that it needs," if count > 1 else ","
    return (
        f"{spec.name}: its data set {what} is neither in the cache nor to be had "
        f'({reason}). With a network: python -c "from datasets import load_dataset; '
        f'load_dataset({arguments})"{several} which puts it below {_datasets_cache()}: copy that '
        "folder to the same place here. Or put rows into a file of your own and a task YAML with "
        "dataset_path: json beside it, and give that folder as --include-path"
    )


def _failed_dataset(error: Exception) -> tuple[str, str] | None:
    """The data set whose loading failed: of a group's many tasks, the one at hand."""
    trace = error.__traceback__
    while trace is not None:
        task: Any = trace.tb_frame.f_locals.get("self")
        if trace.tb_frame.f_code.co_name == "download" and hasattr(task, "DATASET_PATH"):
            return task.DATASET_PATH or "", task.DATASET_NAME or ""
        trace = trace.tb_next
    return None


def _datasets_cache() -> str:
    from datasets import config

    folder = Path(config.HF_DATASETS_CACHE)
    home = Path.home()
    return f"~/{folder.relative_to(home)}" if folder.is_relative_to(home) else str(folder)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else f"{text[:157]}..."
