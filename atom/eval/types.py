"""What crosses between the rooms of the evaluator. It imports none of them.

Log-probabilities are natural logarithms, durations seconds. Structs are stored as JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import msgspec

Message = dict[str, Any]  # {"role": ..., "content": ...}


class ScoreItem(NamedTuple):
    """How likely is `continuation` after `context`? Both are token ids and not empty."""

    context: Sequence[int]
    continuation: Sequence[int]


class Scored(msgspec.Struct, frozen=True, array_like=True):
    """The answer to a `ScoreItem`."""

    logprob: float  # of the whole continuation: the sum over its tokens
    is_greedy: bool  # every token of it is the likeliest at its place


class GenerateItem(msgspec.Struct, frozen=True, omit_defaults=True):
    """One prompt to be continued. Exactly one of the three prompts is set."""

    prompt_ids: list[int] | None = None
    prompt: str | None = None
    messages: list[Message] | None = None  # to the chat endpoint
    until: list[str] = []  # the text ends before the first of these
    max_tokens: int = 256
    temperature: float = 0.0
    seed: int | None = None
    extra: dict[str, Any] = {}  # top_p, ...: merged into the request's body


class Generated(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answer to a `GenerateItem`."""

    text: str
    finish_reason: str | None = None  # "length": cut at max_tokens
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    reasoning: str | None = None  # what the server told apart as thinking


class Progress(NamedTuple):
    """Where a run is; given to the display a few times a second."""

    phase: str  # "starting server", "building prompts", "scoring", "generating", "computing scores"
    done: int  # requests answered, those of a resumed run included
    total: int | None
    kept: int  # of `done`: taken from the journal of the run that is resumed
    retries: int
    elapsed_s: float  # of this phase
    tokens: int  # prompt and output tokens so far in this phase
    detail: str = ""  # the tasks concerned, a server's state


class OnProgress(Protocol):
    def __call__(self, progress: Progress, /) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A server and how it is spoken to."""

    base_url: str  # http://host:port, without /v1
    model: str
    api_key: str | None = None  # never printed, never stored
    headers: Mapping[str, str] = field(default_factory=dict)
    concurrency: int = 32  # HTTP requests in flight
    batch_size: int = 8  # prompts of one scoring request
    timeout_s: float = 600.0  # of one request
    max_retries: int = 3  # of one request, after a connection error, 429 or 5xx
    verify_tls: bool = True


class Counts(msgspec.Struct):
    """What a client has done since it was made. Items that were asked twice count once."""

    items: int = 0  # answered, those of the journal included
    kept: int = 0  # of `items`: from the journal
    requests: int = 0  # over HTTP, that were answered
    retries: int = 0
    prompt_tokens: int = 0  # of what was sent, kept answers left out
    output_tokens: int = 0


class Client(Protocol):
    """Speaks to one server; blocking, called from one thread. Answers keep the order of items.

    Items that the journal has an answer to are not asked again. Raises `EvalError` where the server
    refuses or cannot do what is needed, `ServerGone` when it stops answering, `EvalStopped` when
    `stop` said so. What was answered before is in the journal.
    """

    max_model_len: int | None  # tokens, where the server tells
    counts: Counts
    notes: list[str]  # sentences for the result: what was cut, what the server could not do

    def score(self, items: Sequence[ScoreItem], detail: str = "") -> list[Scored]: ...

    def score_rolling(self, texts: Sequence[Sequence[int]], prefix: int) -> list[float]: ...

    def generate(self, items: Sequence[GenerateItem], detail: str = "") -> list[Generated]: ...

    def tokenize(
        self, texts: Sequence[str], *, add_special_tokens: bool = False
    ) -> list[list[int]]: ...

    def detokenize(self, token_ids: Sequence[int]) -> str: ...

    def chat_prompt(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        """The model's chat template over the messages, as text."""
        ...

    def special_tokens(self) -> SpecialTokens: ...


class SpecialTokens(NamedTuple):
    """None where the model has none, or the server does not say."""

    bos: int | None
    eos: int | None
    chat_template: str | None = None


class Score(msgspec.Struct, frozen=True):
    """One metric of one task. `low` and `high`: an interval of 95 %."""

    value: float
    stderr: float | None
    low: float | None
    high: float | None
    higher_is_better: bool = True


class Sample(msgspec.Struct, omit_defaults=True):
    """One document of a task: what was asked, answered and found right."""

    task: str
    doc_id: int
    doc_hash: str  # of the document: pairs the samples of two runs
    prompt: str  # the context; of choices that have contexts of their own, the first
    target: str  # as text
    # "acc,none": 1.0; filters are part of the name: "exact_match,strict-match"
    metrics: dict[str, float]
    answers: list[dict[str, Any]] = []  # choices: {"text", "logprob", "is_greedy"}; else {"text"}
    filtered: dict[str, str] = {}  # filter -> what it made of the answer
    gold: int | None = None  # the right choice's number, where there are choices
    chosen: int | None = None  # the choice with the largest log-probability
    finish_reason: str | None = None
    output_tokens: int | None = None
    doc: dict[str, Any] = {}


class TaskResult(msgspec.Struct, omit_defaults=True):
    """One task, or a group of them."""

    task: str
    kind: Literal["task", "group"]
    output_type: str  # "multiple_choice", "loglikelihood", "generate_until"; of a group ""
    num_samples: int  # evaluated
    num_documents: int  # that the task has
    num_fewshot: int
    version: str
    metrics: dict[str, Score]  # "acc,none", "exact_match,flexible-extract"
    main_metric: str  # the one a threshold is for, unless it names another
    prompt_hash: str = ""  # of all prompts of the task: equal hashes, equal questions
    truncated: int = 0  # answers that were cut at max_tokens
    bundled: bool = False  # prompts and data came with atom
    members: list[str] = []  # of a group
    generation: dict[str, Any] = {}  # until, max_gen_toks, temperature, ...


class EvalOutcome(msgspec.Struct):
    """What the harness found, before it is judged and stored."""

    tasks: list[TaskResult]  # tasks and groups, in the order asked for
    samples: list[Sample]
    config: dict[str, Any]  # all that changes a score: chat template, seeds, limit, fewshot, ...
    duration_s: float
    answers: int  # of the model, those of the journal included
    kept: int  # of `answers`: from the journal
    prompt_tokens: int
    output_tokens: int
    versions: dict[str, str]  # lm_eval, ...
    notes: list[str] = []
