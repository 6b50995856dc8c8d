"""The settings as the other rooms want them: the harness's options, the journal's facts.

Tasks are known here by lm-eval's names; a user may have said one of atom's shorter ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec

from atom.config.fields import nearest
from atom.eval.errors import EvalError
from atom.eval.options import Options, TaskOptions
from atom.eval.settings import Expectation, Settings

if TYPE_CHECKING:
    from atom.eval.tasks import TaskSpec


def options_of(settings: Settings) -> Options:
    """The harness's `Options`."""
    questions = settings.config.questions
    names = canonical_names()
    return Options(
        num_fewshot=questions.num_fewshot,
        limit=settings.limit,
        gen_kwargs=dict(settings.gen_kwargs) or None,
        max_gen_tokens=questions.max_gen_tokens,
        apply_chat_template=questions.apply_chat_template,
        fewshot_as_multiturn=questions.fewshot_as_multiturn,
        system_instruction=questions.system_instruction,
        chat=settings.chat,
        seed=questions.seed,
        think_end_token=questions.think_end_token,
        per_task={
            names.get(task, task): TaskOptions(
                num_fewshot=own.num_fewshot,
                limit=own.limit,
                gen_kwargs=own.gen_kwargs,
                max_gen_tokens=own.max_gen_tokens,
                apply_chat_template=own.apply_chat_template,
                fewshot_as_multiturn=own.fewshot_as_multiturn,
                system_instruction=own.system_instruction,
            )
            for task, own in settings.per_task.items()
        },
    )


def canonical_names() -> Mapping[str, str]:
    """Other names of bundled tasks -> lm-eval's."""
    from atom.eval.tasks.bundled import ALIASES

    return ALIASES


def canonical(settings: Settings) -> list[Expectation]:
    """The expectations with lm-eval's names of tasks, as results have them."""
    names = canonical_names()
    return [replace(one, task=names.get(one.task, one.task)) for one in settings.expectations]


def score_settings(settings: Settings) -> dict[str, Any]:
    """All that was asked for and changes a score, as JSON; what is not set is left out."""
    questions = settings.config.questions
    found = {
        "num_fewshot": questions.num_fewshot,
        "limit": settings.limit,
        "endpoint": questions.endpoint,
        "apply_chat_template": questions.apply_chat_template,
        "fewshot_as_multiturn": questions.fewshot_as_multiturn,
        "system_instruction": questions.system_instruction,
        "think_end_token": questions.think_end_token,
        "gen_kwargs": dict(settings.gen_kwargs) or None,
        "max_gen_tokens": questions.max_gen_tokens,
        "seed": questions.seed,
        "hub": questions.hub or None,
        "include_path": None if settings.include_path is None else str(settings.include_path),
        "tokenizer": settings.config.server.tokenizer,
    }
    for task, own in settings.per_task.items():
        for key, value in msgspec.to_builtins(own).items():
            found[f"{task}.{key}"] = value
    return {key: value for key, value in found.items() if value is not None}


def check_expectations(settings: Settings, specs: Sequence[TaskSpec]) -> None:
    """Raise `EvalError` for a threshold or baseline of a task that is not evaluated here."""
    known: list[str] = []
    for spec in specs:
        known += [spec.name, *(entry.name for entry in spec.entries), *_members(spec)]
    for one in canonical(settings):
        if one.asked and one.task not in known:
            raise EvalError(
                f"{one.where} {one.task}: {one.task} is not evaluated here"
                f"{nearest(one.task, known)}; there are {', '.join(dict.fromkeys(known))}"
            )


def _members(spec: TaskSpec) -> Sequence[str]:
    from atom.eval.tasks.bundled import GROUPS

    return GROUPS[spec.name].members if spec.bundled and spec.name in GROUPS else ()
