"""The schema as a flat table: one `Setting` per key, found by name.

Recipe keys, flags and environment variables are all spellings of these names, so a name is unique
over all sections.
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

from atom.config.schema import Config

# Resets an optional setting to its default where a language has no null.
AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Setting:
    """One key of the tree. `kind` is the type of a value, or of an element if `many`."""

    section: str
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

    @property
    def key(self) -> str:
        """The dotted name, e.g. scheduler.max_num_seqs."""
        return f"{self.section}.{self.name}"

    @property
    def flag(self) -> str:
        return flag_name(self.name)

    @property
    def env(self) -> str:
        return f"ATOM_{self.name.upper()}"

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
            return ",".join(str(item) for item in value)
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
    """Name -> setting, in the order of the schema."""
    table: dict[str, Setting] = {}
    for section, owner in sections().items():
        hints = typing.get_type_hints(owner)
        for field in dataclasses.fields(owner):
            kind, many, optional = _unwrap(hints[field.name])
            meta = field.metadata
            assert field.name not in table, f"{field.name} stands in two sections"
            table[field.name] = Setting(
                section=section,
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
            )
    return table


def value_of(config: Config, setting: Setting) -> Any:
    return getattr(getattr(config, setting.section), setting.name)
