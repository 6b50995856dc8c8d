"""From a model source to a model with weights on its device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from atom.config.schema import Config
from atom.errors import ModelError
from atom.layers.build import BuildContext
from atom.layers.weights import CheckpointTensor, Layer, WeightSlot
from atom.models.checkpoint import (
    DummyTensor,
    open_gguf,
    open_safetensors,
)
from atom.models.features import check_features
from atom.models.gguf import GGUFFile
from atom.models.loading_report import Wanted
from atom.models.registry import resolve
from atom.models.stored import quantisation_of_weights, why_not_loaded
from atom.parallel.state import SINGLE, ParallelState

if TYPE_CHECKING:
    from atom.models.hf_config import HFConfig
    from atom.models.source import ModelSource

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
KV_DTYPES = {
    "bf16": torch.bfloat16,
    "fp8": torch.float8_e4m3fn,
    "fp16": torch.float16,
    "fp32": torch.float32,
}


def resolve_dtype(config: Config, source: ModelSource, device: torch.device) -> torch.dtype:
    """The activations' dtype: what was asked for, else float32 on CPU, elsewhere as stored."""
    asked = config.model.dtype
    if asked != "auto":
        return DTYPES[asked]
    if device.type == "cpu":
        return torch.float32
    stored = DTYPES.get(str(source.config.dtype or "bfloat16"), torch.bfloat16)
    return torch.bfloat16 if stored == torch.float32 else stored


def resolve_kv_dtype(config: Config, dtype: torch.dtype) -> torch.dtype:
    """The KV cache's dtype: what was asked for, else the activations'."""
    asked = config.engine.kv_cache_dtype
    return dtype if asked == "auto" else KV_DTYPES[asked]


def load_model(
    source: ModelSource,
    config: Config,
    device: torch.device,
    dtype: torch.dtype,
    *,
    parallel: ParallelState = SINGLE,
    traceable: bool = False,
    selects_rows: bool = False,
    mtp: bool = False,
) -> Any:
    """The model of `source`, a `CausalLM`, ready to run.

    `dtype` is the activations'. On CPU with `model.dtype` auto, weights keep the form they are
    stored in; otherwise they take `dtype`. GGUF blocks stay packed unless `model.dtype` is float32.
    `mtp`: with the checkpoint's multi-token-prediction layers, which are left out otherwise.
    """
    hf = source.config
    model_class = resolve(hf.architecture)
    if quantisation_of_weights(hf) not in ("", *model_class.quantisations):
        raise ModelError(f"{source.name}: {why_not_loaded(hf)}")
    check_features(hf)
    file = GGUFFile(source.path) if source.format == "gguf" else None
    keep = config.model.dtype == "auto" and device.type == "cpu"
    build = BuildContext(
        device=device,
        dtype=dtype,
        weight_dtype=None if keep else dtype,
        keep_packed=config.model.dtype != "float32",
        kv_dtype=resolve_kv_dtype(config, dtype),
        block_size=config.engine.block_size,
        max_positions=config.model.max_model_len or hf.max_position_embeddings,
        parallel=parallel,
        traceable=traceable,
        selects_rows=selects_rows,
        mtp=mtp,
    )
    model = model_class(hf, build)
    if config.model.load_dummy:
        load_dummy(model, config.model.seed, stored_dtype(hf, build), device)
    else:
        check_tensors(model, _open(source, file, hf), str(source.path))  # of headers: seconds
        load_weights(model, _open(source, file, hf), str(source.path))
    flatten(model)
    return model


def stored_dtype(hf: HFConfig, build: BuildContext) -> torch.dtype:
    """What a checkpoint of this config would hold."""
    return DTYPES.get(str(hf.dtype or ""), build.dtype)


def _open(source: ModelSource, file: GGUFFile | None, hf: HFConfig) -> Iterator[CheckpointTensor]:
    if file is None:
        return open_safetensors(source.path)
    return open_gguf(file, hf.num_attention_heads, hf.num_key_value_heads)


def weight_slots(model: nn.Module) -> dict[str, WeightSlot]:
    """Every tensor that the model wants, by name."""
    return {
        slot.name: slot
        for path, module in model.named_modules()
        if isinstance(module, Layer)
        for slot in module.slots(path)
    }


def check_tensors(model: Any, tensors: Iterable[CheckpointTensor], origin: str) -> None:
    """Raise `ModelError` if these are not, by name and shape, what the model wants. Reads none."""
    wanted = Wanted(model, weight_slots(model), origin)
    for tensor in tensors:
        wanted.take(tensor)
    wanted.check()


def load_weights(model: Any, tensors: Iterable[CheckpointTensor], origin: str) -> None:
    """Give every tensor to its layer, then finish the layers. `origin` is for messages."""
    wanted = Wanted(model, weight_slots(model), origin)
    for tensor in tensors:
        slot = wanted.take(tensor)
        if slot is not None:
            slot.load(tensor)
    wanted.check()
    finish(model)


def load_dummy(model: nn.Module, seed: int, dtype: torch.dtype, device: torch.device) -> None:
    """Fill the model at random, the same for the same seed whatever the parallel layout."""
    for slot in weight_slots(model).values():
        if slot.required:
            slot.load(DummyTensor(slot.name, slot.shape, dtype, device, seed))
    finish(model)


def finish(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, Layer):
            module.finish()


def flatten(model: nn.Module) -> None:
    """Put submodules into instance dictionaries, where `self.child` finds them at once.

    nn.Module finds them in a Python-level `__getattr__`, half a microsecond each time.
    """
    for module in model.modules():
        module.__dict__.update(module._modules)
