"""Rotary position embedding: the tables of angles, and the layer that applies them.

Scalings follow Hugging Face `transformers` (`modeling_rope_utils`), whose names the configs use.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from atom.errors import ModelError
from atom.layers.build import BuildContext

Frequencies = tuple[Tensor, float]  # inverse frequencies [R/2] float32, factor of cos and sin


def _plain(base: float, size: int) -> Tensor:
    return 1.0 / base ** (torch.arange(0, size, 2, dtype=torch.int64).float() / size)


def _default(base: float, size: int, scaling: Mapping[str, Any]) -> Frequencies:
    return _plain(base, size), 1.0


def _linear(base: float, size: int, scaling: Mapping[str, Any]) -> Frequencies:
    return _plain(base, size) / scaling["factor"], 1.0


def _llama3(base: float, size: int, scaling: Mapping[str, Any]) -> Frequencies:
    """Long waves are slowed by `factor`, short ones kept, those between blended."""
    inv = _plain(base, size)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * inv / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return inv / scaling["factor"] * (1 - kept) + inv * kept, 1.0


def _yarn_scale(factor: float, mscale: float = 1.0) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _yarn(base: float, size: int, scaling: Mapping[str, Any]) -> Frequencies:
    factor = scaling["factor"]
    original = scaling["original_max_position_embeddings"]

    def dimension(turns: float) -> float:  # the channel that turns so often within `original`
        return size * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

    low = dimension(scaling.get("beta_fast") or 32)
    high = dimension(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    if low == high:
        high += 0.001  # a ramp of no width
    ramp = ((torch.arange(size // 2).float() - low) / (high - low)).clamp(0.0, 1.0)
    inv = _plain(base, size)
    attention = scaling.get("attention_factor")
    if attention is None:
        mscale, all_dim = scaling.get("mscale"), scaling.get("mscale_all_dim")
        if mscale and all_dim:
            attention = _yarn_scale(factor, mscale) / _yarn_scale(factor, all_dim)
        else:
            attention = _yarn_scale(factor)
    return inv / factor * ramp + inv * (1 - ramp), float(attention)


# `dynamic` differs from `default` only beyond the trained length, which the table's size forbids.
_KINDS: dict[str, Callable[[float, int, Mapping[str, Any]], Frequencies]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _default,
    "llama3": _llama3,
    "yarn": _yarn,
}


def rope_frequencies(base: float, size: int, scaling: Mapping[str, Any] | None) -> Frequencies:
    """For `size` rotated channels. `scaling` is a config's `rope_scaling`."""
    scaling, kind = scaling or {}, rope_type(scaling)
    if kind not in _KINDS:
        raise ModelError(f"rope_scaling type {kind!r} is not supported: {', '.join(_KINDS)} are")
    try:
        return _KINDS[kind](base, size, scaling)
    except KeyError as missing:
        raise ModelError(f"rope_scaling of type {kind} lacks {missing}") from None


def rope_type(scaling: Mapping[str, Any] | None) -> str:
    scaling = scaling or {}
    return str(scaling.get("rope_type") or scaling.get("type") or "default")


def _check_length(
    build: BuildContext, scaling: Mapping[str, Any] | None, trained_length: int
) -> None:
    if rope_type(scaling) == "dynamic" and build.max_positions > trained_length:
        raise ModelError(
            f"max_model_len {build.max_positions} is more than the {trained_length} positions "
            "that rope_scaling type dynamic supports here: choose a smaller max_model_len"
        )


def cos_sin_table(
    build: BuildContext, base: float, size: int, scaling: Mapping[str, Any] | None
) -> Tensor:
    """[max_positions, size] float32: cos then sin. Layers that ask for the same share one."""
    key = (base, size, repr(scaling))
    if key not in build.tables:
        inv, factor = rope_frequencies(base, size, scaling)
        angles = torch.outer(torch.arange(build.max_positions).float(), inv)
        table = torch.cat((angles.cos(), angles.sin()), dim=-1) * factor
        build.tables[key] = table.to(build.device)
    return build.tables[key]


class RotaryEmbedding:
    """Rotates q [T, Hq, D] and k [T, Hk, D] in place by `positions` [T]; returns both."""

    __slots__ = ("_kernel", "cos_sin", "interleaved", "size")

    def __init__(
        self,
        build: BuildContext,
        head_dim: int,
        *,
        base: float,
        scaling: Mapping[str, Any] | None = None,
        partial_factor: float = 1.0,
        interleaved: bool = False,
        trained_length: int,
    ) -> None:
        _check_length(build, scaling, trained_length)
        size = int(head_dim * partial_factor)
        self.size = size
        self.cos_sin = cos_sin_table(build, base, size, scaling)
        self.interleaved = interleaved
        self._kernel = build.select("rotary", R=size, D=head_dim, interleaved=int(interleaved))

    def __call__(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        out: tuple[Tensor, Tensor] = self._kernel(q, k, positions, self.cos_sin, self.interleaved)
        return out
