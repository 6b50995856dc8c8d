"""What a recipe computes with, in a word or two, as far as its files tell without loading it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atom.config import resolve
from atom.config.schema import ModelConfig
from atom.errors import ModelError

PLAIN = frozenset({"float32", "bfloat16", "float16"})


def of_recipe(recipe: Path, env: Mapping[str, str]) -> str:
    """float32, bfloat16, ...; "fp8 float32" of quantised weights; "" where it is not known."""
    model = resolve(recipe, env).model
    weights, own = _weights(model)
    dtype = own if model.dtype == "auto" else model.dtype
    if not weights or not dtype:
        return ""
    return dtype if weights in PLAIN else f"{weights} {dtype}"


def _weights(model: ModelConfig) -> tuple[str, str]:
    """What the weights are stored in, and the dtype that the model itself names; "" unknown."""
    if model.model is None:
        return "embedded GGUF", "auto"
    path = Path(model.model).expanduser()
    if path.suffix == ".gguf":
        return path.name, "auto"
    if not (path / "config.json").is_file():
        return "", ""
    from atom.models.hf_config import HFConfig

    try:
        config = HFConfig.from_file(path / "config.json")
    except ModelError:
        return "", ""
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "")
    quantised: Any = config.get("quantization_config")
    if isinstance(quantised, Mapping):
        return str(quantised.get("quant_method") or "quantised"), dtype
    return dtype, dtype
