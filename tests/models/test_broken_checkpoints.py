"""Checkpoints of every family with something wrong: one line that says what, and what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from atom.config.schema import Config, EngineConfig, ModelConfig
from atom.errors import ModelError
from atom.models import loader
from atom.models.published import published_config
from atom.models.registry import ARCHITECTURES, resolve
from atom.models.source import resolve_source
from atom.models.stored import LOADED
from atom.models.tiny import write_tiny

MODELS = {
    "deepseek_v2": "deepseek-ai/DeepSeek-V2-Lite-Chat",
    "deepseek_v3": "deepseek-ai/DeepSeek-R1",
    "deepseek_v32": "deepseek-ai/DeepSeek-V3.2",
    "deepseek_v4": "deepseek-ai/DeepSeek-V4-Flash",
    "glm4_moe": "zai-org/GLM-4.5-Air",
    "glm5": "zai-org/GLM-5",
    "gpt_oss": "openai/gpt-oss-20b",
    "kimi_k25": "moonshotai/Kimi-K2.5",
    "llama": "meta-llama/Llama-3.1-8B",
    "minimax_m2": "MiniMaxAI/MiniMax-M2",
    "mixtral": "mistralai/Mixtral-8x7B-v0.1",
    "qwen3": "Qwen/Qwen3-8B",
    "qwen3_moe": "Qwen/Qwen3-30B-A3B",
    "qwen3_next": "Qwen/Qwen3-Next-80B-A3B-Instruct",
    "qwen3_5_moe": "Qwen/Qwen3.5-35B-A3B",
}
LATENT = {"deepseek_v2", "deepseek_v3", "deepseek_v32", "glm5", "kimi_k25"}
DENSE = {"llama", "qwen3"}

Change = Callable[[dict[str, Any]], None]


def text(config: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = config.get("text_config") or config
    return found


def put(**values: Any) -> Change:
    return lambda config: text(config).update(values)


def longrope(config: dict[str, Any]) -> None:
    rope = {"rope_type": "longrope", "factor": 2.0}
    name = "rope_parameters" if text(config).get("rope_parameters") else "rope_scaling"
    text(config)[name] = {**(text(config).get(name) or {}), **rope}


def misspelt(config: dict[str, Any]) -> None:
    name = config["architectures"][0]
    config["architectures"] = [name.replace("Causal", "Casual").replace("Cond", "Con")]


# name -> (change, what the message says, families that it is not about)
CHANGES: dict[str, tuple[Change, str, set[str]]] = {
    "activation": (put(hidden_act="gelu"), "hidden_act 'gelu' is not supported", set()),
    "rope": (longrope, "'longrope' is not supported", set()),
    "quantised": (
        put(quantization_config={"quant_method": "awq", "bits": 4}),
        "quantised safetensors (awq: AWQ, 4 bits in groups of 128) are not supported yet: use",
        set(),
    ),
    "architecture": (misspelt, "is not supported; near it are ", set()),
    "attention": (
        lambda c: text(c).update(layer_types=["chunked"] * text(c)["num_hidden_layers"]),
        "chunked",
        LATENT,
    ),
    "scores": (put(scoring_func="tanh"), "scoring_func 'tanh' is not supported", DENSE),
    "top_k": (
        put(num_experts_per_tok=99),
        "num_experts_per_tok 99 is more than there are experts",
        DENSE,
    ),
    "width": (put(vocab_size=510), "has shape [512, ", set()),
    "epsilon": (put(rms_norm_eps=2.0), "rms_norm_eps must be between 0 and 1", set()),
    "no size": (put(hidden_size=None), "hidden_size must be a positive integer, got None", set()),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A family's tiny checkpoint; only its config.json may be changed."""
    made: dict[str, Path] = {}

    def of(family: str) -> Path:
        if family not in made:
            published = published_config(MODELS[family])
            assert published is not None
            made[family] = tmp_path_factory.mktemp(family)
            write_tiny(published, made[family])
        return made[family]

    return of


def load(path: Path) -> Any:
    config = Config(
        model=ModelConfig(model=str(path), max_model_len=512),
        engine=EngineConfig(kv_cache_block_size=128),
    )
    return loader.load_model(
        resolve_source(config.model), config, torch.device("cpu"), torch.float32
    )


def message_of(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("change", CHANGES)
def test_configs(change: str, family: str, folder: Callable[[str], Path]) -> None:
    apply, said, not_about = CHANGES[change]
    if family in not_about:
        return
    file = folder(family) / "config.json"
    before = file.read_text()
    config = json.loads(before)
    apply(config)
    file.write_text(json.dumps(config))
    try:
        assert said in message_of(file.parent)
    finally:
        file.write_text(before)


@pytest.mark.parametrize("family", MODELS)
def test_a_layer_more_than_there_is(family: str, folder: Callable[[str], Path]) -> None:
    file = folder(family) / "config.json"
    before = file.read_text()
    config = json.loads(before)
    text(config)["num_hidden_layers"] += 1
    file.write_text(json.dumps(config))
    try:
        message = message_of(file.parent)
    finally:
        file.write_text(before)
    assert any(
        part in message for part in ("num_hidden_layers", "config.json of this checkpoint?")
    ), message


@pytest.fixture
def copy(tmp_path: Path, folder: Callable[[str], Path]) -> Path:
    return shutil.copytree(folder("deepseek_v3"), tmp_path / "copy")


def test_nothing_is_read_before_all_names_are_there(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard of a checkpoint without an index is missing: said at once, not after the rest."""
    (copy / "model.safetensors.index.json").unlink()
    (copy / "model-00001-of-00002.safetensors").unlink()
    monkeypatch.setattr(loader, "load_weights", lambda *_: pytest.fail("weights were read"))
    message = message_of(copy)
    assert "lacks " in message
    assert "; of its files model-00001-of-00002.safetensors are not there: finish the" in message


def test_a_shard_that_the_index_names(copy: Path) -> None:
    for file in copy.glob("*.safetensors"):
        file.unlink()
    (copy / "other.safetensors").write_bytes(b"")
    said = "names model-00001-of-00002.safetensors and 1 more files, which are not in "
    assert said in message_of(copy)
    assert message_of(copy).endswith(": finish the download")


@pytest.mark.parametrize("left", [0, 4, 200, 100_000])
def test_a_file_that_was_cut(left: int, copy: Path) -> None:
    file = copy / "model-00002-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:left])
    message = message_of(copy)
    assert f"cannot read {file}: " in message
    assert message.endswith(": is it cut short? fetch it again")


def test_names_of_another_architecture(copy: Path, folder: Callable[[str], Path]) -> None:
    shutil.copy(folder("qwen3_next") / "config.json", copy / "config.json")
    message = message_of(copy)
    assert "others are unexpected (" in message or "config asks for" in message
    assert "config.json" in message


def test_quantisations_that_are_read_are_those_of_the_models() -> None:
    for architecture in ARCHITECTURES:
        assert tuple(resolve(architecture).quantisations) == LOADED.get(architecture, ())
