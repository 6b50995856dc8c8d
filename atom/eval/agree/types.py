"""What crosses between the parts of `--agree`. Log-probabilities are natural logarithms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec

Token = int | str  # an id; or, from servers that tell no ids, the token's text
Say = Callable[[str], None]
OnCount = Callable[[str, int, int], None]  # what is done, how many of how many

FLOOR = -9999.0  # "never", as servers write it: JSON has no infinity


class Position(msgspec.Struct, array_like=True, frozen=True):
    """What one side says of one place of a text: tokens, best known first but for the first.

    tokens[0] is the text's own token. Each is listed once.
    """

    tokens: list[Token]
    logprobs: list[float]


class Prompt(msgspec.Struct, frozen=True):
    kind: str  # where it comes from: gsm8k, mt_bench coding, a file's name
    text: str
    ids: list[int]


class Continuation(msgspec.Struct, frozen=True):
    """A greedy answer as it was decoded, token by token."""

    text: str
    positions: list[Position]  # tokens[0] is the one that was chosen
    finish_reason: str | None = None


class Side(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Who answered."""

    name: str  # as the user named it: a URL, a recipe, hf:PATH
    model: str
    kind: str  # atom, vllm, ..., transformers
    version: str | None = None
    precision: str = ""  # float32, bfloat16, fp8, q4, ...; "" unknown
    top_k: int = 0  # likeliest tokens told at each place
    recipe: str | None = None  # its file, for provenance
    max_model_len: int | None = None
    details: dict[str, Any] = {}


class Answers(msgspec.Struct, kw_only=True):
    """All that one side was asked: prompts, continuations, and the scores of fixed texts."""

    side: Side
    prompts: list[Prompt]
    outputs: list[list[int]]  # what was scored after each prompt: the reference's continuation
    continued: list[Continuation]
    scored: list[list[Position]]  # of prompt + output, from its second token on
    texts: dict[int, str] = {}  # token id -> how this side writes it
    max_tokens: int = 0
    retokenized: int = 0  # outputs whose tokens are the text's, not certainly those decoded
    notes: list[str] = []


class Job(NamedTuple):
    """What a side is asked. `outputs` None: it is the reference, its own continuations count."""

    prompts: Sequence[Prompt]
    outputs: Sequence[Sequence[int]] | None
    max_tokens: int
    top_k: int


class Model(Protocol):
    """A side that can be asked; blocking. Raises `EvalError` where it cannot do what is needed."""

    side: Side
    texts: dict[int, str]
    notes: list[str]

    def tokenize(self, texts: Sequence[str]) -> list[list[int]] | None:
        """With the special tokens of a prompt; None where it cannot tell."""
        ...

    def continue_(
        self, prompts: Sequence[Sequence[int]], max_tokens: int
    ) -> list[Continuation]: ...

    def output_ids(
        self, prompts: Sequence[Prompt], continued: Sequence[Continuation]
    ) -> tuple[list[list[int]], int]:
        """The continuations as token ids, and how many of them are the text's tokens only."""
        ...

    def score(self, texts: Sequence[Sequence[int]]) -> list[list[Position]]:
        """What it finds likely at each token of each text but the first."""
        ...
