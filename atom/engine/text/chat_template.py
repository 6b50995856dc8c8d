"""Chat templates: a model's Jinja program from messages to the prompt it was trained on.

The template comes with the model, so it is a stranger's program: it runs in Jinja's immutable
sandbox, and what it writes is bounded in size and time (a loop that writes nothing is bounded only
by the sandbox's limit on `range`). Messages must be plain data: dicts, lists, strings, numbers. The
language is the one that `transformers` offers, so that templates written for it render the same.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from atom.errors import ModelError, RequestError

MAX_RENDERED_CHARS = 64 * 2**20
MAX_RENDER_SECONDS = 20.0
# Given by the house; a request cannot set them.
RESERVED = frozenset({"messages", "add_generation_prompt", "raise_exception", "strftime_now"})


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's words for training; here it is its content."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike Jinja's own filter: no HTML escapes, and json.dumps' options."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, jinja2.ext.loopcontrols],
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


class ChatTemplate:
    """One compiled template. `variables` are the names that it reads and a request may set.

    `special_tokens` ("bos_token": "<s>", ...) are given to it. Raises `ModelError` if the source is
    not a template.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self.source = source
        self._special_tokens = dict(special_tokens)
        environment = _environment()
        try:
            tree = environment.parse(source)
            names = jinja2.meta.find_undeclared_variables(tree)
            self._template = environment.from_string(tree)
        except (jinja2.TemplateError, RecursionError) as error:
            line = getattr(error, "lineno", None)
            where = f" at line {line}" if line else ""
            reason = (getattr(error, "message", None) or str(error)).splitlines()[0]
            raise ModelError(f"the chat template is not valid Jinja{where}: {reason}") from None
        self.variables = frozenset(names - RESERVED - special_tokens.keys())

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """The prompt. Raises `RequestError` for a variable that the template does not read, and
        for whatever the template refuses."""
        for name in variables:
            if name not in self.variables:
                known = ", ".join(sorted(self.variables)) or "none"
                raise RequestError(
                    f"this model's chat template does not use {name!r}; it takes: {known}",
                    param=name if name in ("tools", "documents") else "chat_template_kwargs",
                )
        given = {
            "tools": None,  # always defined, as templates have come to expect
            "documents": None,
            **self._special_tokens,
            **variables,
            "messages": messages,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return self._bounded(given)
        except RequestError:
            raise
        except jinja2.TemplateError as error:
            raise _refused(error.message or type(error).__name__) from None
        except Exception as error:  # the template's own mistake with these messages
            raise _refused(f"{type(error).__name__}: {error}") from None

    def _bounded(self, given: dict[str, Any]) -> str:
        deadline = time.monotonic() + MAX_RENDER_SECONDS
        parts: list[str] = []
        size = 0
        for part in self._template.generate(given):
            parts.append(part)
            size += len(part)
            if size > MAX_RENDERED_CHARS or time.monotonic() > deadline:
                raise _refused(
                    f"it made {size} characters without ending; the limits are"
                    f" {MAX_RENDERED_CHARS} characters and {MAX_RENDER_SECONDS:g} s"
                )
        return "".join(parts)


def _refused(reason: str) -> RequestError:
    line = " ".join(reason.split())[:500]
    return RequestError(f"the model's chat template refuses the messages: {line}", param="messages")
