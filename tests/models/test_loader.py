"""Reading checkpoints: what is refused and how, dummy weights, dtypes, the registry."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import PagedModel
from safetensors.torch import load_file, save_file
from tiny import FAMILIES, make_config, make_tiny, random_prompt, tiny_checkpoint

from atom.config.schema import Config, EngineConfig, ModelConfig
from atom.errors import ModelError
from atom.layers.weights import Layer
from atom.models import registry
from atom.models.loader import load_model, resolve_dtype, resolve_kv_dtype, weight_slots
from atom.models.source import resolve_source

CPU = torch.device("cpu")


def load(path: Path, **settings: Any) -> Any:
    config = Config(model=ModelConfig(model=str(path), **settings))
    return load_model(resolve_source(config.model), config, CPU, torch.float32)


@pytest.fixture
def single(tmp_path: Path) -> Path:
    """A checkpoint in one file, without an index, to be damaged."""
    path = make_tiny("llama3", tmp_path / "single", shard_size="1GB")
    assert [file.name for file in path.glob("*.safetensors*")] == ["model.safetensors"]
    return path


def rewrite(path: Path, change: Any) -> None:
    file = path / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file({name: value.contiguous() for name, value in tensors.items()}, file)


def message_of(path: Path, **settings: Any) -> str:
    with pytest.raises(ModelError) as caught:
        load(path, **settings)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_one_file_without_an_index(single: Path) -> None:
    ids = random_prompt(20)
    want = PagedModel(load(tiny_checkpoint("llama3"))).logits(ids, [20])
    assert torch.equal(PagedModel(load(single)).logits(ids, [20]), want)


def test_missing_tensors_are_counted_and_named(single: Path) -> None:
    gone = ["model.norm.weight", "model.layers.1.self_attn.k_proj.weight"]
    rewrite(single, lambda tensors: [tensors.pop(name) for name in gone])
    message = message_of(single)
    assert "lacks 2 tensors" in message
    assert all(name in message for name in gone)


def test_unexpected_tensors_are_counted_and_named(single: Path) -> None:
    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.0.rotary_emb.inv_freq"] = torch.zeros(4)  # known to be harmless
        for i in range(5):
            tensors[f"model.extra.{i}.weight"] = torch.zeros(4)

    rewrite(single, add)
    message = message_of(single)
    assert "has unexpected 5 tensors" in message
    assert "model.extra.0.weight, model.extra.1.weight, model.extra.2.weight, ..." in message


def test_wrong_shape(single: Path) -> None:
    rewrite(single, lambda t: t.update({"model.norm.weight": torch.zeros(64)}))
    assert "model.norm.weight has shape [64], the config asks for [128]" in message_of(single)


def test_quantised_values_without_scales(single: Path) -> None:
    name = "model.layers.0.mlp.down_proj.weight"
    rewrite(single, lambda t: t.update({name: torch.zeros(128, 256, dtype=torch.int8)}))
    assert f"{name} is stored as torch.int8" in message_of(single)


def test_quantization_config(single: Path) -> None:
    config = json.loads((single / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "awq", "bits": 4}
    (single / "config.json").write_text(json.dumps(config))
    assert (
        "quantised safetensors (awq: AWQ, 4 bits in groups of 128) are not supported"
        in message_of(single)
    )


def test_truncated_file(single: Path) -> None:
    file = single / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    assert "model.safetensors" in message_of(single)


def test_missing_shard(tmp_path: Path) -> None:
    path = shutil.copytree(tiny_checkpoint("llama3"), tmp_path / "copy")
    gone = sorted(path.glob("*.safetensors"))[1]
    gone.unlink()
    assert f"names {gone.name}" in message_of(path)


def test_damaged_index(tmp_path: Path) -> None:
    path = shutil.copytree(tiny_checkpoint("llama3"), tmp_path / "copy")
    (path / "model.safetensors.index.json").write_text('{"weight_map": []}')
    assert "is not an index" in message_of(path)


def test_tied_head_with_its_own_copy_in_the_file(tmp_path: Path) -> None:
    """The copy is allowed and not used; an untied head must be there."""
    path = make_tiny("qwen3", tmp_path, shard_size="1GB")
    ids = random_prompt(12)
    want = PagedModel(load(path)).logits(ids, [12])
    rewrite(path, lambda t: t.update({"lm_head.weight": torch.zeros(512, 128)}))
    assert torch.equal(PagedModel(load(path)).logits(ids, [12]), want)
    rewrite(path, lambda t: t.pop("lm_head.weight"))
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    assert "lacks 1 tensors for this architecture: lm_head.weight" in message_of(path)


@pytest.mark.parametrize("dtype", ["float32", "auto"])
def test_the_tied_weight_is_held_once(dtype: str, tmp_path: Path) -> None:
    model = load(make_tiny("qwen3", tmp_path, num_hidden_layers=1), dtype=dtype)
    embedding, head = model.model.embed_tokens, model.lm_head
    assert embedding.weight is head.packed
    total = sum(layer.weight_bytes for layer in model.modules() if isinstance(layer, Layer))
    assert model.weight_bytes == total
    block = 128 * (256 + 128 + 128 + 256) + 3 * 128 * 256 + 2 * 128 + 2 * 64
    values = 512 * 128 + block + 128
    assert values * 4 <= total < values * 4 * 1.05, "a kernel may pad its rows a little"


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_dummy_weights_need_only_a_config(family: str, tmp_path: Path) -> None:
    path, ids = make_config(family, tmp_path), random_prompt(12)
    first = PagedModel(load(path, load_dummy=True)).logits(ids, [12])
    again = PagedModel(load(path, load_dummy=True)).logits(ids, [12])
    other = PagedModel(load(path, load_dummy=True, seed=1)).logits(ids, [12])
    assert bool(torch.isfinite(first).all())
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-3)
    assert float(first.std()) > 1e-3


def test_dummy_norms_are_one_and_names_differ(tmp_path: Path) -> None:
    model = load(make_config("qwen3", tmp_path), load_dummy=True)
    layers = model.model.layers
    assert bool((layers[0].self_attn.q_norm.weight == 1).all())
    weights = [layer.mlp.down_proj.weight.dequantize() for layer in layers]
    assert not torch.equal(weights[0], weights[1])
    assert 0.015 < float(weights[0].std()) < 0.025


def test_slots_are_the_checkpoint(tmp_path: Path) -> None:
    """Names that a layer wants and names in a file are the same set, alternatives aside."""
    path = tiny_checkpoint("qwen3_moe")
    model = load(path, load_dummy=True)
    wanted = {slot.name: slot.shape for slot in weight_slots(model).values() if slot.required}
    stored = {}
    for file in path.glob("*.safetensors"):
        stored.update({name: tuple(value.shape) for name, value in load_file(file).items()})
    assert wanted == stored


def test_dtypes() -> None:
    source = resolve_source(ModelConfig(model=str(tiny_checkpoint("llama3"))))

    def dtypes(device: str, dtype: str = "auto", kv: str = "auto") -> tuple[torch.dtype, ...]:
        config = Config(model=ModelConfig(dtype=dtype), engine=EngineConfig(kv_cache_dtype=kv))
        chosen = resolve_dtype(config, source, torch.device(device))
        return chosen, resolve_kv_dtype(config, chosen)

    assert dtypes("cpu") == (torch.float32, torch.float32)
    assert dtypes("cuda") == (torch.bfloat16, torch.bfloat16)  # stored in float32
    assert dtypes("cpu", "float16") == (torch.float16, torch.float16)
    assert dtypes("cuda", "float32") == (torch.float32, torch.float32)
    assert dtypes("cpu", kv="fp8") == (torch.float32, torch.float8_e4m3fn)
    assert dtypes("cpu", kv="bf16") == (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_activations(dtype: torch.dtype) -> None:
    path, ids = tiny_checkpoint("llama3"), random_prompt(20)
    want = PagedModel(load(path, dtype="float32")).logits(ids, [20])
    name = str(dtype).removeprefix("torch.")
    config = Config(model=ModelConfig(model=str(path), dtype=name))
    model = load_model(resolve_source(config.model), config, CPU, dtype)
    paged = PagedModel(model)
    assert model.attention_layers()[0].k_cache.dtype == dtype
    got = paged.logits(ids, [20])
    assert got.dtype == torch.float32
    assert 1e-4 < float((got - want).abs().max()) < 0.5


def test_unknown_architecture_lists_what_exists() -> None:
    with pytest.raises(ModelError) as caught:
        registry.resolve("GPT2LMHeadModel")
    for name in registry.ARCHITECTURES:
        assert name in str(caught.value)


@pytest.mark.parametrize("name", sorted(registry.ARCHITECTURES))
def test_every_registered_architecture_resolves(name: str) -> None:
    assert registry.resolve(name).__name__ == name


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"sliding_window": "wide"}, "sliding_window must be a count, got 'wide'"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "'longrope' is not supported"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling of type linear lacks 'factor'"),
        ({"num_hidden_layers": None}, "num_hidden_layers must be a positive integer, got None"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps must be between 0 and 1, got 'small'"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4 is not a multiple of"),
    ],
)
def test_configs_that_are_refused(overrides: dict[str, Any], message: str, tmp_path: Path) -> None:
    assert message in message_of(make_config("llama3", tmp_path, **overrides), load_dummy=True)


def test_dynamic_rope_is_refused_beyond_the_trained_length(tmp_path: Path) -> None:
    scaling = {"rope_type": "dynamic", "factor": 4.0}
    path = make_config("llama3", tmp_path, rope_scaling=scaling)
    load(path, load_dummy=True, max_model_len=1024)
    message = message_of(path, load_dummy=True, max_model_len=1025)
    assert "max_model_len 1025 is more than the 1024" in message
