"""Prompts and messages: checked by hand, so that errors name the place, then made token ids."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple

from atom.server import fields
from atom.server.errors import bad_request
from atom.server.protocol import TemplateBody, TokenizeBody, as_int

if TYPE_CHECKING:
    from atom.engine.text.tokenizer import Tokenizer

# Arguments of the renderer, which a request's options must not stand in for.
_TEMPLATE_ARGUMENTS = frozenset({"self", "messages", "add_generation_prompt"})
_OFF_LOOP = 2048  # longer texts are templated and tokenised in a thread

TextOrIds = str | list[int]


class Prompt(NamedTuple):
    token_ids: list[int]
    text: str | None  # None: it came as token ids


def check_prompts(value: Any, max_prompts: int, vocab_size: int) -> list[TextOrIds]:
    """The completion field `prompt` as a list of texts or token-id lists."""
    prompts: list[TextOrIds]
    if isinstance(value, str) or (
        isinstance(value, list) and value and isinstance(value[0], (int, float))
    ):
        prompts = [value]
    elif isinstance(value, list):
        prompts = value
    else:
        raise bad_request(
            "prompt must be a text, a list of texts, token ids or a list of token-id lists.",
            "prompt",
        )
    if not prompts:
        raise bad_request("prompt must not be empty.", "prompt")
    if len(prompts) > max_prompts:
        raise bad_request(
            f"prompt may hold {max_prompts} prompts (--max-prompts), got {len(prompts)}.", "prompt"
        )
    several = len(prompts) > 1
    for number, prompt in enumerate(prompts):
        _check_prompt(prompt, f"prompt[{number}]" if several else "prompt", vocab_size)
    return prompts


def _check_prompt(prompt: Any, name: str, vocab_size: int) -> None:
    if not isinstance(prompt, (str, list)):
        raise bad_request(f"{name} must be a text or a list of token ids.", "prompt")
    if not prompt:
        raise bad_request(f"{name} must not be empty.", "prompt")
    if isinstance(prompt, str):
        return
    for place, token_id in enumerate(prompt):
        if type(token_id) is not int:
            token_id = prompt[place] = as_int(token_id)
        if type(token_id) is not int or not 0 <= token_id < vocab_size:
            raise bad_request(f"{name}[{place}] must be a token id in [0, {vocab_size}).", "prompt")


async def tokenize(
    tokenizer: Tokenizer, prompt: TextOrIds, add_special_tokens: bool, param: str = "prompt"
) -> Prompt:
    if isinstance(prompt, list):
        return Prompt(prompt, None)
    if len(prompt) > _OFF_LOOP:
        ids = await asyncio.to_thread(tokenizer.encode, prompt, add_special_tokens, param=param)
    else:
        ids = tokenizer.encode(prompt, add_special_tokens, param=param)
    if not ids:
        raise bad_request(f"{param} has no tokens.", param)
    return Prompt(ids, prompt)


async def tokenize_texts(
    tokenizer: Tokenizer, texts: list[str], add_special_tokens: bool
) -> list[list[int]]:
    """Token ids of each text; a text may be empty."""
    if sum(map(len, texts)) > _OFF_LOOP:
        return await asyncio.to_thread(tokenizer.encode_batch, texts, add_special_tokens)
    return tokenizer.encode_batch(texts, add_special_tokens)


def check_messages(value: Any) -> list[dict[str, Any]]:
    """The field `messages` as the chat template wants it: contents are plain texts."""
    if not isinstance(value, list) or not value:
        raise bad_request("messages must be a list of at least one message.", "messages")
    return [_check_message(message, f"messages[{n}]") for n, message in enumerate(value)]


def _check_message(message: Any, path: str) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise bad_request(f"{path} must be an object.", path)
    role = message.get("role")
    if not isinstance(role, str):
        raise bad_request(f"{path}.role must be a text.", f"{path}.role")
    _check_kind(role, f"{path}.role", fields.ROLES)
    kept = fields.screen(message, fields.MESSAGE, path)
    name = kept.get("name")
    if name is not None and not isinstance(name, str):
        raise bad_request(f"{path}.name must be a text.", f"{path}.name")
    out: dict[str, Any] = {
        "role": "system" if role == "developer" else role,
        "content": _check_content(kept.get("content"), f"{path}.content"),
    }
    if name is not None:
        out["name"] = name
    return out


def _check_content(content: Any, path: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise bad_request(f"{path} must be a text or a list of text parts.", path)
    return "\n".join(_check_part(part, f"{path}[{n}]") for n, part in enumerate(content))


def _check_part(part: Any, path: str) -> str:
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise bad_request(f"{path} must be an object with a type.", path)
    _check_kind(part["type"], f"{path}.type", fields.CONTENT_TYPES)
    text = fields.screen(part, fields.CONTENT_PART, path).get("text")
    if not isinstance(text, str):
        raise bad_request(f"{path}.text must be a text.", f"{path}.text")
    return text


def _check_kind(value: str, path: str, table: dict[str, fields.Field]) -> None:
    known = table.get(value)
    if known is None:
        raise bad_request(
            f"{path} must be one of {', '.join(k for k, f in table.items() if not f.refused)}.",
            path,
        )
    if known.refused:
        raise bad_request(f"{path} {value} is not supported: {known.refused}.", path)


async def render_chat(tokenizer: Tokenizer, body: TemplateBody | TokenizeBody) -> str:
    """The conversation as the prompt's text; raises for a template's refusal."""
    messages = check_messages(body.messages)
    options: dict[str, Any] = dict(body.chat_template_kwargs or {})
    opens = True if body.add_generation_prompt is None else body.add_generation_prompt
    if body.continue_final_message:
        if body.add_generation_prompt:
            raise bad_request(
                "continue_final_message and add_generation_prompt exclude each other.",
                "continue_final_message",
            )
        if messages[-1]["role"] != "assistant":
            raise bad_request(
                "continue_final_message needs a last message of the assistant.",
                "continue_final_message",
            )
        opens = False
    for name in _TEMPLATE_ARGUMENTS & options.keys():
        raise bad_request(
            f"chat_template_kwargs must not hold {name}.", f"chat_template_kwargs.{name}"
        )

    def render() -> str:
        return tokenizer.apply_chat_template(messages, add_generation_prompt=opens, **options)

    small = sum(len(m["content"]) for m in messages) <= _OFF_LOOP
    text = render() if small and not options else await asyncio.to_thread(render)
    return _cut_after(text, messages[-1]["content"]) if body.continue_final_message else text


def _cut_after(text: str, content: str) -> str:
    """The rendered conversation up to the end of its last message's content."""
    for ending in (content, content.strip()):
        start = text.rfind(ending) if ending else -1
        if start >= 0:
            return text[: start + len(ending)]
    raise bad_request(
        "continue_final_message is not possible: the template changes the last message.",
        "continue_final_message",
    )
