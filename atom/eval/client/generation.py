"""The generation request and its answer: /v1/completions or /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from atom.eval.errors import EvalError
from atom.eval.types import Generated, GenerateItem

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
FEW_STOPS = 4  # OpenAI's limit, which some servers share


class _Message(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    message: _Message | None = None
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Answer(msgspec.Struct):
    choices: list[_Choice]
    usage: _Usage | None = None


_decoder = msgspec.json.Decoder(_Answer)


def path_of(item: GenerateItem) -> str:
    return COMPLETIONS if item.messages is None else CHAT


def stops_of(item: GenerateItem) -> list[str]:
    return [stop for stop in item.until if stop]


def request(item: GenerateItem, model: str, prompt_ids: Sequence[int], max_stops: int) -> bytes:
    """`prompt_ids`: the item's, cut where they did not fit. Only the first `max_stops` stop strings
    are sent; `read` ends the text at any of them."""
    given = [item.prompt_ids is not None, item.prompt is not None, item.messages is not None]
    assert sum(given) == 1, "exactly one kind of prompt"
    body: dict[str, Any] = {"model": model}
    if item.messages is not None:
        body["messages"] = item.messages
    else:
        body["prompt"] = item.prompt if item.prompt is not None else list(prompt_ids)
    body |= {"max_tokens": item.max_tokens, "temperature": item.temperature}
    if stops := stops_of(item):
        body["stop"] = stops[:max_stops]
    if item.seed is not None:
        body["seed"] = item.seed
    return msgspec.json.encode(body | item.extra)


def read(data: bytes, item: GenerateItem, server: str) -> Generated:
    """Raises `EvalError` for anything but one choice."""
    try:
        answer = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise EvalError(f"{server} gave an answer that is not understood: {error}") from None
    if len(answer.choices) != 1:
        raise EvalError(f"{server} gave {len(answer.choices)} answers to one prompt")
    choice = answer.choices[0]
    message = choice.message or _Message()
    whole = (choice.text if item.messages is None else message.content) or ""
    text = cut(whole, item.until)
    usage = answer.usage or _Usage()
    ended = len(text) < len(whole) and choice.finish_reason == "length"
    return Generated(
        text=text,
        # What came after the stop string was cut, not the answer.
        finish_reason="stop" if ended else choice.finish_reason,
        prompt_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        reasoning=message.reasoning_content or message.reasoning,
    )


def cut(text: str, until: Sequence[str]) -> str:
    """The text before the first stop string."""
    ends = [place for stop in until if stop and (place := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text
