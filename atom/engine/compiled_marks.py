"""Marks for a model under torch.compile (levels 1 and 2).

Marks that come and go would not do here: Dynamo's guards compare the layers' classes. With
--mark-trace, the layers' classes are exchanged for good, before anything is compiled, for ones
that tell Dynamo the scope of what it traces; what is made of that, `engine.compiler.scopes` names.
While nothing records, what runs is what would run without.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx import traceback

from atom.engine.compiler import scopes
from atom.engine.compiler.trace import SCOPE
from atom.engine.marks import Marks, Methods, op_scope
from atom.engine.module_marks import behind_operators, seen_by_dynamo

log = logging.getLogger("atom.runner")
Forward = Callable[[Tensor, Tensor], Tensor]


class _Names:
    """Of things that are marked for good."""

    def name_of(self, thing: Any) -> str:
        return str(thing.atom_scope)


_names = _Names()


class MarkedForward:
    """`forward(input_ids, positions)` of a model under torch.compile; `marks` are put on later."""

    def __init__(self, model: Any, make: Callable[..., Forward]) -> None:
        """`make(forward, backend=...)` compiles."""
        self._marks: Marks | None = None
        self._twins: list[scopes.Twin] = []
        self._unnamed: list[str] = []  # why there are none, of a compilation
        self._kinds: dict[tuple[type, str], Any] = {}
        for path, thing, methods in seen_by_dynamo(model):
            self._exchange(thing, path, methods)
        self._forward: Forward = make(model.forward, backend=self._backend)

    def __call__(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        return self._forward(input_ids, positions)

    def why_unnamed(self) -> str | None:
        """None: all that has been compiled is named."""
        if self._unnamed:
            return self._unnamed[0]
        return None if self._twins else "nothing was compiled"

    def mark(self, marks: Marks, model: nn.Module) -> None:
        """Scopes for what is compiled while `marks` are on, and for what operators run that Dynamo
        does not see into."""
        self._marks = marks
        for path, thing, methods in behind_operators(model):
            marks.add(thing, path, methods)

        def change(is_on: bool) -> None:
            for twin in self._twins:
                if is_on:
                    twin.on(marks.scope, op_scope)
                else:
                    twin.off()

        marks.call_on_change(change)

    def _exchange(self, thing: Any, path: str, methods: Methods) -> None:
        plain = type(thing)
        body = {name: self._wrapped(plain, name, namer) for name, namer in methods.items()}
        names = {"__module__": plain.__module__, "__qualname__": plain.__qualname__}
        marked = type(
            plain.__name__, (plain,), {**body, **names, "__slots__": (), "atom_scope": path}
        )
        object.__setattr__(thing, "__class__", marked)

    def _wrapped(self, plain: type, name: str, namer: Any) -> Any:
        key = (plain, name)
        if key not in self._kinds:
            method = getattr(plain, name)

            def run(thing: Any, *args: Any, **kwargs: Any) -> Any:
                if torch.compiler.is_compiling():
                    with traceback.annotate({SCOPE: namer(_names, thing, args)}):
                        return method(thing, *args, **kwargs)
                return self._eagerly(namer, method, thing, *args, **kwargs)

            self._kinds[key] = run
        return self._kinds[key]

    def _eagerly(self, namer: Any, method: Any, thing: Any, *args: Any, **kwargs: Any) -> Any:
        """Where Dynamo gave up, and the head, which is not compiled."""
        if self._marks is None or not self._marks.is_on:
            return method(thing, *args, **kwargs)
        with self._marks.scope(namer(_names, thing, args)):
            return method(thing, *args, **kwargs)

    def _backend(self, graph: fx.GraphModule, inputs: list[Any]) -> Any:
        """Inductor. Not from its caches, whose code may be of a model that has no names or others:
        nodes' names are no part of their keys."""
        from torch._functorch import config as functorch
        from torch._inductor.compile_fx import compile_fx

        with functorch.patch(enable_autograd_cache=False), scopes.noting() as written:
            compiled = compile_fx(graph, inputs, config_patches={"fx_graph_cache": False})
        self._name(written)
        return compiled

    def _name(self, written: scopes.Written) -> None:
        made: list[scopes.Twin] = []
        why = next((f"{type(error).__name__}: {error}" for error in written.failures), None)
        try:
            found = [scopes.twin_of(module) for module in written.modules]
            made = [twin for twin in found if twin is not None]
        except Exception as error:  # code of a kind not known here: it runs all the same
            why = f"{type(error).__name__}: {error}"
        if why is None and not made:
            why = "no kernel has a node that has a module"
        if why is not None:
            self._unnamed.append(f"torch {torch.__version__}: {why}")
            if self._marks is not None:
                log.warning(
                    "mark_trace: what was compiled now has no names (%s)", self._unnamed[-1]
                )
        self._twins += made
        if self._marks is not None and self._marks.is_on:  # compiled while a profile records
            for twin in made:
                twin.on(self._marks.scope, op_scope)
