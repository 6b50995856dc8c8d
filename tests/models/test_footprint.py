"""The plan from a configuration agrees with the model that is then built from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import make_tiny

from atom.config import resolve
from atom.config.schema import ModelConfig
from atom.models.footprint import count_parameters, footprint, kv_bytes_per_token
from atom.models.hf_config import HFConfig
from atom.models.inventory import block_multiple
from atom.models.loader import load_model
from atom.models.operations import operations
from atom.models.published import published_config, published_names
from atom.models.source import resolve_source
from atom.models.tiny import write_tiny
from atom.ops import registry
from atom.ops.contracts import FUSED_OPS

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
    assert_planned(source.config, asked, 16)


def assert_planned(config: HFConfig, asked: list[registry.OpQuery], block_size: int) -> None:
    """`asked` of a model in float32 on CPU."""
    # Experts may be packed instead, which the same query asks.
    named = [replace(q, op=q.op.replace("pack_experts", "fused_experts")) for q in asked]
    planned = operations(config, "cpu", "float32", "float32", "float32", block_size)
    assert {q.op for q in named} - PARTS == {q.op for q in planned} - PARTS
    for query in planned:
        assert query in named, query


@pytest.mark.parametrize("family", ["llama3", "qwen3_moe"])
def test_sizes(family: str, tmp_path: Path) -> None:
    path = make_tiny(family, tmp_path / family)
    source = resolve_source(ModelConfig(model=str(path)))
    stored = footprint(source, "float32", "bfloat16", keep_stored=True)
    assert stored.weight_bytes == sum(_elements(p) for p in path.glob("*.safetensors")) * 4
    half = footprint(source, "float32", "bfloat16", keep_stored=True, ranks=2)
    assert stored.weight_bytes / 2 < half.weight_bytes < stored.weight_bytes * 0.52
    assert half.kv_bytes_per_token == stored.kv_bytes_per_token / 2
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


# Asked only where a backend has them, or by an expert for all in a model without dense layers.
PARTS = {"add_gated", "mla_prefill", "sigmoid_mul", "silu_and_mul", "swiglu_clamp", *FUSED_OPS}
ARCHITECTURES = {
    config.architecture: name
    for name in published_names()
    if (config := published_config(name)) is not None
}


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_operations_of_every_architecture(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = published_config(ARCHITECTURES[architecture])
    assert published is not None
    small = write_tiny(published, tmp_path)
    asked: list[registry.OpQuery] = []
    select = registry.select

    def spy(query: registry.OpQuery) -> object:
        asked.append(query)
        return select(query)

    monkeypatch.setattr(registry, "select", spy)
    size = max(16, block_multiple(small))
    flags = {"model": str(tmp_path), "dtype": "float32", "kv_cache_block_size": size}
    config = resolve(None, {}, {**flags, "device": "cpu", "max_model_len": 512})
    source = resolve_source(config.model)
    load_model(source, config, torch.device("cpu"), torch.float32)
    assert_planned(small, asked, size)
