"""Names in a trace for what our own code does: modules, parts of a step, labels.

Things are marked by exchanging their class for a subclass whose methods open a scope, and only
while something records: at any other time not even a flag is looked at. `Marks` knows what is to be
marked and under which name; what a scope is, whoever puts the marks on decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

_enter = torch._C._autograd._record_function_with_args_enter
_exit = torch._C._autograd._record_function_with_args_exit

Namer = Callable[["Marks", Any, tuple[Any, ...]], str]  # (marks, thing, arguments) -> scope
Methods = Mapping[str, Namer]
Opener = Callable[[str], AbstractContextManager[Any]]


class Scope:
    """`torch.profiler.record_function`, in a third of its time and without passing through torch's
    dispatcher, where modes that record operations would meet it."""

    __slots__ = ("_handle", "_name")

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        self._handle = _enter(self._name)

    def __exit__(self, *_: object) -> None:
        _exit(self._handle)


def op_scope(name: str) -> AbstractContextManager[Any]:
    """Shown as an operator is, for kernels that torch's dispatcher does not know."""
    scope: AbstractContextManager[Any] = torch._C._profiler._RecordFunctionFast(name)
    return scope


class Marks:
    """On or off. Things are kept alive, for they are known by their identity."""

    def __init__(self) -> None:
        self.open: Opener = Scope
        self.is_on = False
        self._names: dict[int, str] = {}
        self._things: list[tuple[Any, type, type]] = []  # with its own class and the marked one
        self._kinds: dict[tuple[type, tuple[str, ...]], type] = {}
        self._on_change: list[Callable[[bool], None]] = []
        self._innermost = ""

    def add(self, thing: Any, name: str, methods: Methods) -> None:
        """Open scopes round `methods` of `thing`, which is called `name` where one names it."""
        assert not self.is_on
        plain = type(thing)
        key = (plain, tuple(methods))
        if key not in self._kinds:
            self._kinds[key] = self._marked(plain, methods)
        self._things.append((thing, plain, self._kinds[key]))
        self._names[id(thing)] = name

    def call_on_change(self, change: Callable[[bool], None]) -> None:
        """`change(is_on)` whenever that changes."""
        self._on_change.append(change)

    def name_of(self, thing: Any) -> str:
        """Raises KeyError for what was not added."""
        return self._names[id(thing)]

    @property
    def innermost(self) -> str:
        """The scope that is open; "" for none."""
        return self._innermost

    def on(self, opener: Opener = Scope) -> None:
        assert not self.is_on
        self.open, self.is_on = opener, True
        for thing, _, marked in self._things:
            object.__setattr__(thing, "__class__", marked)
        for change in self._on_change:
            change(True)

    def off(self) -> None:
        """May be called when they are off."""
        if not self.is_on:
            return
        self.is_on = False
        for thing, plain, _ in self._things:
            object.__setattr__(thing, "__class__", plain)
        for change in self._on_change:
            change(False)

    def scope(self, name: str) -> AbstractContextManager[None]:
        """Round what is no method; for while they are on."""
        return _Within(self, name)

    @contextmanager
    def during(self, opener: Opener = Scope) -> Iterator[None]:
        self.on(opener)
        try:
            yield
        finally:
            self.off()

    def _marked(self, plain: type, methods: Methods) -> type:
        body: dict[str, Any] = {name: self._wrap(plain, name, methods[name]) for name in methods}
        # Its own name: a trace's or an error's reader knows the layer by it, not by this trick.
        names = {"__module__": plain.__module__, "__qualname__": plain.__qualname__}
        return type(plain.__name__, (plain,), {**body, **names, "__slots__": ()})

    def _wrap(self, plain: type, name: str, namer: Namer) -> Callable[..., Any]:
        method = getattr(plain, name)

        def run(thing: Any, *args: Any, **kwargs: Any) -> Any:
            return self._within(namer(self, thing, args), method, thing, *args, **kwargs)

        return run

    def wrapped(self, scope: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call` within `scope`, whether they are on or off."""
        return lambda *args: self._within(scope, call, *args)

    def _within(self, scope: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        outer = self._innermost
        if scope == outer:  # one method of a thing calls another
            return call(*args, **kwargs)
        self._innermost = scope
        try:
            with self.open(scope):
                return call(*args, **kwargs)
        finally:
            self._innermost = outer


class _Within:
    """A scope that is opened unless it is the innermost already."""

    __slots__ = ("_marks", "_name", "_opened", "_outer")

    def __init__(self, marks: Marks, name: str) -> None:
        self._marks, self._name = marks, name
        self._opened: AbstractContextManager[Any] | None = None

    def __enter__(self) -> None:
        self._outer = self._marks._innermost
        if self._name != self._outer:
            self._opened = self._marks.open(self._name)
            self._opened.__enter__()
            self._marks._innermost = self._name

    def __exit__(self, *error: Any) -> None:
        self._marks._innermost = self._outer
        if self._opened is not None:
            self._opened.__exit__(*error)


def own(marks: Marks, thing: Any, args: tuple[Any, ...]) -> str:
    """The thing's own name."""
    return marks.name_of(thing)


def fixed(name: str) -> Namer:
    """The same for every thing."""

    def namer(marks: Marks, thing: Any, args: tuple[Any, ...]) -> str:
        return name

    return namer
