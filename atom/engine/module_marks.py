"""The model's modules by their paths: what is opened round which method.

A scope's name is the path of the module that computes, `model.layers.3.self_attn.o_proj`; where one
kernel does the work of several, their paths joined by "+". Scopes nest; the innermost counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from atom.engine.marks import Marks, Methods, own
from atom.layers import custom_ops
from atom.layers.activation import SiluAndMul
from atom.layers.attention import Attention
from atom.layers.embedding import ParallelLMHead
from atom.layers.linear import LinearBase, MergedColumnParallelLinear
from atom.layers.mixer import Mixer
from atom.layers.moe import FusedMoE, SparseMoE
from atom.layers.norm import RMSNorm
from atom.layers.rotary import RotaryEmbedding
from atom.layers.rows import SampledRows
from atom.layers.weights import Layer


def _after_norm(marks: Marks, linear: Any, args: tuple[Any, ...]) -> str:
    """The norm has a scope of its own where it is a kernel of its own."""
    name = marks.name_of(linear)
    return name if linear._fused is None else f"{marks.name_of(args[0])}+{name}"


def _after_norm_gated(marks: Marks, linear: Any, args: tuple[Any, ...]) -> str:
    name = marks.name_of(linear)
    if linear._fused is None:
        return name
    return f"{marks.name_of(args[0])}+{name}+{marks.name_of(args[1])}"


def _sparse_moe(marks: Marks, moe: Any, args: tuple[Any, ...]) -> str:
    if moe._fused is None:
        return marks.name_of(moe)
    return "+".join(marks.name_of(part) for part in (args[0], moe.gate, moe.experts))


_FORWARD: Methods = {"forward": own, "__call__": own}
_LINEAR: Methods = {**_FORWARD, "after_norm": _after_norm}
# By the most special class first.
_METHODS: tuple[tuple[type, Methods], ...] = (
    (RMSNorm, {**_FORWARD, "add": own}),
    (MergedColumnParallelLinear, {**_LINEAR, "after_norm_gated": _after_norm_gated}),
    (LinearBase, _LINEAR),
    (Attention, {**_FORWARD, "step": own, "run": own}),
    (Mixer, {**_FORWARD, "step": own, "run": own}),
    (FusedMoE, {**_FORWARD, "run": own, "sum": own}),
    (SparseMoE, {"forward": _sparse_moe, "__call__": _sparse_moe}),
    (Layer, _FORWARD),
    (SiluAndMul, {"__call__": own}),
    (RotaryEmbedding, {"__call__": own}),
    (SampledRows, {"__call__": own, "run": own}),
)


def methods_of(thing: Any) -> Methods | None:
    """None: nothing that computes by itself."""
    return next((methods for kind, methods in _METHODS if isinstance(thing, kind)), None)


def _is_block(thing: Any) -> bool:
    """A module of modules, with a forward of its own."""
    return isinstance(thing, nn.Module) and type(thing).forward is not nn.Module.forward


def _blocks(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for path, module in model.named_modules():
        if path and methods_of(module) is None and _is_block(module):
            yield path, module


def computing(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """What computes, by path; also what is no module, as an activation."""
    seen: set[int] = set()
    for path, module in model.named_modules():
        inside = ((f"{path}.{name}".lstrip("."), thing) for name, thing in vars(module).items())
        for name, thing in ((path, module), *inside):
            if id(thing) not in seen and not name.rpartition(".")[2].startswith("_"):
                seen.add(id(thing))
                if methods_of(thing) is not None:
                    yield name, thing


def mark_modules(marks: Marks, model: nn.Module) -> None:
    """Whatever computes, and round it the blocks, for what they do between their parts."""
    for path, thing in computing(model):
        methods = methods_of(thing)
        assert methods is not None
        marks.add(thing, path, methods)
    for path, block in _blocks(model):
        marks.add(block, path, _FORWARD)


_SEEN = ("forward", "__call__", "add", "after_norm", "after_norm_gated")  # not behind operators


def seen_by_dynamo(model: nn.Module) -> Iterator[tuple[str, Any, Methods]]:
    """(path, thing, methods) of what torch.compile traces, of the head, and of the attention that
    runs between the pieces of a graph."""
    for path, thing in computing(model):
        methods = methods_of(thing)
        assert methods is not None
        if not isinstance(thing, RotaryEmbedding):
            names = (*_SEEN, "run") if isinstance(thing, (Attention, Mixer)) else _SEEN
            yield path, thing, {name: methods[name] for name in methods if name in names}
    yield from ((path, block, _FORWARD) for path, block in _blocks(model))


def behind_operators(model: nn.Module) -> Iterator[tuple[str, Any, Methods]]:
    """As above, of what runs within an opaque operator and is not the operator's whole work."""
    for path, thing in computing(model):
        if isinstance(thing, RotaryEmbedding):
            yield path, thing, {"__call__": own}


def mark_around_dynamo(marks: Marks, model: nn.Module) -> None:
    """What can be marked of a model under torch.compile, whose guards compare the layers' classes:
    what stands behind opaque operators, and the head, which is not compiled."""
    stand_ins: dict[str, tuple[Any, Any]] = {}
    for path, thing in computing(model):
        if isinstance(thing, ParallelLMHead):
            marks.add(thing, path, _FORWARD)
        for behind in (thing, getattr(thing, "_sum", None)):
            handle = getattr(behind, "_handle", "")
            if handle:
                name = _behind_operator(thing, path)
                stand_ins[handle] = (behind, _StandIn(marks, name, behind))

    def change(is_on: bool) -> None:
        for handle, pair in stand_ins.items():
            custom_ops.put(handle, pair[is_on])

    marks.call_on_change(change)


def _behind_operator(thing: Any, path: str) -> str:
    """The norm is not told which it is: its weight alone is handed over."""
    return f"{path}.gate+{path}.experts" if isinstance(thing, SparseMoE) else path


class _StandIn:
    """Has the methods that operators call."""

    def __init__(self, marks: Marks, name: str, thing: Any) -> None:
        for method in ("step", "run"):
            if hasattr(thing, method):
                setattr(self, method, marks.wrapped(name, getattr(thing, method)))
