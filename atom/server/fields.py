"""Every request field we know of, and what becomes of it. Fail closed: what is not here is a 400.

A field is supported, or refused with a reason. A refused field is still accepted with a neutral
value, one that asks for what happens anyway (`null` always is). Nothing is accepted and ignored.
A test walks these tables against the parameter types of OpenAI's own client.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

from atom.server.errors import ApiError, bad_request


class Field(NamedTuple):
    """`refused` is the reason, or "" for a supported field; `note` says what it does here."""

    note: str = ""
    refused: str = ""
    neutral: tuple[Any, ...] = ()

    def accepts(self, value: Any) -> bool:
        if not self.refused or value is None:
            return True
        return any(type(value) is type(n) and value == n for n in self.neutral)


def _yes(note: str) -> Field:
    return Field(note=note)


def _no(reason: str, *neutral: Any) -> Field:
    return Field(refused=reason, neutral=neutral)


_GRAMMAR = "constrained decoding is not available yet"
_TOOLS = "tool calling is not available yet"
_HOSTED = "it is a feature of OpenAI's hosted service"
_TEXT_ONLY = "this server reads and writes text only"

_SAMPLING: dict[str, Field] = {
    # OpenAI
    "model": _yes("A served name; absent: the served model"),
    "temperature": _yes("0 is greedy; default: the model's generation config, else 1"),
    "top_p": _yes("Nucleus sampling"),
    "presence_penalty": _yes("In [-2, 2]"),
    "frequency_penalty": _yes("In [-2, 2]"),
    "logit_bias": _yes("Token id -> bias in [-100, 100]"),
    "seed": _yes("Choice i uses seed + i; the same request gives the same tokens"),
    "stop": _yes("A string or a list of strings; matched on text"),
    "n": _yes("Number of choices"),
    "stream": _yes("Server-sent events"),
    "stream_options": _yes("See STREAM_OPTIONS"),
    "user": _yes("The end user's name: written to the access log"),
    # vLLM's
    "top_k": _yes("-1 or 0: all tokens"),
    "min_p": _yes("Relative probability floor"),
    "repetition_penalty": _yes("1 is none; counts the prompt, too"),
    "min_tokens": _yes("End tokens and stop strings count only after that many tokens"),
    "stop_token_ids": _yes("Token ids that end the output"),
    "ignore_eos": _yes("Go on after the end-of-sequence token"),
    "include_stop_str_in_output": _yes("Keep the stop string in the text"),
    "skip_special_tokens": _yes("Leave special tokens out of the text"),
    "prompt_logprobs": _yes("Log-probabilities of the prompt's tokens; not in a stream"),
    "cache_salt": _yes("Prefix cache entries are shared only with the same salt"),
    "add_special_tokens": _yes("Whether the tokenizer adds BOS and the like to text"),
    # known to vLLM or SGLang, refused here
    "use_beam_search": _no("beam search is not implemented", False),
    "length_penalty": _no("beam search is not implemented", 1, 1.0),
    "early_stopping": _no("beam search is not implemented", False),
    "guided_json": _no(_GRAMMAR),
    "guided_regex": _no(_GRAMMAR),
    "guided_choice": _no(_GRAMMAR, []),
    "guided_grammar": _no(_GRAMMAR),
    "guided_decoding_backend": _no(_GRAMMAR),
    "guided_whitespace_pattern": _no(_GRAMMAR),
    "structured_outputs": _no(_GRAMMAR),
    "structural_tag": _no(_GRAMMAR),
    "regex": _no(_GRAMMAR),
    "ebnf": _no(_GRAMMAR),
    "json_schema": _no(_GRAMMAR),
    "bad_words": _no("use logit_bias with -100 on the token ids", []),
    "allowed_token_ids": _no("use logit_bias on the token ids"),
    "logits_processors": _no("code from requests is never run", []),
    "truncate_prompt_tokens": _no("shorten the prompt yourself: a silent cut hides mistakes"),
    "spaces_between_special_tokens": _no("special tokens are joined as the tokenizer does", True),
    "detokenize": _no("the answer always holds text", True),
    "return_token_ids": _no("use logprobs, or /tokenize on the text", False),
    "return_tokens_as_token_ids": _no("tokens are always returned as strings", False),
    "priority": _no("requests are served in order of arrival", 0),
    "request_id": _no("send the header X-Request-Id"),
    "kv_transfer_params": _no("prefill and decode run in the same engine"),
    "vllm_xargs": _no("it is specific to vLLM"),
    "lora_path": _no("adapters are not available"),
    "prompt_embeds": _no("tensors from clients are never read"),
    "thinking_token_budget": _no("thinking is not told apart from the answer yet"),
}

COMPLETIONS: dict[str, Field] = {
    **_SAMPLING,
    "prompt": _yes("Text, list of texts, token ids, or list of token-id lists"),
    "max_tokens": _yes("Default 16"),
    "logprobs": _yes("Number of alternatives beside each sampled token"),
    "echo": _yes("The text starts with the prompt; with logprobs, so do they"),
    "best_of": _yes("Only equal to n: there is no reranking"),
    "logprobs_start": _yes(
        "With echo and logprobs, or prompt_logprobs: tokens of the prompt before this one get null"
        " and may come from the prefix cache; one number, or one for each prompt"
    ),
    "suffix": _no("filling in the middle is not implemented", ""),
    "response_format": _no(_GRAMMAR, {"type": "text"}),
}

CHAT: dict[str, Field] = {
    **_SAMPLING,
    "messages": _yes("See MESSAGE"),
    "max_tokens": _yes("Older name of max_completion_tokens"),
    "max_completion_tokens": _yes("Default: what the context holds, or --default-max-tokens"),
    "logprobs": _yes("Whether log-probabilities are returned"),
    "top_logprobs": _yes("Number of likeliest tokens at each position; needs logprobs"),
    "add_generation_prompt": _yes("Whether the template opens the assistant's turn"),
    "continue_final_message": _yes("Go on with the last message instead of opening a turn"),
    "chat_template_kwargs": _yes("Switches of the model's template, from an allow-list"),
    "safety_identifier": _yes("The end user's name: written to the access log"),
    "prompt_cache_key": _yes("A routing hint, met by having one cache; to separate: cache_salt"),
    "tools": _no(_TOOLS, []),
    "tool_choice": _no(_TOOLS, "none", "auto"),
    "parallel_tool_calls": _no(_TOOLS, True, False),
    "functions": _no(_TOOLS, []),
    "function_call": _no(_TOOLS, "none", "auto"),
    "response_format": _no(_GRAMMAR, {"type": "text"}),
    "modalities": _no(_TEXT_ONLY, ["text"]),
    "audio": _no(_TEXT_ONLY),
    "prediction": _no("predicted outputs are not implemented"),
    "reasoning_effort": _no("thinking is not told apart from the answer yet", "none"),
    "verbosity": _no("the model has no such control", "medium"),
    "metadata": _no("nothing is stored", {}),
    "store": _no("nothing is stored", False),
    "service_tier": _no("there is one tier", "auto", "default"),
    "prompt_cache_options": _no(_HOSTED, {"mode": "implicit"}, {}),
    "prompt_cache_retention": _no(_HOSTED, "in_memory"),
    "moderation": _no(_HOSTED),
    "web_search_options": _no(_HOSTED),
    "best_of": _no("it belongs to /v1/completions", 1),
    "echo": _no("it belongs to /v1/completions", False),
    "logprobs_start": _no("it belongs to /v1/completions", 0),
    "prompt": _no("it belongs to /v1/completions; send messages"),
    "chat_template": _no("templates from requests are never run; the operator sets one"),
    "documents": _no("put them into the messages", []),
    "mm_processor_kwargs": _no(_TEXT_ONLY),
    "media_io_kwargs": _no(_TEXT_ONLY),
    "include_reasoning": _no("thinking is not told apart from the answer yet", True),
    "separate_reasoning": _no("thinking is not told apart from the answer yet", False),
    "thinking": _no("pass the template's own switch in chat_template_kwargs"),
}

STREAM_OPTIONS: dict[str, Field] = {
    "include_usage": _yes("A last chunk holds the usage of the whole request"),
    "continuous_usage_stats": _yes("Every chunk holds the usage so far"),
    "include_obfuscation": _no("chunks are not padded", False),
}

MESSAGE: dict[str, Field] = {
    "role": _yes("system, developer (shown to the template as system), user or assistant"),
    "content": _yes("Text, or a list of text parts, which are joined by line breaks"),
    "name": _yes("Given to the template"),
    "tool_calls": _no(_TOOLS, []),
    "tool_call_id": _no(_TOOLS),
    "function_call": _no(_TOOLS),
    "refusal": _no("put it into content"),
    "audio": _no(_TEXT_ONLY),
    "reasoning_content": _no("thinking is not told apart from the answer yet", ""),
    "reasoning": _no("thinking is not told apart from the answer yet", ""),
}

CONTENT_PART: dict[str, Field] = {
    "type": _yes("text"),
    "text": _yes("The text"),
    "prompt_cache_breakpoint": _no(_HOSTED),
}

ROLES: dict[str, Field] = {
    "system": _yes(""),
    "developer": _yes("Shown to the template as system"),
    "user": _yes(""),
    "assistant": _yes(""),
    "tool": _no(_TOOLS),
    "function": _no(_TOOLS),
}

CONTENT_TYPES: dict[str, Field] = {
    "text": _yes(""),
    "image_url": _no(_TEXT_ONLY),
    "input_audio": _no(_TEXT_ONLY),
    "file": _no(_TEXT_ONLY),
    "video_url": _no(_TEXT_ONLY),
    "audio_url": _no(_TEXT_ONLY),
    "refusal": _no("put it into a text part"),
}

TOKENIZE: dict[str, Field] = {
    "model": _yes("A served name; absent: the served model"),
    "prompt": _yes("Text, or a list of texts: then `tokens` and `count` are lists, too"),
    "messages": _yes("A conversation, put through the chat template; instead of prompt"),
    "add_special_tokens": _yes("Default: true for prompt, false for messages"),
    "add_generation_prompt": _yes("With messages"),
    "continue_final_message": _yes("With messages"),
    "chat_template_kwargs": _yes("With messages"),
    "return_token_strs": _yes("Also return each token as a string"),
    "tools": _no(_TOOLS, []),
    "chat_template": _no("templates from requests are never run; the operator sets one"),
    "mm_processor_kwargs": _no(_TEXT_ONLY),
}

DETOKENIZE: dict[str, Field] = {
    "model": _yes("A served name; absent: the served model"),
    "tokens": _yes("Token ids"),
    "skip_special_tokens": _yes("Default: false"),
}


def screen(body: Mapping[str, Any], table: Mapping[str, Field], where: str = "") -> dict[str, Any]:
    """`body` without refused fields; raises `ApiError` for what is unknown or not neutral."""
    kept: dict[str, Any] = {}
    for name, value in body.items():
        path = f"{where}.{name}" if where else name
        field = table.get(name)
        if field is None:
            raise unknown_field(path, name, table)
        if not field.accepts(value):
            raise bad_request(
                f"{path} is not supported: {field.refused}{_only(field)}.",
                path,
                "unsupported_parameter",
            )
        if not field.refused:
            kept[name] = value
    return kept


def unknown_field(path: str, name: str, table: Mapping[str, Field]) -> ApiError:
    supported = [known for known, field in table.items() if not field.refused]
    near = difflib.get_close_matches(name[:64], supported, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    return bad_request(
        f"Unknown field {_shorten(path)}.{hint}", _shorten(path), "unknown_parameter"
    )


def _shorten(text: str, limit: int = 100) -> str:
    return text if len(text) <= limit else text[:limit] + "..."


def _only(field: Field) -> str:
    """The neutral values, as a way out for the caller."""
    shown = [_as_json(value) for value in field.neutral]
    return f" (accepted: {', '.join(shown)})" if shown else ""


def _as_json(value: Any) -> str:
    return orjson.dumps(value).decode()
