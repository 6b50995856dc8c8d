"""The OpenAPI document: request schemas from the models and the field tables, answers, errors."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from atom._version import __version__
from atom.server.answers import ANSWERS, ErrorAnswer, schema_of
from atom.server.protocol import ID_FORMAT, TABLES
from atom.server.state import ServerState

_ERRORS: dict[int, str] = {
    400: "A field is wrong; `param` names it",
    401: "No valid API key",
    404: "No such model or route",
    405: "The route has other methods",
    409: "A profile is running, or none is",
    413: "The body is too large",
    415: "The body is not declared as JSON",
    429: "The queue is full; see Retry-After",
    431: "The request's head is too large",
    500: "A bug of ours; the message holds the request id",
    503: "Starting, draining or dead",
    504: "The deadline has passed",
}
_STATUS_ERRORS = (401, 405, 503)


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _responses(codes: tuple[int, ...]) -> dict[int | str, dict[str, Any]]:
    content = {"application/json": {"schema": _ref("ErrorAnswer")}}
    return {code: {"description": _ERRORS[code], "content": content} for code in codes}


def _route(
    answers: dict[str, Any], errors: tuple[int, ...], body: type[BaseModel] | None
) -> dict[str, Any]:
    """Keyword arguments of FastAPI's route decorators. Its own validation is not used."""
    responses = _responses(errors)
    responses[200] = {"description": "Success", "content": answers}
    extra: dict[str, Any] = {}
    if body is not None:
        schema = {"application/json": {"schema": _ref(body.__name__)}}
        extra["requestBody"] = {"required": True, "content": schema}
    return {"responses": responses, "openapi_extra": extra, "response_model": None}


def plain(name: str, body: type[BaseModel] | None = None) -> dict[str, Any]:
    """A route that answers with JSON."""
    answer = {"application/json": {"schema": _ref(ANSWERS[name].__name__)}}
    if body is not None:
        return _route(answer, (400, 401, 404, 405, 413, 415, 431, 500, 503), body)
    return _route(answer, (*_STATUS_ERRORS, 404) if name == "model" else _STATUS_ERRORS, None)


def generation(name: str, body: type[BaseModel]) -> dict[str, Any]:
    """A route that answers with JSON or with server-sent events."""
    answer = {
        "application/json": {"schema": _ref(ANSWERS[name].__name__)},
        "text/event-stream": {},  # the body is text, its events are chunks; see OpenAI
    }
    return _route(answer, tuple(code for code in _ERRORS if code != 409), body)


def profile(name: str) -> dict[str, Any]:
    """A route without a body; 404 where the profiler is off."""
    answer = {"application/json": {"schema": _ref(ANSWERS[name].__name__)}}
    return _route(answer, (401, 404, 405, 409, 500, 503), None)


def metrics() -> dict[str, Any]:
    return _route({"text/plain": {"schema": {"type": "string"}}}, (401, 405), None)


def _body_schema(model: type[BaseModel], state: ServerState) -> dict[str, Any]:
    """The model's schema as this server takes it: its model, vocabulary and caps; and the refused
    fields, which take neutral values only."""
    schema = deepcopy(schema_of(model))  # parts are shared with `protocol`
    properties = schema["properties"]
    _set_token_range(schema, state.tokenizer.vocab_size)
    door = state.config.server
    for name, limits in {
        "model": {"enum": list(state.names)},
        "n": {"maximum": door.max_n},
        "logprobs": {"maximum": door.max_logprobs},
        "top_logprobs": {"maximum": door.max_logprobs},
        "prompt_logprobs": {"maximum": door.max_logprobs},
    }.items():
        for branch in properties.get(name, {}).get("anyOf", ()):
            if branch["type"] in ("integer", "string"):
                branch.update(limits)
    for name, field in TABLES[model].items():
        if field.refused:
            values = [None, *field.neutral]
            properties[name] = {"enum": values, "description": f"Not supported: {field.refused}"}
        elif field.note:
            properties[name] = {**properties[name], "description": field.note}
    return schema


def _set_token_range(schema: Any, vocab_size: int) -> None:
    """The largest token id, wherever one stands in the schema."""
    if isinstance(schema, dict):
        if schema.get("format") == ID_FORMAT:
            schema["maximum"] = vocab_size - 1
        for value in schema.values():
            _set_token_range(value, vocab_size)
    elif isinstance(schema, list):
        for value in schema:
            _set_token_range(value, vocab_size)


def install(app: FastAPI, state: ServerState) -> None:
    """Makes `app.openapi()` answer with the whole document."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            found = get_openapi(title="atom", version=__version__, routes=app.routes)
            components = found.setdefault("components", {}).setdefault("schemas", {})
            schemas = {model.__name__: _body_schema(model, state) for model in TABLES}
            shapes: list[type[BaseModel]] = [*ANSWERS.values(), ErrorAnswer]
            schemas.update((shape.__name__, schema_of(shape)) for shape in shapes)
            for name, schema in schemas.items():
                components.update(schema.pop("$defs", {}))
                components[name] = schema
            app.openapi_schema = found
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]
