"""Recipe, environment and flags to one frozen, validated tree that knows its sources."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atom.config.checks import cross_check
from atom.config.coerce import coerce, coerce_text
from atom.config.environment import read_environment
from atom.config.fields import (
    NAMED_TABLES,
    TOOLS,
    Setting,
    flag_name,
    nearest,
    sections,
    settings,
    tool_settings,
)
from atom.config.recipe import named_tables, read_recipe
from atom.config.schema import Config
from atom.config.support import refuse_unsupported
from atom.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Source:
    """Where a value came from: `kind` is default, recipe, environment, flag or argument."""

    kind: str
    where: str = ""

    def __str__(self) -> str:
        return self.where or self.kind

    def subject(self, name: str) -> str:
        """What the user wrote, to open an error message with."""
        return f"{self.where}: {name}" if self.kind == "recipe" else self.where


DEFAULT = Source("default")


@dataclass(frozen=True, slots=True)
class Resolved:
    """The tree and, by setting name, where each value came from."""

    config: Config
    sources: Mapping[str, Source]


@dataclass(frozen=True, slots=True)
class ResolvedTool:
    """The tree of one of `TOOLS` and, by setting name, where each value came from.

    `tables`: the recipe's named tables in its order ([eval.gsm8k] -> "gsm8k" -> `EvalTask`), whose
    values' sources are under "gsm8k.threshold", and the table's own under "gsm8k.".
    """

    config: Any
    sources: Mapping[str, Source]
    tool: str
    tables: Mapping[str, Any] = field(default_factory=dict)

    def where(self, name: str) -> str:
        """What the user wrote (or the key, for a default), to open an error message with."""
        if name in self.sources:
            return self.sources[name].subject(name.rpartition(".")[2])
        return tool_settings(self.tool)[name].flag


def resolve(
    recipe: Path | None = None,
    env: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> Config:
    """The tree of recipe < environment < flags; raises `ConfigError` in one line.

    `env` is a whole environment, of which ATOM_* is read. `flags` maps setting names to values:
    text as typed on a command line, a tuple or list of such, or values of the right type; None
    means not given.
    """
    return resolve_with_sources(recipe, env, flags).config


def resolve_arguments(arguments: Mapping[str, Any], env: Mapping[str, str] | None = None) -> Config:
    """The tree for a Python caller: like flags, but messages spell the names as given."""
    values: dict[str, Any] = {}
    sources: dict[str, Source] = {}
    _take_environment(env or {}, values, sources)
    _take_named(arguments, values, sources, Source("argument"))
    return _build(values, sources).config


def resolve_with_sources(
    recipe: Path | None = None,
    env: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> Resolved:
    """Like `resolve`, with the source of each value that is not the default."""
    values: dict[str, Any] = {}
    sources: dict[str, Source] = {}
    _take_recipe(recipe, values, sources)
    _take_environment(env or {}, values, sources)
    _take_named(flags or {}, values, sources, Source("flag"))
    return _build(values, sources)


def resolve_tool(
    tool: str,
    recipe: Path | None = None,
    env: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> ResolvedTool:
    """The tree of a tool by the same rules: its section of the recipe < ATOM_<TOOL>_* < flags.

    The rest of the recipe and of the environment is checked all the same.
    """
    values: dict[str, Any] = {}
    sources: dict[str, Source] = {}
    _take_recipe(recipe, values, sources, tool)
    _take_environment(env or {}, values, sources, tool)
    _take_named(flags or {}, values, sources, Source("flag"), tool)
    known = tool_settings(tool)
    parts = {
        group: owner(**{n: value for n, value in values.items() if known[n].group == group})
        for group, owner in typing.get_type_hints(TOOLS[tool]).items()
    }
    return ResolvedTool(TOOLS[tool](**parts), sources, tool, _take_tables(recipe, sources, tool))


def _take_tables(recipe: Path | None, sources: dict[str, Source], tool: str) -> dict[str, Any]:
    """The tool's named tables, as dataclasses; their values' sources are added."""
    if recipe is None or tool not in NAMED_TABLES:
        return {}
    found: dict[str, dict[str, Any]] = {}
    for name, place in named_tables(recipe, tool).items():
        found[name] = {}
        sources[f"{name}."] = Source("recipe", place)
    for setting, raw, where, table in read_recipe(recipe):
        if table and setting.tool == tool:
            source = Source("recipe", where)
            found[table][setting.name] = coerce(setting, raw, source.subject(setting.name))
            sources[f"{table}.{setting.name}"] = source
    _, owner = NAMED_TABLES[tool]
    return {name: owner(**values) for name, values in found.items()}


def _take_recipe(
    recipe: Path | None, values: dict[str, Any], sources: dict[str, Source], tool: str = ""
) -> None:
    if recipe is None:
        return
    for setting, raw, where, table in read_recipe(recipe):
        source = Source("recipe", where)
        value = coerce(setting, raw, source.subject(setting.name))
        if setting.tool == tool and not table:
            values[setting.name] = value
            sources[setting.name] = source


def _take_environment(
    env: Mapping[str, str], values: dict[str, Any], sources: dict[str, Source], tool: str = ""
) -> None:
    for setting, value, variable in read_environment(env):
        if setting.tool != tool:
            continue
        values[setting.name] = value
        sources[setting.name] = Source("environment", variable)


def _take_named(
    given: Mapping[str, Any],
    values: dict[str, Any],
    sources: dict[str, Source],
    source: Source,
    tool: str = "",
) -> None:
    known = tool_settings(tool) if tool else settings()
    for name, raw in given.items():
        if raw is None:
            continue
        where = flag_name(name) if source.kind == "flag" else name
        setting = known.get(name)
        if setting is None:
            raise ConfigError(f"{where}: unknown setting{nearest(name, known)}")
        values[name] = _coerce_named(setting, raw, where)
        sources[name] = Source(source.kind, where)


def _coerce_named(setting: Setting, raw: Any, where: str) -> Any:
    if isinstance(raw, str):
        return coerce_text(setting, raw, where)
    if setting.many and isinstance(raw, (list, tuple)) and all(isinstance(r, str) for r in raw):
        return tuple(item for text in raw for item in coerce_text(setting, text, where))
    return coerce(setting, raw, where)


def _build(values: Mapping[str, Any], sources: Mapping[str, Source]) -> Resolved:
    parts = {
        section: owner(
            **{name: value for name, value in values.items() if settings()[name].section == section}
        )
        for section, owner in sections().items()
    }
    config = Config(**parts)

    def where(name: str) -> str:
        return sources[name].subject(name) if name in sources else settings()[name].key

    config = cross_check(config, where)
    refuse_unsupported(config, where)
    return Resolved(config, sources)
