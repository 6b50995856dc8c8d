"""The recipe format as a JSON Schema, for editors and scripts."""

from __future__ import annotations

from typing import Any

from atom.config.fields import (
    AUTO,
    NAMED_TABLES,
    TOOLS,
    Setting,
    sections,
    settings,
    table_settings,
    tool_settings,
)
from atom.config.support import LATER_SECTIONS

_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string"}


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a recipe."""
    properties: dict[str, Any] = {}
    for section, owner in sections().items():
        keys = {s.name: _property(s) for s in settings().values() if s.section == section}
        properties[section] = {
            "type": "object",
            "description": (owner.__doc__ or "").strip(),
            "properties": keys,
            "additionalProperties": False,
        }
    for tool, root in TOOLS.items():
        properties[tool] = {
            "type": "object",
            "description": (root.__doc__ or "").strip(),
            "properties": {s.name: _property(s) for s in tool_settings(tool).values()},
            "additionalProperties": _named_table(tool),
        }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "atom recipe",
        "description": "Reserved for later versions: " + ", ".join(LATER_SECTIONS),
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }


def _named_table(tool: str) -> Any:
    """The schema of tables that the user names; False where there are none."""
    if tool not in NAMED_TABLES:
        return False
    return {
        "type": "object",
        "description": (NAMED_TABLES[tool][1].__doc__ or "").strip(),
        "properties": {s.name: _property(s) for s in table_settings(tool).values()},
        "additionalProperties": False,
    }


def _property(setting: Setting) -> dict[str, Any]:
    value = _value(setting)
    if setting.many:
        value = {"anyOf": [value, {"type": "array", "items": value}]}
    if setting.accepts_auto:
        value = {"anyOf": [value, {"const": AUTO}]}
    shown = list(setting.default) if setting.many else setting.default
    # An optional setting is left out where TOML has no null, so None is no default to state.
    default = {} if shown is None else {"default": shown}
    return {"description": setting.doc, **value, **default}


def _value(setting: Setting) -> dict[str, Any]:
    value: dict[str, Any] = {"type": _TYPES[setting.kind]}
    if setting.loose:
        return {"type": ["string", "number"], "minLength": 1}
    if setting.kind is str:
        value["minLength"] = 1
    if setting.choices:
        value["enum"] = list(setting.choices)
    if setting.ge is not None:
        value["minimum"] = setting.ge
    if setting.gt is not None:
        value["exclusiveMinimum"] = setting.gt
    if setting.le is not None:
        value["maximum"] = setting.le
    return value
