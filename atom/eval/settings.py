"""What was asked of `atom eval`, read and checked: texts of the settings become values.

Everything that can be known to be wrong before a server is touched is refused here, in one line
that names what the user wrote.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atom.bench.headers import read_headers
from atom.config.eval import EvalConfig, EvalTask
from atom.eval.errors import EvalError

if TYPE_CHECKING:
    from atom.config import ResolvedTool

Limit = int | float | None  # documents, or a share of them below 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """What a score is held against. `baseline`: a score, or the text that names a run."""

    task: str
    metric: str | None = None  # None: the task's main one
    threshold: float | None = None
    baseline: float | str | None = None
    where: str = ""  # what the user wrote, to open a message with
    asked: bool = True  # of this very run; a recipe's tables are for whoever evaluates that task


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSettings:
    """What a recipe's [eval.TASK] changes of the questions; None: as for all tasks."""

    num_fewshot: int | None = None
    limit: Limit = None
    gen_kwargs: Mapping[str, Any] | None = None
    max_gen_tokens: int | None = None
    apply_chat_template: bool | None = None
    fewshot_as_multiturn: bool | None = None
    system_instruction: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """An evaluation, ready to be run. `config` holds what needs no reading."""

    config: EvalConfig
    tasks: tuple[str, ...]  # none: `require_tasks` says what to do
    base_url: str | None  # None: the recipe's own server, or the default place
    headers: Mapping[str, str]
    limit: Limit
    gen_kwargs: Mapping[str, Any]
    per_task: Mapping[str, TaskSettings]
    expectations: tuple[Expectation, ...]
    metadata: Mapping[str, str]
    output: Path | None
    include_path: Path | None

    @property
    def chat(self) -> bool:
        return self.config.questions.endpoint == "chat"

    def require_tasks(self) -> tuple[str, ...]:
        if not self.tasks:
            raise EvalError(
                "no task is named: atom eval gsm8k, or a recipe with a table [eval.gsm8k]; "
                "atom eval tasks lists them"
            )
        return self.tasks


def read(resolved: ResolvedTool, tasks: Sequence[str] = ()) -> Settings:
    """The settings' values, with the tasks that the command names; `EvalError` for a mistake.

    Without named tasks those of --tasks, else the recipe's tables.
    """
    config: EvalConfig = resolved.config
    named = _names(tasks) or _names(config.questions.tasks)
    chosen = named or tuple(resolved.tables)
    settings = Settings(
        config=config,
        tasks=chosen,
        base_url=_base_url(config),
        headers=read_headers(config.server.header, resolved.where("header")),
        limit=read_limit(config.questions.limit, resolved.where("limit")),
        gen_kwargs=read_gen_kwargs(config.questions.gen_kwargs, resolved.where("gen_kwargs")),
        per_task=_per_task(resolved),
        expectations=tuple(_expectations(resolved, chosen)),
        metadata=dict(_pairs(config.output.metadata, resolved.where("metadata"))),
        output=None if config.output.output is None else Path(config.output.output),
        include_path=_folder(config.questions.include_path, resolved.where("include_path")),
    )
    _check(settings, resolved)
    return settings


def _names(texts: Sequence[str]) -> tuple[str, ...]:
    """Names in their order, each once; `a,b` are two."""
    parts = (part.strip() for text in texts for part in text.split(","))
    return tuple(dict.fromkeys(part for part in parts if part))


def _check(settings: Settings, resolved: ResolvedTool) -> None:
    questions = settings.config.questions
    if questions.fewshot_as_multiturn and not (questions.apply_chat_template or settings.chat):
        raise EvalError(
            f"{resolved.where('fewshot_as_multiturn')} needs --apply-chat-template (or --chat): "
            "without it there are no turns"
        )
    tokenizer = settings.config.server.tokenizer
    if tokenizer is not None and not Path(tokenizer).expanduser().exists():
        raise EvalError(f"{resolved.where('tokenizer')} {tokenizer}: there is no such file")


def _base_url(config: EvalConfig) -> str | None:
    from atom.bench.client.address import parse_url

    given = config.server.base_url
    return None if given is None else parse_url(given).url


