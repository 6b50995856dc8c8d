"""Scales of a float8 KV cache: read from a checkpoint under every name, and used.

The yardstick is transformers with keys and values rounded to float8 and back inside attention.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import PagedModel
from safetensors.torch import load_file, save_file
from tiny import make_tiny, random_prompt
from torch import Tensor

from atom.config.schema import Config, EngineConfig, ModelConfig
from atom.errors import ModelError
from atom.models.loader import load_model
from atom.models.source import resolve_source

GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
LAYERS = 3
K_SCALES, V_SCALES = [0.011, 0.5, 0.02], [0.25, 0.009, 1.5]
STYLES = {
    "llm-compressor": ("k_scale", "v_scale"),
    "vllm": ("attn.k_scale", "attn.v_scale"),
    "modelopt": ("k_proj.k_scale", "v_proj.v_scale"),
    "quark": ("k_proj.output_scale", "v_proj.output_scale"),
}


def load(path: Path, kv: str = "fp8", device: str = "cpu") -> Any:
    config = Config(model=ModelConfig(model=str(path)), engine=EngineConfig(kv_cache_dtype=kv))
    source = resolve_source(config.model)
    return load_model(source, config, torch.device(device), torch.float32)


def checkpoint(folder: Path, scales: dict[str, Tensor], family: str = "llama3") -> Path:
    path = make_tiny(family, folder, shard_size="1GB")
    file = path / "model.safetensors"
    save_file({**load_file(file), **scales}, file)
    return path


def named(style: str, shape: tuple[int, ...] = ()) -> dict[str, Tensor]:
    return {
        f"model.layers.{i}.self_attn.{name}": torch.full(shape, values[i])
        for name, values in zip(STYLES[style], (K_SCALES, V_SCALES), strict=True)
        for i in range(LAYERS)
    }


def round_trip(x: Tensor, scale: float) -> Tensor:
    return (x / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale


def transformers_logits(path: Path, ids: list[int]) -> Tensor:
    """[T, vocab], keys and values rounded as the cache rounds them."""
    import transformers
    from transformers.models.llama.modeling_llama import eager_attention_forward

    def attend(module: Any, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Any:
        k = round_trip(k, K_SCALES[module.layer_idx])
        v = round_trip(v, V_SCALES[module.layer_idx])
        return eager_attention_forward(module, q, k, v, *args, **kwargs)

    transformers.AttentionInterface.register("float8_cache", attend)
    transformers.AttentionMaskInterface.register(
        "float8_cache", transformers.masking_utils.eager_mask
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="float8_cache"
    ).eval()
    with torch.no_grad():
        logits: Tensor = model(torch.tensor([ids]), use_cache=False).logits[0]
    return logits


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=GPU)])
def test_logits_as_transformers_with_rounded_keys_and_values(device: str, tmp_path: Path) -> None:
    path, ids = checkpoint(tmp_path, named("llm-compressor")), random_prompt(40)
    want = transformers_logits(path, ids)
    got = PagedModel(load(path, device=device), device=device).logits(ids, [23, 16, 1])
    # A value on the edge between two float8 numbers may fall on either side.
    assert float((got - want).abs().mean()) < 2e-3
    assert torch.equal(got.argmax(-1), want.argmax(-1))
    plain = PagedModel(load(path, "fp32", device), device=device).logits(ids, [40])
    assert float((plain - want).abs().mean()) > 2e-2, "rounding must show"


@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("style", sorted(STYLES))
def test_names_and_shapes(style: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    model = load(checkpoint(tmp_path, named(style, shape)))
    layers = model.attention_layers()
    assert [layer.k_scale for layer in layers] == pytest.approx(K_SCALES)
    assert [layer.v_scale for layer in layers] == pytest.approx(V_SCALES)
    assert [layer.params.k_scale for layer in layers] == pytest.approx(K_SCALES)


def test_one_scale_for_both(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, {"model.layers.1.self_attn.kv_scale": torch.tensor(0.5)})
    pairs = [(layer.k_scale, layer.v_scale) for layer in load(path).attention_layers()]
    assert pairs == [(1.0, 1.0), (0.5, 0.5), (1.0, 1.0)]


def test_other_caches_take_no_scales(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, named("vllm"))
    assert all(
        layer.k_scale == layer.v_scale == 1 for layer in load(path, "bf16").attention_layers()
    )


@pytest.mark.parametrize("bad", [0.0, -1.0, float("inf"), float("nan")])
def test_a_scale_that_cannot_be(bad: float, tmp_path: Path) -> None:
    path = checkpoint(tmp_path, {"model.layers.2.self_attn.v_scale": torch.tensor(bad)})
    with pytest.raises(ModelError, match=r"layers\.2\.self_attn\.v_scale must be a finite number"):
        load(path)


@pytest.mark.parametrize(
    ("quantization", "refused"),
    [
        ({"quant_method": "compressed-tensors", "kv_cache_scheme": {"num_bits": 8}}, ""),
        ({"quant_method": "modelopt", "kv_cache_quant_algo": "FP8", "quant_algo": None}, ""),
        (
            {
                "quant_method": "compressed-tensors",
                "kv_cache_scheme": {},
                "config_groups": {"g": {"weights": {"num_bits": 8, "type": "float"}}},
            },
            "compressed-tensors: FLOAT8 per channel",
        ),
        (
            {"quant_method": "modelopt", "kv_cache_quant_algo": "FP8", "quant_algo": "FP8"},
            "modelopt",
        ),
    ],
)
def test_a_quantised_cache_is_no_quantised_weight(
    quantization: dict[str, Any], refused: str, tmp_path: Path
) -> None:
    path = checkpoint(tmp_path, named("llm-compressor"))
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))
    if refused:
        with pytest.raises(ModelError, match=rf"quantised safetensors \({refused}\)"):
            load(path)
    else:
        assert load(path).attention_layers()[1].k_scale == pytest.approx(0.5)


@pytest.mark.parametrize(
    "quantization", ["fp8", {"quant_method": "compressed-tensors", "config_groups": {"g": 1}}]
)
def test_a_quantisation_that_makes_no_sense(quantization: Any, tmp_path: Path) -> None:
    path = checkpoint(tmp_path, named("llm-compressor"))
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))
    with pytest.raises(ModelError, match="quantization_config m") as refused:
        load(path)
    assert "\n" not in str(refused.value)
