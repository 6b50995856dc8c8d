"""What is counted from a configuration is what checkpoints hold and what models keep."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hub import FAMILIES, hub_checkpoint
from safetensors import safe_open
from test_families import BLOCK_SIZES, SUPPORTED

from atom.config.schema import Config, EngineConfig, ModelConfig
from atom.errors import ModelError
from atom.layers.build import BuildContext
from atom.layers.caches import FULL, STATE, WINDOW
from atom.models.footprint import (
    active_parameters,
    bytes_of_rows,
    cache_uses,
    count_parameters,
    weight_bytes,
)
from atom.models.hf_config import HFConfig
from atom.models.inventory import VISION, has_state, mtp_tensors, tensors
from atom.models.loader import load_model
from atom.models.published import published_config, published_names
from atom.models.registry import resolve
from atom.models.sharing import sharing_problem
from atom.models.source import resolve_source
from atom.models.stored import scheme_of
from atom.parallel.state import ParallelState


def stored_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    found = {}
    for file in path.glob("model*.safetensors"):
        with safe_open(str(file), "pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                if not name.startswith(VISION):
                    found[name] = tuple(opened.get_slice(name).get_shape())
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_names_and_shapes_are_those_of_the_checkpoint(family: str) -> None:
    path = hub_checkpoint(family)
    config = HFConfig.from_file(path / "config.json")
    wanted = {
        t.name.format(i): t.shape
        for t in (*tensors(config), *mtp_tensors(config))
        for i in range(t.number)
    }
    assert wanted == stored_shapes(path)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("family", SUPPORTED)
def test_caches_are_those_of_the_model(family: str, ranks: int, tmp_path: Path) -> None:
    """Of one rank: bytes of a block and of a slot."""
    assert_caches(FAMILIES[family]["config"], ranks, tmp_path, BLOCK_SIZES.get(family, 16))


@pytest.mark.parametrize(
    "changes", [{"index_topk_freq": 2}, {"indexer_types": ["full", "shared", "full"]}], ids=str
)
def test_layers_that_share_a_choice_keep_no_index(changes: dict[str, Any], tmp_path: Path) -> None:
    config = {**FAMILIES["glm_moe_dsa"]["config"], **changes}
    assert_caches(config, 1, tmp_path, 16)
    kept = {use.name: use.layers for use in cache_uses(HFConfig(config), "bfloat16", "bfloat16")}
    assert kept == {"latent": 3, "index keys": 2}


def assert_caches(raw: dict[str, Any], ranks: int, tmp_path: Path, size: int) -> None:
    (tmp_path / "config.json").write_text(json.dumps(raw))
    config = Config(
        model=ModelConfig(model=str(tmp_path), dtype="float32", load_dummy=True),
        engine=EngineConfig(kv_cache_block_size=size, kv_cache_dtype="bf16"),
    )
    source = resolve_source(config.model)
    parallel = ParallelState(tp_size=ranks)
    model: Any = load_model(source, config, torch.device("cpu"), torch.float32, parallel=parallel)
    kept = dict.fromkeys((FULL, WINDOW, STATE), 0)
    windows = set()
    for layer in model.cache_layers():
        for spec in layer.cache_specs():
            kept[spec.kind] += spec.row_bytes
            windows.add(spec.window)
    uses = cache_uses(source.config, "bfloat16", "float32", ranks=ranks)
    rows = bytes_of_rows(uses, size)
    assert rows == {"token": kept[FULL], "window": kept[WINDOW], "sequence": kept[STATE]}
    assert {use.window for use in uses if use.window} == windows - {0}
    assert has_state(source.config) == (kept[STATE] > 0)


# name -> (parameters, of them multi-token prediction, those that a token is computed with),
# in 10^9; to the precision that model cards give: 37 of 671, 22 of 235, 5.1 of 117, ...
PUBLISHED = {
    "deepseek-ai/DeepSeek-R1": (671.0, 11.6, 36.6),
    "deepseek-ai/DeepSeek-V2-Lite-Chat": (15.7, 0, 2.45),
    "deepseek-ai/DeepSeek-V3.2": (671.9, 11.6, 37.5),
    "deepseek-ai/DeepSeek-V4-Flash": (284.3, 6.6, 13.3),
    "MiniMaxAI/MiniMax-M2": (228.7, 0, 10.4),
    "moonshotai/Kimi-K2-Thinking": (1026.4, 0, 31.7),
    "openai/gpt-oss-120b": (116.8, 0, 5.13),
    "openai/gpt-oss-20b": (20.9, 0, 3.61),
    "Qwen/Qwen3-0.6B": (0.596, 0, 0.596),
    "Qwen/Qwen3-235B-A22B": (235.1, 0, 21.6),
    "Qwen/Qwen3-30B-A3B": (30.5, 0, 3.05),
    "Qwen/Qwen3-Next-80B-A3B-Instruct": (79.7, 1.65, 3.56),
    "zai-org/GLM-4.5-Air": (106.9, 2.38, 12.8),
    "zai-org/GLM-5": (743.9, 9.95, 40.2),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_totals(name: str) -> None:
    config = published_config(name)
    assert config is not None
    total, mtp, active = PUBLISHED[name]
    assert count_parameters(config) / 1e9 == pytest.approx(total, rel=2e-3)
    assert count_parameters(config, mtp=True) / 1e9 == pytest.approx(mtp, rel=1e-2)
    assert active_parameters(config) / 1e9 == pytest.approx(active, rel=2e-2)


def test_r1_to_the_last_parameter() -> None:
    config = published_config("deepseek-ai/DeepSeek-R1")
    assert config is not None
    assert count_parameters(config) == 671_026_419_200


# name -> bytes of the published files' tensors, by their index.
SIZES = {
    "deepseek-ai/DeepSeek-R1": 688_586_727_753,
    "openai/gpt-oss-120b": 65_248_815_744,
    "openai/gpt-oss-20b": 13_761_264_768,
}


@pytest.mark.parametrize("name", SIZES)
def test_bytes_of_quantised_checkpoints(name: str) -> None:
    config = published_config(name)
    assert config is not None
    scheme = scheme_of(config)
    assert scheme is not None
    total = 0
    for t in (*tensors(config), *mtp_tensors(config)):
        total += scheme.bytes_of(t, {"float32": 4, "int64": 8}.get(t.dtype, 2))
    assert total == pytest.approx(SIZES[name], rel=2e-5)


def test_ranks_share_what_can_be_shared() -> None:
    config = published_config("deepseek-ai/DeepSeek-R1")
    assert config is not None
    whole, eighth = (weight_bytes(config, "bfloat16", ranks=n) for n in (1, 8))
    assert whole / 8 < eighth < whole / 8 * 1.02, "routers and latent projections are everywhere"
    (latent,) = cache_uses(config, "bfloat16", "bfloat16", ranks=8)
    assert latent.bytes == 61 * 576 * 2, "every rank has the whole latent"
    llama = published_config("meta-llama/Llama-3.1-70B-Instruct")
    assert llama is not None
    (first,), (last,) = (
        cache_uses(llama, "bfloat16", "bfloat16", ranks=ranks) for ranks in (4, 16)
    )
    assert first.bytes == 80 * 2 * 2 * 128 * 2
    assert last.bytes == first.bytes / 2, "a head at least"


def test_every_published_config_can_be_planned() -> None:
    assert len(published_names()) > 20
    for name in published_names():
        config = published_config(name)
        assert config is not None
        assert weight_bytes(config, "bfloat16") > 1e8, name
        assert sum(use.bytes for use in cache_uses(config, "bfloat16", "bfloat16")) > 0, name


@pytest.mark.parametrize("ranks", [2, 3, 4, 16])
@pytest.mark.parametrize("family", SUPPORTED)
def test_what_ranks_cannot_share_is_what_layers_refuse(
    family: str, ranks: int, tmp_path: Path
) -> None:
    config = HFConfig(FAMILIES[family]["config"])
    build = BuildContext(block_size=128, parallel=ParallelState(tp_size=ranks))
    problem = sharing_problem(config, ranks)
    if not problem:
        resolve(config.architecture)(config, build)
        return
    with pytest.raises(ModelError, match=f"tensor_parallel_size {ranks} "):
        resolve(config.architecture)(config, build)
