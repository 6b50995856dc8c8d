"""A model seen as a tree of named things: where each tensor hangs, and a digest of the whole.

The digest covers whatever may decide the traced graph: classes, functions, numbers, and the types
and shapes of tensors. It leaves out what is behind an opaque operator, which no graph shows.
"""

from __future__ import annotations

import functools
import hashlib
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from atom.layers.build import BuildContext

Path = tuple[str | int, ...]  # attribute names, keys of dictionaries, indices of sequences

_SCALARS = (int, float, str, bool, type(None), torch.dtype, torch.device, slice)
# nn.Module's own bookkeeping; `_modules` and `_parameters` hold what counts.
_BOOKKEEPING = frozenset(vars(nn.Module())) - {"_modules", "_parameters", "_buffers"}
_HANDLE = "_handle"  # the name of a layer behind an opaque operator: new in every process


class Structure:
    """What a walk over `model` found."""

    def __init__(self, model: Any) -> None:
        self.tensors: dict[int, Path] = {}  # by id
        self.opaque: dict[str, Path] = {}  # what is behind operators, by handle
        self._seen: dict[int, Path] = {}
        self._hidden = 0  # how many operators deep
        self._digest = hashlib.sha256()
        self._walk(model, ())
        self.digest = self._digest.hexdigest()

    def path_of(self, tensor: Tensor) -> Path | None:
        return self.tensors.get(id(tensor))

    def _note(self, *facts: object) -> None:
        if not self._hidden:
            self._digest.update(repr(facts).encode())

    def _walk(self, thing: Any, path: Path) -> None:
        if isinstance(thing, _SCALARS):
            self._note(path, thing)
        elif id(thing) in self._seen:
            self._note(path, "again", self._seen[id(thing)])
        else:
            self._seen[id(thing)] = path
            self._enter(thing, path)

    def _enter(self, thing: Any, path: Path) -> None:
        if isinstance(thing, Tensor):
            self.tensors[id(thing)] = path
            self._note(path, thing.dtype, tuple(thing.shape), thing.stride(), str(thing.device))
            return
        self._note(path, _kind(thing))
        if isinstance(thing, BuildContext):
            self._note(thing.device, thing.dtype, thing.parallel.tp_rank, thing.parallel.tp_size)
            return
        handle = getattr(thing, _HANDLE, "")
        if handle:
            self.opaque[handle] = path
        self._hidden += bool(handle)
        for name, child in _children(thing):
            self._walk(child, (*path, name))
        self._hidden -= bool(handle)


def _kind(thing: Any) -> str:
    """A name that says what `thing` is, the same in every process."""
    if isinstance(thing, torch._ops.OpOverload):
        return str(thing)
    named = thing if isinstance(thing, types.FunctionType | type) else type(thing)
    return f"{named.__module__}.{named.__qualname__}"


def _children(thing: Any) -> Iterator[tuple[str | int, Any]]:
    match thing:
        case list() | tuple():
            yield from enumerate(thing)
        case dict():
            yield from ((key, value) for key, value in thing.items() if isinstance(key, str))
        case functools.partial():
            yield from (("func", thing.func), ("args", thing.args), ("keywords", thing.keywords))
        case types.MethodType():
            yield "__self__", thing.__self__
        case _ if isinstance(thing, nn.Module) or type(thing).__module__.startswith("atom."):
            for name in _attributes(thing):
                yield name, getattr(thing, name, None)


def _attributes(thing: Any) -> list[str]:
    names = [name for kind in type(thing).__mro__ for name in getattr(kind, "__slots__", ())]
    names += [name for name in getattr(thing, "__dict__", ()) if name not in _BOOKKEEPING]
    return [name for name in names if not name.startswith("__")]


def follow(model: Any, path: Path) -> Any:
    """The thing at `path`, as a walk named it. Raises LookupError or AttributeError."""
    for name in path:
        inside = isinstance(model, dict | list | tuple)
        model = model[name] if inside else getattr(model, str(name))
    return model
