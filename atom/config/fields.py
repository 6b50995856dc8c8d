"""The schema as a flat table: one `Setting` per key, found by name.

Recipe keys, flags and environment variables are all spellings of these names, so a name is unique
over all sections of the server's tree. A tool (`atom bench`) has one section and a table of its
own: its names may be the server's too, and its variables are ATOM_<TOOL>_<NAME>. A tool may have
tables below its section that the user names ([eval.gsm8k]); they are a recipe's alone.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Union

from atom.config.bench import BenchConfig
from atom.config.deployment import DeploymentConfig
from atom.config.eval import EvalConfig, EvalTask
from atom.config.schema import Config

# Section of a recipe -> the tree of its tool: dataclasses in groups, whose keys all stand in it.
TOOLS: dict[str, type] = {
    "deployment": DeploymentConfig,
    "bench": BenchConfig,
    "eval": EvalConfig,
}

# Sections that a recipe alone has: neither flags nor variables.
RECIPE_ONLY = ("deployment",)

# Section -> what the user's names below it stand for, and the keys of such a table.
NAMED_TABLES: dict[str, tuple[str, type]] = {"eval": ("TASK", EvalTask)}

# Resets an optional setting to its default where a language has no null.
AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Setting:
    """One key of the tree. `kind` is the type of a value, or of an element if `many`.

    `group` is the field of the tree that holds it: the section, but for a tool's settings. `title`
    says in a line what the group is about. `tool` is "" for the server's settings. Those of a named
    table have the section "eval.TASK".
    """

    section: str
    group: str
    title: str
    tool: str
    name: str
    kind: type
    many: bool
    optional: bool
    default: Any
    doc: str
    choices: tuple[str, ...]
    ge: float | None
    gt: float | None
    le: float | None
    aliases: tuple[str, ...]
    secret: bool
    env_alias: str | None
    loose: bool

    @property
    def key(self) -> str:
        """The dotted name, e.g. scheduler.max_num_seqs."""
        return f"{self.section}.{self.name}"

    @property
    def flag(self) -> str:
        return flag_name(self.name)

    @property
    def env(self) -> str:
        return "_".join(filter(None, ("ATOM", self.tool.upper(), self.name.upper())))

    @property
    def type_name(self) -> str:
        """The type in a word for people: integer, number, true/false, text, list of ..."""
        if self.choices:
            return " | ".join(self.choices)
        word = {bool: "true/false", int: "integer", float: "number", str: "text"}[self.kind]
        return f"list of {word}" if self.many else word

    @property
    def limits(self) -> str:
        """The range in symbols, e.g. "> 0, <= 1"; empty when there is none."""
        bounds = ((">=", self.ge), (">", self.gt), ("<=", self.le))
        return ", ".join(f"{sign} {bound:g}" for sign, bound in bounds if bound is not None)

    @property
    def accepts_auto(self) -> bool:
        """Whether the word "auto" stands for the default None (free text has no such word)."""
        return (
            self.optional
            and AUTO not in self.choices
            and bool(self.choices or self.kind is not str)
        )

    def show(self, value: Any, *, reveal: bool = False) -> str:
        """A value as a recipe or flag would spell it; secrets as ***."""
        if self.secret and value and not reveal:
            return "***"
        if value is None:
            return AUTO if self.accepts_auto else ""
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, tuple):
            return ",".join(f"{i:g}" if isinstance(i, float) else str(i) for i in value)
        return str(value)


def flag_name(name: str) -> str:
    return "--" + name.replace("_", "-")


def nearest(name: str, known: Iterable[str]) -> str:
    """' (did you mean X?)' or '' when nothing is near."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""


def _unwrap(annotation: Any) -> tuple[type, bool, bool]:
    """An annotation of the schema -> (kind, many, optional)."""
    optional = False
    if typing.get_origin(annotation) in (types.UnionType, Union):
        (annotation,) = (a for a in typing.get_args(annotation) if a is not type(None))
        optional = True
    many = typing.get_origin(annotation) is tuple
    kind = typing.get_args(annotation)[0] if many else annotation
    assert kind in (bool, int, float, str), annotation
    return kind, many, optional


@lru_cache(maxsize=1)
def sections() -> dict[str, type]:
    """Section name -> its dataclass, in order."""
    return dict(typing.get_type_hints(Config))


@lru_cache(maxsize=1)
def settings() -> dict[str, Setting]:
    """Name -> setting of the server's tree, in the order of the schema."""
    return _table(Config, "")


@lru_cache(maxsize=8)
def tool_settings(tool: str) -> dict[str, Setting]:
    """Name -> setting of a tool, in the order of its schema."""
    return _table(TOOLS[tool], tool)


@lru_cache(maxsize=8)
def table_settings(tool: str) -> dict[str, Setting]:
    """Name -> setting of the tool's named tables; empty where it has none."""
    if tool not in NAMED_TABLES:
        return {}
    word, owner = NAMED_TABLES[tool]
    hints = typing.get_type_hints(owner)
    section = f"{tool}.{word}"
    return {
        f.name: dataclasses.replace(
            _setting(f, hints[f.name], section, owner, tool), section=section
        )
        for f in dataclasses.fields(owner)
    }


def every_setting() -> list[Setting]:
    """The server's and all tools', without those of named tables."""
    return [*settings().values(), *(s for tool in TOOLS for s in tool_settings(tool).values())]


def variables() -> list[Setting]:
    """The settings that have a variable of the environment."""
    return [s for s in every_setting() if s.tool not in RECIPE_ONLY]


def _table(root: type, tool: str) -> dict[str, Setting]:
    table: dict[str, Setting] = {}
    for group, owner in typing.get_type_hints(root).items():
        hints = typing.get_type_hints(owner)
        for field in dataclasses.fields(owner):
            assert field.name not in table, f"{field.name} stands in two sections"
            table[field.name] = _setting(field, hints[field.name], group, owner, tool)
    return table


def _setting(field: Any, annotation: Any, group: str, owner: type, tool: str) -> Setting:
    kind, many, optional = _unwrap(annotation)
    meta = field.metadata
    return Setting(
        section=tool or group,
        group=group,
        title=(owner.__doc__ or group).splitlines()[0].rstrip("."),
        tool=tool,
        name=field.name,
        kind=kind,
        many=many,
        optional=optional,
        default=field.default,
        doc=meta["doc"],
        choices=meta["choices"],
        ge=meta["ge"],
        gt=meta["gt"],
        le=meta["le"],
        aliases=meta["aliases"],
        secret=meta["secret"],
        env_alias=meta["env"],
        loose=meta["loose"],
    )


def value_of(config: Any, setting: Setting) -> Any:
    """The value of a setting in its tree: `Config`, or the tree of the setting's tool."""
    return getattr(getattr(config, setting.group), setting.name)
