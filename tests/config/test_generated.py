"""What is generated from the schema is current and complete."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from atom.config import resolve
from atom.config.fields import settings
from atom.config.json_schema import json_schema
from atom.config.reference import pages

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.toml"))


@pytest.mark.parametrize("name", sorted(pages()))
def test_the_committed_reference_is_current(name: str) -> None:
    committed = (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8")
    assert committed == pages()[name], "run: make docs"


def test_every_setting_is_in_the_reference() -> None:
    text = pages()
    for setting in settings().values():
        assert f"`{setting.flag}" in text["flags.md"]
        assert f"`{setting.env}`" in text["environment.md"]
        assert f"`{setting.name}`" in text["recipes.md"]


def test_the_readme_s_recipes_exist() -> None:
    assert {p.stem for p in RECIPES} >= {"smollm2-135m", "llama-3.1-8b", "qwen3-0.6b"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_recipes_resolve_and_match_the_json_schema(path: Path) -> None:
    resolve(path)
    validate(json_schema(), tomllib.loads(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "tree",
    [
        {"modle": {}},
        {"engine": {"kv_cache_block_size": 0}},
        {"engine": {"overlap": "sometimes"}},
        {"model": {"dtype": "fp32"}},
        {"model": {"model": ""}},
    ],
)
def test_the_json_schema_refuses(tree: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        validate(json_schema(), tree)


def test_the_json_schema_accepts_auto_and_lists() -> None:
    validate(
        json_schema(),
        {
            "engine": {"overlap": "auto", "kv_cache_memory_gb": 2},
            "model": {"served_model_name": ["a", "b"], "max_model_len": 4},
            "compile": {"cudagraph_capture_sizes": [1, 2]},
        },
    )


def validate(schema: dict[str, Any], value: Any) -> None:
    jsonschema_rs = pytest.importorskip("jsonschema_rs")
    jsonschema_rs.Draft202012Validator(schema).validate(value)
