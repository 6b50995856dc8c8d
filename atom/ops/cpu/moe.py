"""Experts through the native library: each one's two matrices packed as any linear's.

Weights are read as they are stored. bfloat16 takes a third to a sixth of the time that products of
torch need, which convert it to float32 each time (one thread with AMX, 1536 x 2048, 1 to 32 rows).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from atom.ops.contracts import GatedActivation
from atom.ops.cpu import limits
from atom.ops.cpu.elementwise import silu_and_mul
from atom.ops.cpu.linear import NativeLinear
from atom.ops.reference import moe as reference
from atom.ops.reference.moe import gated
from atom.ops.registry import OpQuery


class NativeExperts:
    """Of contracts.PackedExperts. x is float32."""

    __slots__ = ("_act", "_b2", "_b13", "_first", "_second")

    def __init__(
        self,
        w13: Tensor,
        w2: Tensor,
        act: GatedActivation,
        b13: Tensor | None,
        b2: Tensor | None,
    ) -> None:
        self._first = [NativeLinear(matrix) for matrix in w13]
        self._second = [NativeLinear(matrix) for matrix in w2]
        self._act, self._b13, self._b2 = act, b13, b2

    @property
    def nbytes(self) -> int:
        return sum(linear.nbytes for linear in (*self._first, *self._second))

    def __call__(self, x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        chosen = ids.flatten()
        order = chosen.argsort(stable=True)  # pairs by expert, those of none first
        counts = torch.bincount(chosen[chosen >= 0], minlength=len(self._first)).tolist()
        order = order[len(order) - sum(counts) :]
        tokens = order // ids.shape[1]
        rows, start = x[tokens], 0
        for expert, count in enumerate(counts):
            if count:
                here = slice(start, start + count)
                rows[here] = self._run(expert, rows[here])
                start += count
        out = torch.zeros_like(x)
        return out.index_add_(0, tokens, rows * weights.flatten()[order].unsqueeze(1))

    def _run(self, expert: int, x: Tensor) -> Tensor:
        hidden = self._first[expert](x, None if self._b13 is None else self._b13[expert])
        hidden = silu_and_mul(hidden) if self._act.is_plain else gated(hidden, self._act)
        return self._second[expert](hidden, None if self._b2 is None else self._b2[expert])


class _FusedExperts:
    """contracts.PackingExperts."""

    pack = NativeExperts

    def __call__(self, *arguments: Any) -> Tensor:
        return reference.fused_experts(*arguments)


fused_experts = _FusedExperts()


def declines(query: OpQuery) -> str | None:
    if query.weight_format == "mxfp4":
        return "MXFP4 is dequantised first"
    # Behind an operator that tracers do not look into, so that they may be native all the same.
    return limits.linear(query)
