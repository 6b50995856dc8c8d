"""Chat templates: the same text as transformers', and a stranger's program kept within bounds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_tokenizer import save_byte_level, source

from atom.engine.text import chat_template
from atom.engine.text.chat_template import ChatTemplate
from atom.engine.text.tokenizer import Tokenizer, load_tokenizer
from atom.errors import ModelError, RequestError

USER = {"role": "user", "content": "What is 1 < 2 & 'x'?"}
CHATS: list[list[dict[str, Any]]] = [
    [USER],
    [{"role": "system", "content": "Be brief.\n"}, USER],
    [USER, {"role": "assistant", "content": "  Yes. "}, {"role": "user", "content": "日本 😀"}],
    [USER, {"role": "assistant", "content": ""}],
]
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"b": 1, "a": ["é", "<"]}}}

RICH = """
{#- a comment #}
{%- set ns = namespace(count=0) %}
{%- macro line(role, text) %}{{ "[" ~ role ~ "] " ~ text|trim }}{% endmacro %}
{%- if tools %}
TOOLS {{ tools | tojson }} {{ tools[0] | tojson(indent=2) }} {{ tools|tojson(sort_keys=true) }}
{%- endif %}
{%- if documents is not none %} DOCS {{ documents | length }}{% endif %}
{% for message in messages %}
    {% if message.role == 'system' %}{% continue %}{% endif %}
    {% set ns.count = ns.count + 1 %}
    {% if message.role == 'assistant' %}
        {% generation %}{{ line(message.role, message.content) }}{% endgeneration %}
    {% else %}
{{ line(message.role, message.content) }}
    {% endif %}
    {% if ns.count > 2 %}{% break %}{% endif %}
{% endfor %}
{{ bos_token }}{{ eos_token }} {{ ns.count }} {{ messages[::-1]|length }}
{%- if enable_thinking is defined and enable_thinking %} <think>{% endif %}
{%- if add_generation_prompt %}
GO:
{% endif %}
"""


@pytest.fixture
def both(tmp_path: Path) -> Any:
    """(ours, transformers') of one template."""

    def make(template: str | list[dict[str, str]]) -> tuple[Tokenizer, Any]:
        from transformers import AutoTokenizer

        path = save_byte_level(tmp_path, {"chat_template": template})
        return load_tokenizer(source(path)), AutoTokenizer.from_pretrained(str(path))

    return make


@pytest.mark.parametrize("messages", CHATS)
@pytest.mark.parametrize("opens", [True, False])
def test_embedded_agrees_with_transformers(
    embedded_tokenizer: Tokenizer,
    reference_tokenizer: Any,
    messages: list[dict[str, Any]],
    opens: bool,
) -> None:
    ours = embedded_tokenizer.apply_chat_template(messages, add_generation_prompt=opens)
    theirs = reference_tokenizer.apply_chat_template(
        messages, add_generation_prompt=opens, tokenize=False
    )
    assert ours == theirs
    ids = embedded_tokenizer.encode(ours, add_special_tokens=False)
    expected = reference_tokenizer.apply_chat_template(
        messages, add_generation_prompt=opens, tokenize=True, return_dict=False
    )
    assert ids == expected


@pytest.mark.parametrize("messages", CHATS)
@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"tools": [TOOL]},
        {"documents": [{"title": "t", "text": "x"}], "enable_thinking": True},
        {"enable_thinking": False, "add_generation_prompt": False},
    ],
)
def test_a_rich_template_agrees_with_transformers(
    both: Any, messages: list[dict[str, Any]], variables: dict[str, Any]
) -> None:
    ours, theirs = both(RICH)
    variables = {"add_generation_prompt": True, **variables}
    expected = theirs.apply_chat_template(messages, tokenize=False, **variables)
    assert ours.apply_chat_template(messages, **variables) == expected
    assert "[user]" in expected


def test_tool_use_template_is_chosen_by_tools(both: Any) -> None:
    ours, theirs = both(
        [
            {"name": "default", "template": "D{{ messages|length }}"},
            {"name": "tool_use", "template": "T{{ tools|length }}"},
        ]
    )
    assert ours.apply_chat_template([USER]) == "D1"
    assert ours.apply_chat_template([USER], tools=[TOOL]) == "T1"
    assert theirs.apply_chat_template([USER], tools=[TOOL], tokenize=False) == "T1"


