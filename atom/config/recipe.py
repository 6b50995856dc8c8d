"""Reads one recipe: TOML to (setting, value, place). Says where in the file a mistake is."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from atom.config.fields import (
    NAMED_TABLES,
    TOOLS,
    Setting,
    every_setting,
    nearest,
    sections,
    settings,
    table_settings,
    tool_settings,
)
from atom.config.support import LATER_SECTIONS
from atom.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_RECIPE_BYTES = 2**20


class RecipeValue(NamedTuple):
    """One key of a recipe. `where` is path:line; `table` the user's name of [eval.NAME], or ""."""

    setting: Setting
    value: Any
    where: str
    table: str = ""


def read_recipe(path: Path) -> Iterator[RecipeValue]:
    """The settings of a recipe in order, tools' too; raises `ConfigError` at the first mistake."""
    text = _read(path)
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    for section, table in tree.items():
        where = _place(path, text, section, None)
        if section in LATER_SECTIONS:
            raise ConfigError(
                f"{where}: [{section}] is not in this version: {LATER_SECTIONS[section]}"
            )
        if section not in sections() and section not in TOOLS:
            raise ConfigError(f"{where}: {_unknown_section(section)}")
        if not isinstance(table, dict):
            raise ConfigError(f"{where}: {section} is a section: write [{section}] and keys below")
        for key, value in table.items():
            place = _place(path, text, section, key)
            setting = (tool_settings(section) if section in TOOLS else settings()).get(key)
            if section in NAMED_TABLES and setting is None and isinstance(value, dict):
                yield from _named_table(path, text, section, key, value)
                continue
            if setting is None or setting.section != section:
                raise ConfigError(f"{place}: {_unknown_key(section, key)}")
            yield RecipeValue(setting, value, place)


def _named_table(
    path: Path, text: str, section: str, name: str, table: dict[str, Any]
) -> Iterator[RecipeValue]:
    """The keys of [eval.gsm8k]; a table without keys is one, too: it names the task."""
    known = table_settings(section)
    for key, value in table.items():
        place = _place(path, text, f"{section}.{name}", key)
        if key not in known:
            hint = nearest(key, known)
            if not hint and key in tool_settings(section):
                hint = f"; it belongs in [{section}]"
            raise ConfigError(
                f"{place}: unknown key {key} in [{section}.{name}]{hint}; there are "
                + ", ".join(known)
            )
        yield RecipeValue(known[key], value, place, name)


def named_tables(path: Path, section: str) -> dict[str, str]:
    """The names of a section's tables in the recipe's order, and where each stands."""
    text = _read(path)
    table = tomllib.loads(text).get(section, {})
    return {
        name: _place(path, text, f"{section}.{name}", None)
        for name, value in table.items()
        if isinstance(value, dict) and name not in tool_settings(section)
    }


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_RECIPE_BYTES:
            raise ConfigError(f"{path}: a recipe has at most {MAX_RECIPE_BYTES} bytes")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the recipe: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: a recipe is UTF-8 text: {error}") from error


def _unknown_section(section: str) -> str:
    if section in settings():
        owner = settings()[section].section
        return f"{section} belongs in [{owner}]"
    known = (*sections(), *TOOLS)
    return f"unknown section [{section}]{nearest(section, known)}; there are {', '.join(known)}"


def _unknown_key(section: str, key: str) -> str:
    if key in table_settings(section) and key not in tool_settings(section):
        word, _ = NAMED_TABLES[section]
        return f"{key} belongs in a table of its {word.lower()}: [{section}.{word}]"
    owners = [f"[{s.section}]" for s in every_setting() if s.name == key]
    if owners:
        return f"{key} belongs in {' or '.join(owners)}, not in [{section}]"
    here = [s.name for s in every_setting() if s.section == section]
    hint = nearest(key, here)
    if section not in TOOLS:
        hint = hint or nearest(key, settings())
    return f"unknown key {key} in [{section}]{hint}"


def _place(path: Path, text: str, section: str, key: str | None) -> str:
    """path:line of a section or key; only the path when the spelling is unusual."""
    line = _line_of(text, section, key)
    return f"{path}:{line}" if line else f"{path}"


def _line_of(text: str, section: str, key: str | None) -> int:
    """1-based line of `[section]` / `key =` / `section.key =`, or 0. Only for messages."""

    def quoted(name: str) -> str:
        """A dotted name, too: [ eval . "gsm8k" ]."""
        parts = (rf"[\"']?{re.escape(part)}[\"']?" for part in name.split("."))
        return r"\s*\.\s*".join(parts)

    header = re.compile(rf"\s*\[\s*{quoted(section)}\s*\]")
    if key is None:
        wanted, dotted = header, re.compile(rf"\s*{quoted(section)}\s*[.=]")
    else:
        wanted = re.compile(rf"\s*{quoted(key)}\s*=")
        dotted = re.compile(rf"\s*{quoted(section)}\s*\.\s*{quoted(key)}\s*=")
    inside, top = False, True
    for number, line in enumerate(text.splitlines(), start=1):
        if line.lstrip().startswith("["):
            inside, top = bool(header.match(line)), False
        if (wanted.match(line) and (inside or key is None)) or (top and dotted.match(line)):
            return number
    return 0
