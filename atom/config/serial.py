"""The tree as JSON: whole for the core process, masked for people. Never pickle."""

from __future__ import annotations

from typing import Any

import msgspec

from atom.config.fields import sections, settings, value_of
from atom.config.schema import Config
from atom.errors import ConfigError


def to_json(config: Config) -> bytes:
    """The whole tree, secrets included: only for another process of the same server."""
    return msgspec.json.encode(config)


def from_json(data: bytes) -> Config:
    """What `to_json` wrote; raises `ConfigError` for anything else."""
    try:
        tree = msgspec.json.decode(data, type=dict[str, dict[str, Any]])
        config = msgspec.convert(tree, Config)
    except msgspec.DecodeError as error:
        raise ConfigError(f"not the JSON of a configuration: {error}") from error
    if [(s, k) for s in tree for k in tree[s]] != [
        (s.section, s.name) for s in settings().values()
    ]:
        raise ConfigError("not the JSON of a configuration of this version: its keys differ")
    return config


def public_tree(config: Config) -> dict[str, dict[str, Any]]:
    """Section -> key -> value as plain JSON types, for printing; secrets as ***."""
    tree: dict[str, dict[str, Any]] = {section: {} for section in sections()}
    for setting in settings().values():
        value = value_of(config, setting)
        if setting.secret and value:
            value = "***"
        tree[setting.section][setting.name] = list(value) if type(value) is tuple else value
    return tree


def changed(config: Config) -> dict[str, str]:
    """Dotted key -> value as text, of every setting that differs from its default."""
    return {
        setting.key: setting.show(value)
        for setting in settings().values()
        if (value := value_of(config, setting)) != setting.default
    }