def read_limit(text: str | None, where: str) -> Limit:
    """`50` -> 50, `0.1` or `10%` -> 0.1; shares are lm-eval's, rounded up."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*(%?)", text.strip())
    value = float(match[1]) / (100 if match[2] else 1) if match else 0.0
    if match is not None and 0 < value < 1:
        return value
    if value >= 1 and value == int(value) and (match is None or not match[2]):
        return int(value)
    raise EvalError(
        f"{where} {text}: write a number of documents (50) or a share below 1 (0.1, 10%)"
    )


def read_gen_kwargs(text: str | None, where: str) -> dict[str, Any]:
    """`temperature=0.6,top_p=0.95` or a JSON object; values are numbers, true/false or text."""
    if text is None:
        return {}
    if text.lstrip().startswith("{"):
        try:
            found = json.loads(text)
        except ValueError as error:
            raise EvalError(f"{where} is not JSON: {error}") from None
        assert isinstance(found, dict)
        return found
    return {name: _value(value) for name, value in _pairs((text,), where)}


def _value(text: str) -> Any:
    """A number, true, false, null, or the text as it stands."""
    lowered = {"True": "true", "False": "false", "None": "null"}.get(text, text)
    try:
        return json.loads(lowered)
    except ValueError:
        return text


def _pairs(texts: Sequence[str], where: str) -> Iterator[tuple[str, str]]:
    """NAME=VALUE, several of them apart by commas; a part without a name belongs to its value."""
    parts: list[str] = []
    for part in (part for text in texts for part in text.split(",")):
        if "=" not in part and parts:
            parts[-1] += f",{part}"
        else:
            parts.append(part)
    for part in parts:
        name, sign, value = part.partition("=")
        if not sign or not name.strip() or not value.strip():
            raise EvalError(f"{where} {part}: write NAME=VALUE")
        yield name.strip(), value.strip()


def _folder(text: str | None, where: str) -> Path | None:
    if text is None:
        return None
    folder = Path(text).expanduser()
    if not folder.is_dir():
        raise EvalError(f"{where} {text}: there is no such folder")
    return folder


def _per_task(resolved: ResolvedTool) -> dict[str, TaskSettings]:
    """The recipe's tables, but for what a flag or a variable says of all tasks."""
    found = {}
    for task, table in resolved.tables.items():
        kept = {
            name: None if _stronger(resolved, name) else getattr(table, name)
            for name in _OF_QUESTIONS
        }
        found[task] = TaskSettings(
            num_fewshot=kept["num_fewshot"],
            limit=read_limit(kept["limit"], _of(resolved, task, "limit")),
            gen_kwargs=(
                None
                if kept["gen_kwargs"] is None
                else read_gen_kwargs(kept["gen_kwargs"], _of(resolved, task, "gen_kwargs"))
            ),
            max_gen_tokens=kept["max_gen_tokens"],
            apply_chat_template=kept["apply_chat_template"],
            fewshot_as_multiturn=kept["fewshot_as_multiturn"],
            system_instruction=kept["system_instruction"],
        )
    return found


_OF_QUESTIONS = tuple(f.name for f in dataclasses.fields(TaskSettings))


def _stronger(resolved: ResolvedTool, name: str) -> bool:
    source = resolved.sources.get(name)
    return source is not None and source.kind != "recipe"


def _of(resolved: ResolvedTool, task: str, name: str) -> str:
    """What opens a message about a task's key, given or not."""
    key = f"{task}.{name}"
    return resolved.where(key) if key in resolved.sources else f"[eval.{task}] {name}"


# What is expected


def _expectations(resolved: ResolvedTool, tasks: Sequence[str]) -> Iterator[Expectation]:
    """Flags first: what a recipe says of the same task and metric is displaced, key by key."""
    found: dict[tuple[str, str | None], dict[str, Any]] = {}
    verdict = resolved.config.verdict
    for key, texts in (("threshold", verdict.threshold), ("baseline", verdict.baseline)):
        where = resolved.where(key)
        for task, metric, text in _targets(texts, where, tasks):
            value: Any = _score(text)
            if key == "threshold" and value is None:
                raise EvalError(f"{where} {task}={text}: a threshold is a number such as 0.4")
            place = found.setdefault((task, metric), {"where": where})
            place[key] = text if value is None else value
    for task, table in resolved.tables.items():
        _take_table(resolved, task, table, found)
    for (task, metric), held in found.items():
        yield Expectation(task=task, metric=metric, **held)


def _take_table(
    resolved: ResolvedTool,
    task: str,
    table: EvalTask,
    found: dict[tuple[str, str | None], dict[str, Any]],
) -> None:
    if table.threshold is None and table.baseline is None:
        if table.metric is not None:
            where = _of(resolved, task, "metric")
            raise EvalError(f"{where} has no effect without a threshold or a baseline")
        return
    # A flag that names no metric means the one that the recipe is about.
    flagged = found.pop((task, None), {}) if table.metric is not None else {}
    place = found.setdefault((task, table.metric), {} if flagged else {"asked": False})
    place.update({**flagged, **place})
    if table.threshold is not None:
        place.setdefault("threshold", table.threshold)
    if table.baseline is not None:
        value = _score(table.baseline)
        place.setdefault("baseline", table.baseline if value is None else value)
    key = "threshold" if table.threshold is not None else "baseline"
    place.setdefault("where", _of(resolved, task, key))


def _targets(
    texts: Sequence[str], where: str, tasks: Sequence[str]
) -> Iterator[tuple[str, str | None, str]]:
    """`gsm8k=0.4`, `gsm8k/exact_match,strict-match=0.4`; of a single task also `0.4`.

    A comma within a metric's name has been taken for one between elements: put together again.
    """
    open_part = ""
    for text in texts:
        name, sign, value = text.rpartition("=")
        if not sign and len(texts) == 1 and len(tasks) == 1:
            yield tasks[0], None, value.strip()
            return
        if not sign:
            open_part += f"{text},"
            continue
        task, _, metric = f"{open_part}{name}".partition("/")
        open_part = ""
        if not task.strip() or not value.strip():
            raise EvalError(f"{where} {text}: write TASK=VALUE or TASK/METRIC=VALUE")
        yield task.strip(), metric.strip() or None, value.strip()
    if open_part:
        raise EvalError(f"{where} {open_part.rstrip(',')}: write TASK=VALUE or TASK/METRIC=VALUE")


def _score(text: str) -> float | None:
    """`0.4`, `40%`; None for what is no number."""
    match = re.fullmatch(r"([+-]?(?:\d+(?:\.\d*)?|\.\d+))\s*(%?)", text.strip())
    return None if match is None else float(match[1]) / (100 if match[2] else 1)
