"""Every setting of `atom eval`: section [eval] of a recipe, ATOM_EVAL_* variables, flags.

Declared like `atom bench`'s. A recipe says what it expects of one task in a table of its own,
[eval.gsm8k], whose keys are `EvalTask`'s. What the texts mean (`0.1`, `gsm8k=0.4`) is read by
`atom.eval.settings`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from atom.config.place import ServerPlace
from atom.config.schema import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalServer(ServerPlace):
    """The server, and how it is spoken to."""

    concurrency: int = setting(
        32, "Requests in flight", ge=1, le=4096, aliases=("-c", "--num-concurrent")
    )
    batch_size: int = setting(8, "Prompts of one scoring request", ge=1, le=1024)
    max_retries: int = setting(
        3, "Attempts after a lost connection, a 429 or a 5xx, of each request", ge=0, le=100
    )
    tokenizer: str | None = setting(
        None, "A tokenizer.json or its directory (default: ask the server for its tokens)"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalQuestions:
    """What is asked. Every one of these may change a score."""

    tasks: tuple[str, ...] = setting(
        (), "Tasks, where the command names none (default: those of the recipe's tables)"
    )
    num_fewshot: int | None = setting(
        None, "Examples before each question (default: the task's own)", ge=0, le=1000
    )
    limit: str | None = setting(
        None,
        "The first N documents of each task, or a share of them: 50, 0.1 (default: all)",
        loose=True,
        aliases=("-L",),
    )
    endpoint: str = setting(
        "completions",
        "Which API; chat can generate but gives no log-probabilities of answers",
        choices=("completions", "chat"),
    )
    apply_chat_template: bool | None = setting(
        None, "Put the prompt into the model's chat template (default: off, on with chat)"
    )
    fewshot_as_multiturn: bool | None = setting(
        None, "Examples as turns of a conversation; needs the chat template (default: off)"
    )
    system_instruction: str | None = setting(None, "A system message, or text before the prompt")
    think_end_token: str | None = setting(
        None, "An answer begins after the last of these, e.g. </think>"
    )
    gen_kwargs: str | None = setting(
        None, "Generation settings over the task's: temperature=0.6,top_p=0.95, or a JSON object"
    )
    max_gen_tokens: int | None = setting(
        None,
        "Tokens of an answer, at most (default: the task's, else 256)",
        ge=1,
        aliases=("--max-gen-toks",),
    )
    seed: int | None = setting(
        None, "Of the choice of examples and of sampling (default: lm-eval's, 1234)", ge=0
    )
    hub: bool = setting(False, "lm-eval's own data, which it may download, for bundled tasks, too")
    include_path: str | None = setting(None, "Folder of further lm-eval task files (YAML)")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalVerdict:
    """What must hold."""

    threshold: tuple[str, ...] = setting(
        (),
        "TASK=SCORE or TASK/METRIC=SCORE; a score below it is exit code 3",
        loose=True,
    )
    baseline: tuple[str, ...] = setting(
        (), "TASK=SCORE or TASK=RUN of the history: what the score is compared with", loose=True
    )
    min_acceptance: float | None = setting(
        None,
        "Least share of draft tokens that the model accepts; a lower one is exit code 3",
        ge=0,
        le=1,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalOutput:
    """What is kept, beside the history."""

    label: str | None = setting(None, "A name for this run, for people")
    metadata: tuple[str, ...] = setting((), "KEY=VALUE kept with the result")
    output: str | None = setting(
        None,
        "Folder that takes lm-eval's results_*.json and samples_*.jsonl, too",
        aliases=("--output-path", "-o"),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalConfig:
    """The accuracy evaluator, `atom eval`. The server ignores it."""

    server: EvalServer = field(default_factory=EvalServer)
    questions: EvalQuestions = field(default_factory=EvalQuestions)
    verdict: EvalVerdict = field(default_factory=EvalVerdict)
    output: EvalOutput = field(default_factory=EvalOutput)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalTask:
    """What a recipe asks and expects of one task. A flag goes before it."""

    threshold: float | None = setting(None, "The least score; below it is exit code 3")
    baseline: str | None = setting(
        None, "A score, or a run of the history, that the score is compared with", loose=True
    )
    metric: str | None = setting(
        None, "The metric that both are of, e.g. exact_match,flexible-extract (default: the main)"
    )
    num_fewshot: int | None = setting(
        None, "Examples before each question (default: the task's own)", ge=0, le=1000
    )
    limit: str | None = setting(
        None, "The first N documents, or a share of them (default: all)", loose=True
    )
    gen_kwargs: str | None = setting(
        None, "Generation settings over the task's: temperature=0.6,top_p=0.95, or a JSON object"
    )
    max_gen_tokens: int | None = setting(
        None, "Tokens of an answer, at most (default: the task's, else 256)", ge=1
    )
    apply_chat_template: bool | None = setting(
        None, "Put the prompt into the model's chat template"
    )
    fewshot_as_multiturn: bool | None = setting(
        None, "Examples as turns of a conversation; needs the chat template"
    )
    system_instruction: str | None = setting(None, "A system message, or text before the prompt")
