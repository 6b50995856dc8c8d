"""The shapes of the answers, for the OpenAPI document and the tests. Answers are not built of
them: `encode` writes bytes.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

FinishReason = Literal["stop", "length"]


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Error(_Shape):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(_Shape):
    error: Error


class PromptTokensDetails(_Shape):
    cached_tokens: int


class Usage(_Shape):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    queue_s: float | None
    ttft_s: float | None
    tpot_s: float | None
    latency_s: float | None


class PromptLogprob(_Shape):
    logprob: float
    rank: int
    decoded_token: str


class CompletionLogprobs(_Shape):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(_Shape):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None
    prompt_logprobs: list[dict[str, PromptLogprob] | None] | None = None


class Completion(_Shape):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class TopLogprob(_Shape):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(_Shape):
    content: list[TokenLogprob]
    refusal: None


class Message(_Shape):
    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(_Shape):
    index: int
    message: Message
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason
    prompt_logprobs: list[dict[str, PromptLogprob] | None] | None = None


class ChatCompletion(_Shape):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class ModelCard(_Shape):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    max_model_len: int


class ModelList(_Shape):
    object: Literal["list"]
    data: list[ModelCard]


class Tokens(_Shape):
    """Of a list of texts, everything but `max_model_len` is a list with one entry for each."""

    count: int | list[int]
    max_model_len: int
    tokens: list[int] | list[list[int]]
    token_strs: list[str] | list[list[str]] | None


class TokenizerInfo(_Shape):
    """vLLM's names; `bos_token_id` and `eos_token_id` are ours. Null: there is none."""

    tokenizer_class: str | None
    bos_token: str | None
    eos_token: str | None
    unk_token: str | None
    pad_token: str | None
    bos_token_id: int | None
    eos_token_id: int | None
    add_bos_token: bool
    add_eos_token: bool
    model_max_length: int
    chat_template: str | None


class Text(_Shape):
    prompt: str


class Status(_Shape):
    status: str


class Version(_Shape):
    version: str


class Profiling(_Shape):
    status: str
    directory: str


class Traces(_Shape):
    traces: list[str]


ANSWERS: dict[str, type[BaseModel]] = {
    "completions": Completion,
    "chat": ChatCompletion,
    "tokenize": Tokens,
    "detokenize": Text,
    "tokenizer_info": TokenizerInfo,
    "models": ModelList,
    "model": ModelCard,
    "health": Status,
    "ready": Status,
    "version": Version,
    "start_profile": Profiling,
    "stop_profile": Traces,
}


def schema_of(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema(ref_template="#/components/schemas/{model}")
