"""What this version cannot do is refused; settings of another device are named in a warning."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import atom.config
from atom.config import Config, resolve
from atom.config.fields import settings
from atom.config.support import (
    LATER_SECTIONS,
    REFUSALS,
    REFUSED_FLAGS,
    WITHOUT_EFFECT,
    unsupported,
    without_effect,
)
from atom.errors import ConfigError


def test_the_tables_name_what_exists_or_does_not() -> None:
    assert {row.setting for row in (*REFUSALS, *WITHOUT_EFFECT)} <= set(settings())
    flags = {s.flag[2:] for s in settings().values()}
    aliases = {a.lstrip("-") for s in settings().values() for a in s.aliases}
    assert not set(REFUSED_FLAGS) & (flags | aliases)
    assert not set(LATER_SECTIONS) & {s.section for s in settings().values()}


def test_every_setting_is_read_somewhere_or_refused() -> None:
    root = Path(atom.config.__file__).parents[1]
    files = [p for p in root.rglob("*.py") if p.parent != root / "config"]
    code = "\n".join(p.read_text(encoding="utf-8") for p in files)
    read = set(re.findall(r"\.(\w+)\b", code))
    refused = {row.setting for row in REFUSALS}
    assert set(settings()) - read - refused == set()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_defaults_are_supported(device: str) -> None:
    assert unsupported(Config()) == []
    assert without_effect(Config(), device) == []


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"data_parallel_size": 2}, r"^--data-parallel-size is refused: .*not in this version"),
        ({"pipeline_parallel_size": 2}, "pipeline"),
    ],
)
def test_refusals(flags: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        resolve(None, {}, flags)


@pytest.mark.parametrize(
    ("flags", "device"),
    [
        ({"gpu_memory_utilization": 0.5}, "cpu"),
        ({"kv_cache_memory_gb": 1}, "cuda"),
        ({"num_threads": 2}, "cuda"),
    ],
)
def test_settings_of_the_other_device_are_named(flags: dict[str, Any], device: str) -> None:
    config = resolve(None, {}, flags)
    other = "cuda" if device == "cpu" else "cpu"
    assert [row.setting for row in without_effect(config, device)] == list(flags)
    assert without_effect(config, other) == []
