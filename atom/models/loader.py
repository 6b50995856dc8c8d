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
from atom.models.gguf import GGUFFile
from atom.models.registry import resolve
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
    if (method := _weight_quantisation(hf)) and method not in model_class.quantisations:
        raise ModelError(f"{source.name}: quantised safetensors ({method}) are not supported yet")
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
        load_weights(model, _open(source, file, hf), str(source.path))
    flatten(model)
    return model


def _weight_quantisation(hf: HFConfig) -> str:
    """The method by which weights are quantised; "" if none is, though the KV cache may have
    scales."""
    config = dict(hf.get("quantization_config") or {})
    method = str(config.get("quant_method", "unknown"))
    if not config:
        return ""
    if method == "compressed-tensors" and config.get("kv_cache_scheme"):
        return method if config.get("config_groups") else ""
    if method == "modelopt" and config.get("kv_cache_quant_algo"):
        return method if config.get("quant_algo") else ""
    return method


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


def _our_name(model: Any, name: str) -> str:
    for theirs, ours in model.weight_map:
        name = name.replace(theirs, ours)
    return name


def load_weights(model: Any, tensors: Iterable[CheckpointTensor], origin: str) -> None:
    """Give every tensor to its layer, then finish the layers. `origin` is for messages."""
    slots = weight_slots(model)
    missing = {slot.name for slot in slots.values() if slot.required}
    unexpected: list[str] = []
    for tensor in tensors:
        slot = slots.get(_our_name(model, tensor.name))
        if slot is None:
            if not _left_out(model, tensor.name):
                unexpected.append(tensor.name)
            continue
        if tensor.shape != slot.shape and (tensor.shape, slot.shape) != ((1,), ()):
            raise ModelError(
                f"{origin}: {tensor.name} has shape {list(tensor.shape)}, "
                f"the config asks for {list(slot.shape)}"
            )
        slot.load(tensor)
        missing.discard(slot.name)
        missing.difference_update(slot.provides)
    _report(origin, "lacks", sorted(missing))
    _report(origin, "has unexpected", unexpected)
    finish(model)


def _left_out(model: Any, name: str) -> bool:
    skipped = (*model.skipped_weights, *model.mtp_prefixes)
    return name.endswith(model.ignored_weights) or name.startswith(skipped)


def _report(origin: str, verb: str, names: list[str]) -> None:
    if names:
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        raise ModelError(f"{origin} {verb} {len(names)} tensors for this architecture: {shown}")


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
