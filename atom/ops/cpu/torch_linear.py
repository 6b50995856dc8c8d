"""Linears from torch alone, for machines where nothing can be compiled.

bf16 where the processor multiplies bf16, otherwise fbgemm's fp16 weights with float32 arithmetic.
GGUF blocks are dequantised into either form.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from atom.ops.contracts import GGUFWeight
from atom.ops.cpu.build import cpu_features
from atom.ops.reference.gguf import dequantize
from atom.ops.registry import OpQuery

_FP16_MAX = 65504.0


def _has_bf16() -> bool:
    return bool(cpu_features() & {"avx512_bf16", "amx_bf16"})


def _has_fbgemm() -> bool:
    return "fbgemm" in torch.backends.quantized.supported_engines


def describe() -> str:
    """What `pack` makes on this machine."""
    if _has_bf16():
        return "torch, bf16 linears"
    return "torch, fp16 linears of fbgemm" if _has_fbgemm() else "torch reference"


def declines(query: OpQuery) -> str | None:
    if query.dtype != "float32":
        return f"activations are float32 only, not {query.dtype}"
    if query.weight_format == "float32":
        return "float32 weights are multiplied as they are"
    if query.traceable and not _has_bf16():
        return "fbgemm's weights cannot be traced by torch.compile"
    if not _has_bf16() and not _has_fbgemm():
        return "this torch has no fbgemm and the processor no bf16"
    return None


class BF16Linear:
    """bf16 weights; activations are rounded to bf16, sums are float32."""

    __slots__ = ("in_features", "out_features", "weight")

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight.to(torch.bfloat16)
        self.out_features, self.in_features = weight.shape

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        out = F.linear(x.to(torch.bfloat16), self.weight).float()
        return out if bias is None else out.add_(bias)

    def dequantize(self) -> Tensor:
        return self.weight.float()


class FP16Linear:
    """fp16 weights in fbgemm's layout, float32 activations and arithmetic."""

    __slots__ = ("_packed", "in_features", "nbytes", "out_features")

    def __init__(self, weight: Tensor) -> None:
        self.out_features, self.in_features = weight.shape
        self.nbytes = 2 * weight.numel()
        self._packed: Any = torch.ops.quantized.linear_prepack_fp16(weight.float(), None)

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        out: Tensor = torch.ops.quantized.linear_dynamic_fp16(x.contiguous(), self._packed)
        return out if bias is None else out.add_(bias)

    def dequantize(self) -> Tensor:
        weight: Tensor = torch.ops.quantized.linear_unpack_fp16(self._packed)[0]
        return weight.float()


def pack(weight: Tensor | GGUFWeight) -> BF16Linear | FP16Linear | FP32Linear:
    dense = dequantize(weight) if isinstance(weight, GGUFWeight) else weight
    if _has_bf16():
        return BF16Linear(dense)
    if dense.float().abs().max() > _FP16_MAX:
        return FP32Linear(dense)
    return FP16Linear(dense)


class FP32Linear:
    """For the rare weight that fp16 cannot hold."""

    __slots__ = ("in_features", "out_features", "weight")

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight.float()
        self.out_features, self.in_features = weight.shape

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.linear(x, self.weight, bias)

    def dequantize(self) -> Tensor:
        return self.weight
