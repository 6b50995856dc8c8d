"""The plan from a configuration agrees with the model that is then built from it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import make_tiny

from atom.config import resolve
from atom.config.schema import ModelConfig
from atom.models.footprint import count_parameters, footprint, kv_bytes_per_token, operations
from atom.models.loader import load_model
from atom.models.source import resolve_source
from atom.ops import registry

FAMILIES = ("llama2", "llama3", "qwen2", "qwen3", "qwen3_moe", "mixtral")


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_and_kernels_are_those_of_the_real_model(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_tiny(family, tmp_path / family)
    source = resolve_source(ModelConfig(model=str(path)))
    stored = sum(_elements(p) for p in path.glob("*.safetensors"))
    assert count_parameters(source.config) == stored

    asked: list[registry.OpQuery] = []
    select = registry.select

    def spy(query: registry.OpQuery) -> object:
        asked.append(query)
        return select(query)

    monkeypatch.setattr(registry, "select", spy)
    config = resolve(None, {}, {"model": str(path), "dtype": "float32", "device": "cpu"})
    load_model(source, config, torch.device("cpu"), torch.float32)
    planned = {
        (q.op, tuple(name for name, _ in q.shape)): q
        for q in operations(source.config, "cpu", "float32", "float32", "float32", 16)
    }
    assert {(q.op, tuple(name for name, _ in q.shape)) for q in asked} == set(planned)
    for (op, _), query in planned.items():
        assert query in asked, op


@pytest.mark.parametrize("family", ["llama3", "qwen3_moe"])
def test_sizes(family: str, tmp_path: Path) -> None:
    path = make_tiny(family, tmp_path / family)
    source = resolve_source(ModelConfig(model=str(path)))
    stored = footprint(source, "float32", "bfloat16", keep_stored=True)
    assert stored.weight_bytes == sum(p.stat().st_size for p in path.glob("*.safetensors"))
    wide = footprint(source, "float32", "bfloat16", keep_stored=False)
    assert wide.weight_bytes == 4 * wide.parameters
    config = source.config
    heads, dim, layers = config.num_key_value_heads, config.head_dim, config.num_hidden_layers
    assert kv_bytes_per_token(config, "bfloat16") == 2 * 2 * heads * dim * layers
    assert kv_bytes_per_token(config, "float32") == 2 * kv_bytes_per_token(config, "bfloat16")


def _elements(path: Path) -> int:
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        return sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118
