"""Request bodies as pydantic models: types and static ranges. The server's caps are in `limits`.

`null` means "not given" for every field, as OpenAI's clients send it. Bodies are screened by
`fields.screen` first, so that a refused field is named with its reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    WithJsonSchema,
)

from atom.engine.sampling_params import MAX_SEED
from atom.server import fields
from atom.server.errors import from_validation

M = TypeVar("M", bound=BaseModel)

ID_FORMAT = "token-id"  # marks token ids in schemas, whose maximum the model sets
_TOKEN_ID = {"type": "integer", "minimum": 0, "format": ID_FORMAT}
_TOKEN_IDS = {"type": "array", "items": _TOKEN_ID, "minItems": 1}
_TEXT = {"type": "string", "minLength": 1}
PROMPT_SCHEMA: dict[str, Any] = {
    "anyOf": [
        _TEXT,
        {"type": "array", "items": _TEXT, "minItems": 1},
        _TOKEN_IDS,
        {"type": "array", "items": _TOKEN_IDS, "minItems": 1},
    ]
}
_PART_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    "required": ["type", "text"],
    "additionalProperties": False,
}
MESSAGES_SCHEMA: dict[str, Any] = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "properties": {
            "role": {"enum": ["system", "developer", "user", "assistant"]},
            "content": {
                "anyOf": [
                    {"type": "string"},
                    {"type": "array", "items": _PART_SCHEMA, "minItems": 1},
                ]
            },
            "name": {"type": "string"},
        },
        "required": ["role", "content"],
        "additionalProperties": False,
    },
}


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def as_int(value: Any) -> Any:
    """JSON has one kind of number: 2.0 is an integer."""
    return int(value) if type(value) is float and value.is_integer() else value


_WHOLE = BeforeValidator(as_int)
Count = Annotated[int, Field(ge=0, le=2**31 - 1), _WHOLE]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1, json_schema_extra={"format": ID_FORMAT}), _WHOLE]
Penalty = Annotated[float, Field(ge=-2.0, le=2.0)]
Bias = Annotated[
    dict[str, Annotated[float, Field(ge=-100.0, le=100.0)]],
    Field(json_schema_extra={"propertyNames": {"pattern": "^[0-9]{1,10}$"}}),
]
Stop = Annotated[list[str], BeforeValidator(_as_list, json_schema_input_type=str | list[str])]
# One value, or a list with at least one; the tags are no names, so that errors leave them out.
_ONE_OR_MANY = Discriminator(lambda value: "a list" if isinstance(value, list) else "one value")
Counts = Annotated[
    Annotated[Count, Tag("one value")] | Annotated[list[Count], Field(min_length=1), Tag("a list")],
    _ONE_OR_MANY,
]
Prompt = Annotated[Any, WithJsonSchema(PROMPT_SCHEMA)]
Messages = Annotated[Any, WithJsonSchema(MESSAGES_SCHEMA)]
Texts = Annotated[
    Annotated[str, Tag("one value")] | Annotated[list[str], Field(min_length=1), Tag("a list")],
    _ONE_OR_MANY,
]
Salt = Annotated[str, Field(min_length=1, max_length=256)]
Name = Annotated[str, Field(max_length=512)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    model: str | None = None


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class GenerationBody(_Body):
    """What completions and chat share."""

    temperature: Annotated[float, Field(ge=0.0, le=100.0)] | None = None
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1), _WHOLE] | None = None
    min_p: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100.0)] | None = None
    logit_bias: Bias | None = None
    seed: Annotated[int, Field(ge=-MAX_SEED - 1, le=MAX_SEED), _WHOLE] | None = None
    stop: Stop | None = None
    stop_token_ids: list[TokenId] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    min_tokens: Count | None = None
    max_tokens: Count | None = None
    n: Annotated[int, Field(ge=1, le=2**31 - 1), _WHOLE] | None = None
    prompt_logprobs: Count | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    cache_salt: Salt | None = None
    add_special_tokens: bool | None = None
    user: Name | None = None


class CompletionBody(GenerationBody):
    prompt: Prompt
    logprobs: Count | None = None
    echo: bool | None = None
    best_of: Count | None = None
    logprobs_start: Counts | None = None


class TemplateBody(_Body):
    """What goes through the chat template."""

    messages: Messages
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class ChatBody(GenerationBody, TemplateBody):
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Count | None = None
    safety_identifier: Name | None = None
    prompt_cache_key: Name | None = None


class TokenizeBody(_Body):
    """Either `prompt` or `messages`."""

    prompt: Texts | None = None
    messages: Messages | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeBody(_Body):
    tokens: list[TokenId]
    skip_special_tokens: bool | None = None


TABLES: dict[type[BaseModel], Mapping[str, fields.Field]] = {
    CompletionBody: fields.COMPLETIONS,
    ChatBody: fields.CHAT,
    TokenizeBody: fields.TOKENIZE,
    DetokenizeBody: fields.DETOKENIZE,
}


def parse(model: type[M], body: Mapping[str, Any]) -> M:
    """A checked request; raises `ApiError` (400) naming the first wrong field."""
    kept = fields.screen(body, TABLES[model])
    options = kept.get("stream_options")
    if isinstance(options, dict):
        kept["stream_options"] = fields.screen(options, fields.STREAM_OPTIONS, "stream_options")
    try:
        return model.model_validate(kept)
    except ValidationError as error:
        raise from_validation(error) from None
