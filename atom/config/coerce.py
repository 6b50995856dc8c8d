"""One raw value to one typed value within its limits. Knows no sources, only settings."""

from __future__ import annotations

import math
from typing import Any

from atom.config.fields import AUTO, Setting
from atom.errors import ConfigError

_TRUE = ("1", "true")
_FALSE = ("0", "false")


def coerce(setting: Setting, value: Any, where: str) -> Any:
    """A value of a recipe or of a Python caller, whose type must already be right.

    `where` is the subject of every error message: the flag, the variable, or file:line and key.
    """
    if value is None and setting.optional:
        return None
    if value == AUTO and setting.accepts_auto:
        return None
    if setting.many:
        items = value if isinstance(value, (list, tuple)) else (value,)
        return tuple(_one(setting, item, where) for item in items)
    return _one(setting, value, where)


def coerce_text(setting: Setting, text: str, where: str) -> Any:
    """A value of a flag or an environment variable; lists are comma-separated."""
    if text == AUTO and setting.accepts_auto:
        return None
    if setting.many:
        parts = (part.strip() for part in text.split(","))
        return tuple(_one(setting, _parse(setting, p, where), where) for p in parts if p)
    return _one(setting, _parse(setting, text, where), where)


def _parse(setting: Setting, text: str, where: str) -> Any:
    """Text to the setting's kind, or the text itself, which `_one` then refuses."""
    text = text.strip()
    if setting.kind is bool:
        lowered = text.lower()
        return True if lowered in _TRUE else False if lowered in _FALSE else text
    if setting.kind in (int, float):
        try:
            return setting.kind(text)
        except ValueError:
            return text
    return text


def _one(setting: Setting, value: Any, where: str) -> Any:
    if setting.loose and type(value) in (int, float):
        value = str(value)
    # TOML and JSON write 1 for 1.0; a bool is an int only to Python.
    if setting.kind is float and type(value) is int:
        value = float(value)
    if type(value) is not setting.kind:
        raise _refuse(setting, value, where, _expected(setting))
    if setting.choices and value not in setting.choices:
        raise _refuse(setting, value, where, f"one of {', '.join(setting.choices)}")
    if isinstance(value, (int, float)):
        _check_range(setting, value, where)
    if setting.kind is str and not value:
        raise _refuse(setting, value, where, "not empty")
    return value


def _check_range(setting: Setting, value: float, where: str) -> None:
    # Written so that nan fails each of them.
    if not math.isfinite(value):
        raise _refuse(setting, value, where, "a finite number")
    if setting.ge is not None and not value >= setting.ge:
        raise _refuse(setting, value, where, f"at least {setting.ge:g}")
    if setting.gt is not None and not value > setting.gt:
        raise _refuse(setting, value, where, f"more than {setting.gt:g}")
    if setting.le is not None and not value <= setting.le:
        raise _refuse(setting, value, where, f"at most {setting.le:g}")


def _expected(setting: Setting) -> str:
    if setting.kind is bool:
        return "true or false (in text also 1 or 0)"
    article = {int: "an integer", float: "a number", str: "text"}[setting.kind]
    return f"{article}, or a list of them" if setting.many else article


def _refuse(setting: Setting, value: Any, where: str, expected: str) -> ConfigError:
    shown = "a secret" if setting.secret else repr(value)
    auto = f" or {AUTO}" if setting.accepts_auto else ""
    return ConfigError(f"{where} must be {expected}{auto}, got {shown}")
