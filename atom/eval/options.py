"""What changes a score: shots, limits, generation, chat template, seeds. The harness's settings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from atom.eval.errors import EvalError

DEFAULT_MAX_GEN_TOKENS = 256  # lm-eval's
DEFAULT_SEED = 1234  # lm-eval's, of few-shot examples and of sampling
BOOTSTRAP = 100_000  # lm-eval's resamples


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOptions:
    """Of one task; what is None is as in `Options`, and then as the task says."""

    num_fewshot: int | None = None
    limit: float | None = None  # documents: a count from 1 on, a share below
    gen_kwargs: Mapping[str, Any] | None = None  # over the task's own, key by key
    max_gen_tokens: int | None = None
    apply_chat_template: bool | None = None
    fewshot_as_multiturn: bool | None = None
    system_instruction: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(TaskOptions):
    """Of a run. Raises `EvalError` for what cannot be."""

    chat: bool = False  # generation through /v1/chat/completions
    seed: int | None = None  # None: lm-eval's defaults
    think_end_token: str | None = None  # an answer begins after the last of these
    bootstrap_iters: int = BOOTSTRAP  # where a metric's error has no formula
    per_task: Mapping[str, TaskOptions] = field(default_factory=dict)  # by task or group

    def __post_init__(self) -> None:
        _check(self, "")
        for name, own in self.per_task.items():
            _check(own, f"{name}: ")

    def for_task(self, *names: str) -> TaskOptions:
        """Of a task: the first of `names` (itself, then its groups) that says something."""
        mine = {f.name: getattr(self, f.name) for f in fields(TaskOptions)}
        result = TaskOptions(**mine)
        for name in reversed(names):
            own = self.per_task.get(name)
            if own is not None:
                given = {f.name: getattr(own, f.name) for f in fields(TaskOptions)}
                result = replace(result, **{k: v for k, v in given.items() if v is not None})
        return result


def _check(options: TaskOptions, whose: str) -> None:
    shots, limit, longest = options.num_fewshot, options.limit, options.max_gen_tokens
    if shots is not None and shots < 0:
        raise EvalError(f"{whose}--num-fewshot must be 0 or more, got {shots}")
    if limit is not None and not (0 < limit < math.inf):
        raise EvalError(f"{whose}--limit must be above 0 (a share below 1, else a count): {limit}")
    if limit is not None and limit > 1 and limit != int(limit):
        raise EvalError(f"{whose}--limit {limit}: a count must be whole, a share below 1")
    if longest is not None and longest < 1:
        raise EvalError(f"{whose}--max-gen-toks must be 1 or more, got {longest}")
