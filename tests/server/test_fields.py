"""Fail closed: every field that OpenAI's client can send is known, and does what its table says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_type_hints

import openai.types.chat as chat_types
import pytest
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_params
from pydantic import BaseModel
from serverkit import Served, error_of

from atom.server import fields
from atom.server.protocol import (
    TABLES,
    ChatBody,
    CompletionBody,
    StreamOptions,
    TokenizeBody,
)

MESSAGES = [{"role": "user", "content": "Hello"}]
BODIES: dict[type[BaseModel], tuple[str, dict[str, Any]]] = {
    CompletionBody: ("/v1/completions", {"prompt": "abc", "max_tokens": 1}),
    ChatBody: ("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 1}),
    TokenizeBody: ("/tokenize", {"prompt": "abc"}),
}


def openai_fields(module: Any) -> set[str]:
    names: set[str] = set()
    for kind in ("NonStreaming", "Streaming"):
        names |= set(get_type_hints(getattr(module, f"CompletionCreateParams{kind}")))
    return names


@pytest.mark.parametrize(
    ("known", "table"),
    [
        (openai_fields(completion_create_params), fields.COMPLETIONS),
        (openai_fields(chat_params), fields.CHAT),
        (
            set(get_type_hints(chat_types.ChatCompletionStreamOptionsParam)),
            fields.STREAM_OPTIONS,
        ),
        (set(get_type_hints(chat_types.ChatCompletionContentPartTextParam)), fields.CONTENT_PART),
    ],
    ids=["completions", "chat", "stream_options", "content part"],
)
def test_no_field_of_openai_is_unknown(known: set[str], table: Mapping[str, Any]) -> None:
    assert known
    assert known - set(table) == set()


def test_every_message_type_of_openai_is_known() -> None:
    roles: set[str] = set()
    for name in ("Developer", "System", "User", "Assistant", "Tool", "Function"):
        hints = get_type_hints(getattr(chat_types, f"ChatCompletion{name}MessageParam"))
        roles |= set(hints["role"].__args__)
        assert set(hints) - set(fields.MESSAGE) == set(), name
    assert roles == set(fields.ROLES)


def test_every_content_type_of_openai_is_known() -> None:
    kinds: set[str] = set()
    for part in chat_types.ChatCompletionContentPartParam.__args__:  # type: ignore[attr-defined]
        kinds |= set(get_type_hints(part)["type"].__args__)
    assert len(kinds) >= 4
    assert kinds - set(fields.CONTENT_TYPES) == set()


@pytest.mark.parametrize("model", TABLES, ids=lambda m: m.__name__)
def test_supported_fields_are_those_of_the_model(model: type[BaseModel]) -> None:
    supported = {name for name, field in TABLES[model].items() if not field.refused}
    assert supported == set(model.model_fields)


def test_supported_stream_options_are_those_of_the_model() -> None:
    supported = {name for name, field in fields.STREAM_OPTIONS.items() if not field.refused}
    assert supported == set(StreamOptions.model_fields)


def refused_fields() -> list[Any]:
    return [
        pytest.param(path, body, name, field, id=f"{path} {name}")
        for model, (path, body) in BODIES.items()
        for name, field in TABLES[model].items()
        if field.refused
    ]


@pytest.mark.parametrize(("path", "body", "name", "field"), refused_fields())
def test_a_refused_field_is_named_and_its_neutral_values_pass(
    served: Served, path: str, body: dict[str, Any], name: str, field: fields.Field
) -> None:
    with served.http() as http:
        for value in (None, *field.neutral):
            assert http.post(path, json={**body, name: value}).status_code == 200, value
        response = http.post(path, json={**body, name: {"something": ["else"]}})
    assert response.status_code == 400
    error = error_of(response)
    assert error["param"] == name
    assert error["code"] == "unsupported_parameter"
    assert field.refused in error["message"]


@pytest.mark.parametrize("model", BODIES, ids=lambda m: m.__name__)
def test_null_means_not_given(served: Served, model: type[BaseModel]) -> None:
    path, body = BODIES[model]
    nulls = {name: None for name in TABLES[model] if name not in body}
    assert served.post(path, {**nulls, **body}).status_code == 200


@pytest.mark.parametrize("model", BODIES, ids=lambda m: m.__name__)
def test_an_unknown_field_is_named(served: Served, model: type[BaseModel]) -> None:
    path, body = BODIES[model]
    response = served.post(path, {**body, "modle": "x"})
    assert response.status_code == 400
    error = error_of(response)
    assert error["message"] == "Unknown field modle. Did you mean model?"
    assert error["param"] == "modle"


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"include_usages": True}, "stream_options.include_usages"),
        ({"include_obfuscation": True}, "stream_options.include_obfuscation"),
        ({"include_usage": 1}, "stream_options.include_usage"),
    ],
)
def test_stream_options_are_checked(served: Served, options: dict[str, Any], param: str) -> None:
    response = served.post(
        "/v1/completions", {"prompt": "a", "stream": True, "stream_options": options}
    )
    assert response.status_code == 400
    assert error_of(response)["param"] == param


def test_fields_that_need_others(served: Served) -> None:
    for body, param in (
        ({"prompt": "a", "stream_options": {"include_usage": True}}, "stream_options"),
        ({"prompt": "a", "prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ({"prompt": "a", "n": 2, "best_of": 3}, "best_of"),
        ({"prompt": "a", "max_tokens": 1, "min_tokens": 2}, "min_tokens"),
        ({"prompt": "a", "min_tokens": 17}, "min_tokens"),  # beyond the default of 16
    ):
        response = served.post("/v1/completions", body)
        assert response.status_code == 400, body
        assert error_of(response)["param"] == param
    for body, param in (
        ({"top_logprobs": 1}, "top_logprobs"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
        ({"continue_final_message": True}, "continue_final_message"),
    ):
        response = served.post("/v1/chat/completions", {"messages": MESSAGES, **body})
        assert response.status_code == 400, body
        assert error_of(response)["param"] == param
    assert served.post("/v1/completions", {"prompt": "a", "n": 2, "best_of": 2}).status_code == 200


def chat_prompt(served: Served, messages: list[Any], **extra: Any) -> str:
    body = {"messages": messages, "max_tokens": 1, **extra}
    response = served.post("/v1/chat/completions", body)
    assert response.status_code == 200, response.text
    ids = served.client.requests[-1].prompt_token_ids
    with served.http() as http:
        return http.post("/detokenize", json={"tokens": ids}).json()["prompt"]


def test_messages_reach_the_template(served: Served) -> None:
    messages = [
        {"role": "developer", "content": "Be brief."},
        {
            "role": "user",
            "name": "Ann",
            "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}],
        },
    ]
    opened = "[system]Be brief.<end>[user/Ann]one\ntwo<end>"
    assert chat_prompt(served, messages) == opened + "[assistant]"
    assert chat_prompt(served, messages, add_generation_prompt=False) == opened
    kwargs = {"chat_template_kwargs": {"shout": True}}
    assert chat_prompt(served, messages, **kwargs) == opened + "[assistant]!"
    assert chat_prompt(served, messages, add_special_tokens=True).startswith("<bos>[system]")


def test_continue_final_message(served: Served) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Sure, the"}]
    prompt = chat_prompt(served, messages, continue_final_message=True)
    assert prompt == "[user]Hi<end>[assistant]Sure, the"


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ("Hello", "messages"),
        (["Hello"], "messages[0]"),
        ([{"content": "x"}], "messages[0].role"),
        ([{"role": "robot", "content": "x"}], "messages[0].role"),
        ([{"role": "tool", "content": "x"}], "messages[0].role"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": None}], "messages[0].content"),
        ([{"role": "user", "content": []}], "messages[0].content"),
        ([{"role": "user", "content": "x", "nmae": "y"}], "messages[0].nmae"),
        ([{"role": "user", "content": "x", "name": 3}], "messages[0].name"),
        ([{"role": "assistant", "content": "x", "tool_calls": [1]}], "messages[0].tool_calls"),
        ([*MESSAGES, {"role": "user", "content": ["x"]}], "messages[1].content[0]"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
            "messages[0].content[0].type",
        ),
        (
            [{"role": "user", "content": [{"type": "text"}]}],
            "messages[0].content[0].text",
        ),
        (
            [{"role": "user", "content": [{"type": "text", "text": "x", "more": 1}]}],
            "messages[0].content[0].more",
        ),
    ],
)
def test_wrong_messages_are_named(served: Served, messages: Any, param: str) -> None:
    response = served.post("/v1/chat/completions", {"messages": messages})
    assert response.status_code == 400
    assert error_of(response)["param"] == param


@pytest.mark.parametrize("name", ["messages", "add_generation_prompt", "self", "tokenize", "x"])
def test_template_options_are_allow_listed(served: Served, name: str) -> None:
    response = served.post(
        "/v1/chat/completions", {"messages": MESSAGES, "chat_template_kwargs": {name: 1}}
    )
    assert response.status_code == 400
    assert error_of(response)["param"].startswith("chat_template_kwargs")


def test_tokenize_and_detokenize(served: Served) -> None:
    with served.http() as http:
        answer = http.post("/tokenize", json={"prompt": "añ", "return_token_strs": True}).json()
        assert answer == {
            "count": 4,
            "max_model_len": 2048,
            "tokens": [258, 97, 0xC3, 0xB1],
            "token_strs": ["<bos>", "a", "\ufffd", "\ufffd"],
        }
        plain = http.post("/tokenize", json={"prompt": "a", "add_special_tokens": False}).json()
        assert plain["tokens"] == [97]
        assert plain["token_strs"] is None
        chat = http.post("/tokenize", json={"messages": MESSAGES}).json()
        text = http.post("/detokenize", json={"tokens": chat["tokens"]}).json()["prompt"]
        assert text == "[user]Hello<end>[assistant]"
        for body, param in (
            ({}, "prompt"),
            ({"prompt": "a", "messages": MESSAGES}, "prompt"),
            ({"prompt": "a", "add_generation_prompt": True}, "add_generation_prompt"),
        ):
            response = http.post("/tokenize", json=body)
            assert response.status_code == 400
            assert error_of(response)["param"] == param
        response = http.post("/detokenize", json={"tokens": [300]})
        assert response.status_code == 400
        assert error_of(response)["param"] == "tokens"