def test_template_files(tmp_path: Path) -> None:
    path = save_byte_level(tmp_path, {"chat_template": "from the config"})
    (path / "chat_template.jinja").write_text("from the file")
    (path / "additional_chat_templates").mkdir()
    (path / "additional_chat_templates/tool_use.jinja").write_text("with tools {{ tools }}")
    made = load_tokenizer(source(path))
    assert made.apply_chat_template([]) == "from the file"
    assert made.apply_chat_template([], tools=[1]) == "with tools [1]"


def test_no_default(tmp_path: Path) -> None:
    templates = [{"name": "rag", "template": "x"}]
    made = load_tokenizer(source(save_byte_level(tmp_path, {"chat_template": templates})))
    with pytest.raises(RequestError, match="no default chat template, only rag"):
        made.apply_chat_template([USER])


def test_no_template(tmp_path: Path) -> None:
    made = load_tokenizer(source(save_byte_level(tmp_path)))
    assert not made.has_chat_template
    with pytest.raises(RequestError, match="--chat-template FILE") as caught:
        made.apply_chat_template([USER])
    assert caught.value.param == "messages"


def template(text: str) -> ChatTemplate:
    return ChatTemplate(text, {"bos_token": "<s>"})


def test_only_variables_that_the_template_reads() -> None:
    made = template("{{ bos_token }}{% if thinking %}T{% endif %}{{ tools }}{{ messages }}")
    assert made.variables == {"thinking", "tools"}
    assert made.render([], thinking=True, tools=None) == "<s>TNone[]"
    with pytest.raises(RequestError, match="does not use 'depth'; it takes: thinking, tools") as e:
        made.render([], depth=3)
    assert e.value.param == "chat_template_kwargs"
    with pytest.raises(RequestError) as e:
        made.render([], documents=[])
    assert e.value.param == "documents"
    for reserved in ("bos_token", "raise_exception", "strftime_now"):
        with pytest.raises(RequestError, match=f"does not use '{reserved}'"):
            made.render([], **{reserved: "x"})


@pytest.mark.parametrize(
    ("text", "messages", "says"),
    [
        ("{{ raise_exception('Roles must\\nalternate') }}", [], "messages: Roles must alternate"),
        ("{{ messages[0]['content'] + 'x' }}", [{"content": None}], "TypeError"),
        ("{{ messages[3].role.name }}", [USER], "undefined|no element"),
        ("{{ messages.pop() }}", [USER], "pop"),
        ("{{ ''.__class__.__mro__ }}", [], "unsafe"),
        ("{{ messages.__class__.__subclasses__() }}", [], "unsafe"),
        ("{% for i in range(10**9) %}x{% endfor %}", [], "[Rr]ange"),
        ("{{ 1 // 0 }}", [], "ZeroDivisionError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", [], "RecursionError"),
        ("{% include 'x' %}", [], "loader|include"),
    ],
)
def test_what_a_template_cannot_do(text: str, messages: list[dict[str, Any]], says: str) -> None:
    with pytest.raises(RequestError, match=says) as caught:
        template(text).render(messages)
    assert caught.value.param == "messages"
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


def test_what_it_writes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "MAX_RENDERED_CHARS", 1000)
    text = "{% for i in range(1000) %}{{ i }},{% endfor %}"
    with pytest.raises(RequestError, match="without ending; the limits are 1000 characters"):
        template(text).render([])
    assert template("{{ 'x' * 999 }}").render([]) == "x" * 999


def test_its_time_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "MAX_RENDER_SECONDS", -1.0)
    with pytest.raises(RequestError, match="without ending"):
        template("{{ messages }}").render([])


@pytest.mark.parametrize(
    "text", ["{% if %}", "{{ a", "{% for x in y %}", "{{ x | nothing }}", "{% generation %}"]
)
def test_what_is_not_a_template(text: str) -> None:
    with pytest.raises(ModelError, match="not valid Jinja") as caught:
        template("line 1\n" + text)
    assert "\n" not in str(caught.value)


def test_json_is_as_json_dumps_writes_it() -> None:
    value = {"b": "<é & 'x'>", "a": [1, None, True]}
    assert template("{{ messages[0]|tojson }}").render([value]) == json.dumps(
        value, ensure_ascii=False
    )


def test_time_of_day() -> None:
    assert template("{{ strftime_now('%%%Y')|length }}").render([]) == "5"


def test_messages_are_not_changed() -> None:
    messages = [dict(USER)]
    with pytest.raises(RequestError):
        template("{{ messages.append(1) }}").render(messages)
    with pytest.raises(RequestError):
        template("{{ messages[0].update(role='x') }}").render(messages)
    assert messages == [USER]
