"""How many bytes a checkpoint stores its tensors in, by its quantisation, from the config alone."""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from atom.errors import ModelError
from atom.models.hf_config import HFConfig
from atom.models.inventory_types import EXPERTS, Tensors

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float8_e4m3fn": 1, "int64": 8}

_MX_GROUP = 32  # values that share one scale of a byte
_MX_BYTES = 0.5 + 1 / _MX_GROUP


def stored_dtype(config: HFConfig) -> str:
    """The dtype of tensors that are not quantised."""
    return config.dtype if config.dtype in DTYPE_BYTES else "bfloat16"


@dataclass(frozen=True, slots=True)
class Scheme:
    """`bits` of a quantised value. Scales: one of `scale_bytes` for each `block` (rows, columns).

    `fp4_experts`: routed experts are MXFP4 whatever the rest is; `only_experts`: the rest is not
    quantised. `skipped` are names, globs or regular expressions of modules left alone.
    """

    method: str
    words: str
    bits: int
    block: tuple[int, int]
    scale_bytes: int
    skipped: tuple[str, ...] = ()
    fp4_experts: bool = False
    only_experts: bool = False

    def bytes_of(self, tensor: Tensors, width: int) -> int:
        """`width`: bytes of a value that is not quantised."""
        if tensor.group == EXPERTS and self.fp4_experts:
            is_matrix = tensor.linear or len(tensor.shape) == 3
            return int(tensor.parameters * _MX_BYTES) if is_matrix else tensor.parameters * width
        if self.only_experts or not tensor.linear or is_skipped(tensor.name, self.skipped):
            return tensor.parameters * width
        n, k = tensor.shape
        rows, columns = self.block
        scales = math.ceil(n / (rows or n)) * math.ceil(k / (columns or k))
        return tensor.number * (n * k * self.bits // 8 + scales * self.scale_bytes)


def scheme_of(config: HFConfig) -> Scheme | None:
    """None where weights are not quantised, or in a way whose bytes are not known here; raises
    `ModelError` where the configuration makes no sense."""
    found = _settings(config)
    try:
        return _scheme(config, found)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        raise ModelError(
            f"{config.where}: quantization_config makes no sense: {str(found)[:160]}"
        ) from None


def _settings(config: HFConfig) -> dict[str, Any]:
    found = config.get("quantization_config") or {}
    if not isinstance(found, Mapping):
        raise ModelError(f"{config.where}: quantization_config must be an object, got {found!r}")
    return dict(found)


def _scheme(config: HFConfig, found: dict[str, Any]) -> Scheme | None:
    method = str(found.get("quant_method", ""))
    skipped = tuple(found.get("modules_to_not_convert") or found.get("ignore") or ())
    if method == "mxfp4":
        return Scheme(method, "MXFP4 experts", 0, (0, 0), 0, fp4_experts=True, only_experts=True)
    if method == "fp8":
        return _fp8(config, found, skipped)
    if method == "compressed-tensors":
        return _compressed(found, skipped)
    if method in ("awq", "gptq"):
        bits, group = int(found.get("bits") or 4), int(found.get("group_size") or 128)
        words = f"{method.upper()}, {bits} bits in groups of {group}"
        return Scheme(method, words, bits, (1, max(group, 0)), 2 + bits // 8, (*skipped, "gate"))
    return None


def _fp8(config: HFConfig, found: dict[str, Any], skipped: tuple[str, ...]) -> Scheme:
    size = found.get("weight_block_size")
    block = (int(size[0]), int(size[1])) if size else (0, 0)
    fp4 = config.get("expert_dtype") == "fp4"
    # Powers of two fit a byte, but only V4 stores them so; V3.1 and V3.2 keep float32.
    words = f"FP8 in blocks of {block[0]} x {block[1]}" if size else "FP8 per tensor"
    if fp4:
        words += ", FP4 experts"
    return Scheme("fp8", words, 8, block, 1 if fp4 else 4, skipped, fp4_experts=fp4)


def _compressed(found: dict[str, Any], skipped: tuple[str, ...]) -> Scheme | None:
    for group in (found.get("config_groups") or {}).values():
        weights = group.get("weights") or {}
        bits, size = int(weights.get("num_bits") or 8), int(weights.get("group_size") or 0)
        kind = f"{str(weights.get('type', 'int')).upper()}{bits}"
        words = f"{kind} in groups of {size}" if size else f"{kind} per channel"
        return Scheme("compressed-tensors", words, bits, (1, size), 2, skipped)
    return None


def is_skipped(name: str, skipped: Sequence[str]) -> bool:
    """Whether the module of tensor `name` is among those left alone."""
    module = name.rpartition(".")[0]
    for pattern in skipped:
        if pattern.startswith("re:"):
            found = re.match(pattern[3:], module) is not None
        elif "*" in pattern:
            found = fnmatch.fnmatch(module, pattern) or fnmatch.fnmatch(module, pattern + ".*")
        else:
            found = pattern in module.split(".") or f"{module}.".startswith(f"{pattern}.")
        if found:
            return True
    return False


# Architectures whose quantised safetensors are read, and how these are quantised.
LOADED: dict[str, tuple[str, ...]] = {"GptOssForCausalLM": ("mxfp4",)}


def quantisation_of_weights(config: HFConfig) -> str:
    """The method by which weights are quantised; "" if none is, though the KV cache may have
    scales."""
    found = _settings(config)
    method = str(found.get("quant_method", "unknown"))
    if not found:
        return ""
    if method == "compressed-tensors" and found.get("kv_cache_scheme"):
        return method if found.get("config_groups") else ""
    if method == "modelopt" and found.get("kv_cache_quant_algo"):
        return method if found.get("quant_algo") else ""
    return method


def why_not_loaded(config: HFConfig) -> str:
    """Why this version cannot read safetensors of this configuration; "" if it can."""
    method = quantisation_of_weights(config)
    if not method or method in LOADED.get(config.architecture, ()):
        return ""
    scheme = scheme_of(config)
    words = f"{method}: {scheme.words}" if scheme is not None and scheme.words else method
    return (
        f"quantised safetensors ({words}) are not supported yet: use a checkpoint of this model "
        "in bfloat16"
    )
