"""What every layer is told when it is built: device, types, parallel layout, choice of kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from atom.layers.custom_ops import SumOverRanks
from atom.ops import registry
from atom.ops.contracts import GGUFWeight, PackedLinear
from atom.ops.reference.gguf import dequantize
from atom.ops.registry import OpQuery
from atom.parallel.state import SINGLE, ParallelState


def dtype_name(dtype: torch.dtype) -> str:
    """torch.float32 -> "float32"."""
    return str(dtype).removeprefix("torch.")


def storage_name(weight: Tensor | GGUFWeight) -> str:
    """The `weight_format` of a query: GGUF type or dtype."""
    return weight.qtype if isinstance(weight, GGUFWeight) else dtype_name(weight.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildContext:
    """One per model. `dtype` is the activations'. `weight_dtype` None keeps dense weights as they
    are stored; without `keep_packed`, GGUF blocks become dense."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    weight_dtype: torch.dtype | None = None
    keep_packed: bool = True
    kv_dtype: torch.dtype = torch.float32
    block_size: int = 16
    max_positions: int = 4096  # rows of the rotary tables
    parallel: ParallelState = SINGLE
    traceable: bool = False  # built for torch.compile: attention and MoE are custom operators
    selects_rows: bool = False  # the last block computes only rows that are sampled
    mtp: bool = False  # with the multi-token-prediction layers of the checkpoint
    tables: dict[Any, Tensor] = field(default_factory=dict)  # rotary tables, shared by layers

    def select(
        self,
        op: str,
        *,
        weight_format: str = "",
        kv: bool = False,
        opaque: bool = False,
        variant: str = "",
        **shape: int,
    ) -> Callable[..., Any]:
        """The kernel of `op`. `kv`: it touches the cache. `opaque`: never seen by a tracer."""
        return self.choose(
            op, weight_format=weight_format, kv=kv, opaque=opaque, variant=variant, **shape
        )[0]

    def choose(
        self,
        op: str,
        *,
        weight_format: str = "",
        kv: bool = False,
        opaque: bool = False,
        variant: str = "",
        **shape: int,
    ) -> tuple[Callable[..., Any], str]:
        """As `select`, with the name of the backend."""
        query = self._query(op, weight_format, kv, opaque, shape, variant)
        return registry.select(query), registry.chosen()[query]

    def fused(
        self,
        op: str,
        *,
        weight_format: str = "",
        kv: bool = False,
        opaque: bool = False,
        variant: str = "",
        **shape: int,
    ) -> Callable[..., Any] | None:
        """The kernel of an operation that others can compose; None where no backend fuses it."""
        return registry.select_fused(self._query(op, weight_format, kv, opaque, shape, variant))

    def _query(
        self,
        op: str,
        weight_format: str,
        kv: bool,
        opaque: bool,
        shape: dict[str, int],
        variant: str,
    ) -> OpQuery:
        return OpQuery(
            op=op,
            device=self.device.type,
            dtype=dtype_name(self.dtype),
            weight_format=weight_format,
            kv_dtype=dtype_name(self.kv_dtype) if kv else "",
            shape=tuple(shape.items()),
            traceable=self.traceable and not opaque,
            variant=variant,
        )

    def all_reduce(self) -> Callable[[Tensor], Tensor] | None:
        """Sums a layer's result over the ranks, its argument consumed; None with one rank."""
        if self.parallel.tp_size == 1:
            return None
        return SumOverRanks(self.parallel) if self.traceable else self.parallel.all_reduce

    def pack(self, weight: Tensor | GGUFWeight) -> PackedLinear:
        """`weight` on the device, in the form of the kernel that serves it."""
        weight = self.prepare(weight)
        kernel, _ = self.choose_linear(weight)
        packed: PackedLinear = kernel(weight)
        return packed

    def prepare(self, weight: Tensor | GGUFWeight) -> Tensor | GGUFWeight:
        """`weight` in a format that a fast kernel reads, else dense in the activations' dtype, so
        that nothing is converted when the model runs."""
        weight = self.adopt(weight)
        return self.dense(weight) if self.choose_linear(weight)[1] == "reference" else weight

    def adopt(self, weight: Tensor | GGUFWeight) -> Tensor | GGUFWeight:
        """A weight as the model keeps it, on the device, before any kernel packs it."""
        if isinstance(weight, Tensor):
            return weight.to(self.device, self.storage_dtype(weight.dtype))
        if not self.keep_packed:
            return self.dense(weight)
        return GGUFWeight(weight.qtype, weight.data.to(self.device), weight.shape)

    def storage_dtype(self, stored: torch.dtype) -> torch.dtype:
        """Of a dense weight: as stored, but never wider than the activations."""
        if self.weight_dtype is not None:
            return self.weight_dtype
        return self.dtype if stored == torch.float32 else stored

    def choose_linear(self, weight: Tensor | GGUFWeight) -> tuple[Callable[..., Any], str]:
        """Who packs `weight`, as it is, and the backend's name."""
        n, k = weight.shape
        return self.choose("linear", weight_format=storage_name(weight), N=n, K=k)

    def dense(self, weight: Tensor | GGUFWeight) -> Tensor:
        """`weight` as a dense tensor of the activations' dtype on the device."""
        values = dequantize(weight) if isinstance(weight, GGUFWeight) else weight
        return values.to(self.device, self.dtype)
