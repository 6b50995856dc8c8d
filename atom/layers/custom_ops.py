"""Operators of the namespace `atom` that torch.compile sees as one opaque call each.

A layer is named by a string, because an operator cannot take an object. Only models built
`traceable` use them: eager mode calls the layer directly.
"""

from __future__ import annotations

import itertools
import weakref
from typing import Any

import torch
from torch import Tensor

from atom.parallel.state import ParallelState

_layers: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
_numbers = itertools.count()
_library = torch.library.Library("atom", "DEF")  # type: ignore[no-untyped-call]


def remember(layer: Any) -> str:
    """The name under which the operators find `layer`, as long as it lives."""
    name = f"{type(layer).__name__}.{next(_numbers)}"
    _layers[name] = layer
    return name


def put(name: str, layer: Any) -> None:
    """Let operators find `layer` under a name that `remember` gave to another one; it is to be kept
    alive by who puts it there."""
    assert name in _layers
    _layers[name] = layer


def _attention(qkv: Tensor, positions: Tensor, num_heads: int, layer: str) -> Tensor:
    out: Tensor = _layers[layer].step(qkv, positions)
    return out


def _attention_fake(qkv: Tensor, positions: Tensor, num_heads: int, layer: str) -> Tensor:
    return qkv.new_empty(qkv.shape[0], num_heads, qkv.shape[2])


def _mix(inputs: list[Tensor], positions: Tensor, width: int, layer: str) -> Tensor:
    out: Tensor = _layers[layer].step(inputs, positions)
    return out


def _mix_fake(inputs: list[Tensor], positions: Tensor, width: int, layer: str) -> Tensor:
    return inputs[0].new_empty(inputs[0].shape[0], width)


def _experts(x: Tensor, logits: Tensor, layer: str) -> Tensor:
    out: Tensor = _layers[layer].run(x, logits)
    return out


def _experts_fake(x: Tensor, logits: Tensor, layer: str) -> Tensor:
    return x.new_empty(x.shape)


class SumOverRanks:
    """`parallel.all_reduce` as an operator, for models that are traced."""

    def __init__(self, parallel: ParallelState) -> None:
        self._parallel = parallel
        self._handle = remember(self)

    def __call__(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.atom.all_reduce(x, self._handle)
        return out

    def run(self, x: Tensor) -> Tensor:
        """In place: what the operator does to a copy of its input."""
        return self._parallel.all_reduce(x)


def _all_reduce(x: Tensor, layer: str) -> Tensor:
    out: Tensor = _layers[layer].run(x.clone())
    return out


def _all_reduce_fake(x: Tensor, layer: str) -> Tensor:
    return torch.empty_like(x)


def _sparse_moe(
    x: Tensor, residual: Tensor | None, norm_weight: Tensor, eps: float, layer: str
) -> tuple[Tensor, Tensor]:
    out: tuple[Tensor, Tensor] = _layers[layer].run(x, residual, norm_weight, eps)
    return out


def _sparse_moe_fake(
    x: Tensor, residual: Tensor | None, norm_weight: Tensor, eps: float, layer: str
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape)


def _sampled_rows(x: Tensor, residual: Tensor, layer: str) -> tuple[Tensor, Tensor]:
    rows, rest = _layers[layer].run(x, residual)
    return rows.clone(), rest.clone()  # an operator may not return its inputs


def _sampled_rows_fake(x: Tensor, residual: Tensor, layer: str) -> tuple[Tensor, Tensor]:
    # As many rows as go in, at most: whoever runs a traced graph must count them anew.
    return x.new_empty(x.shape), residual.new_empty(residual.shape)


_library.define(  # type: ignore[no-untyped-call]
    "attention(Tensor qkv, Tensor positions, int num_heads, str layer) -> Tensor"
)
_library.impl("attention", _attention, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
torch.library.register_fake("atom::attention", _attention_fake, lib=_library)
_library.define(  # type: ignore[no-untyped-call]
    "mix(Tensor[] inputs, Tensor positions, int width, str layer) -> Tensor"
)
_library.impl("mix", _mix, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
torch.library.register_fake("atom::mix", _mix_fake, lib=_library)
_library.define("experts(Tensor x, Tensor logits, str layer) -> Tensor")  # type: ignore[no-untyped-call]
_library.impl("experts", _experts, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
torch.library.register_fake("atom::experts", _experts_fake, lib=_library)
_library.define("all_reduce(Tensor x, str layer) -> Tensor")  # type: ignore[no-untyped-call]
_library.impl("all_reduce", _all_reduce, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
torch.library.register_fake("atom::all_reduce", _all_reduce_fake, lib=_library)
_library.define(  # type: ignore[no-untyped-call]
    "sparse_moe(Tensor x, Tensor? residual, Tensor norm_weight, float eps, str layer)"
    " -> (Tensor, Tensor)"
)
_library.impl("sparse_moe", _sparse_moe, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
torch.library.register_fake("atom::sparse_moe", _sparse_moe_fake, lib=_library)
_library.define(  # type: ignore[no-untyped-call]
    "sampled_rows(Tensor x, Tensor residual, str layer) -> (Tensor, Tensor)"
)
_library.impl("sampled_rows", _sampled_rows, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
torch.library.register_fake("atom::sampled_rows", _sampled_rows_fake, lib=_library)
