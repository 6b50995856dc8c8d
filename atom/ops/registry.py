"""Operations and their implementations: selection happens once, when the model is built.

`atom.ops.contracts` states each operation (shapes, dtypes, layout). A backend registers a
factory with the condition under which it can serve; `select` asks the backends in order of
preference and, when none accepts, says which were asked and why each declined.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from atom.errors import NoBackend

F = TypeVar("F", bound=Callable[..., Any])

# A backend's modules are imported on first use; importing one registers its implementations.
BACKEND_MODULES: dict[str, tuple[str, ...]] = {
    "cpu": ("atom.ops.cpu.kernels",),
    "triton": ("atom.ops.triton.kernels",),
    "reference": ("atom.ops.reference.kernels",),
}
# Preference by device type; the first that accepts serves.
PREFERENCE: dict[str, tuple[str, ...]] = {
    "cpu": ("cpu", "reference"),
    "cuda": ("triton", "reference"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class OpQuery:
    """What the model asks of an operation. `shape` holds the operation's static sizes by name."""

    op: str
    device: str = "cpu"  # torch device type
    dtype: str = "float32"  # of the activations
    weight_format: str = ""  # linear only: float32, bfloat16, float16, Q4_1, Q8_0, ...
    kv_dtype: str = ""
    shape: tuple[tuple[str, int], ...] = ()
    traceable: bool = False  # must be safe under torch.compile
    variant: str = ""  # what is asked beyond the plain operation, in its contract's words

    def size(self, name: str) -> int:
        return dict(self.shape)[name]

    def __str__(self) -> str:
        parts = [self.device, self.dtype, self.weight_format, self.kv_dtype]
        parts += [f"{k}={v}" for k, v in self.shape] + [self.variant]
        return f"{self.op}({', '.join(p for p in parts if p)})"


@dataclass(frozen=True, slots=True)
class Implementation:
    op: str
    backend: str
    function: Callable[..., Any]
    declines: Callable[[OpQuery], str | None]  # None: accepts; else why not
    traced: Callable[..., Any] | None = None  # what a traceable query gets in its place
    variants: frozenset[str] | None = frozenset({""})  # that it serves; None: all

    def why_not(self, query: OpQuery) -> str | None:
        if self.variants is not None and query.variant not in self.variants:
            return f"does not serve {query.variant!r}"
        return self.declines(query)


@dataclass(slots=True)
class _State:
    table: dict[tuple[str, str], Implementation] = field(default_factory=dict)
    loaded: dict[str, str | None] = field(default_factory=dict)  # backend -> why it is unusable
    chosen: dict[OpQuery, str] = field(default_factory=dict)


_state = _State()


def _accepts_all(_: OpQuery) -> str | None:
    return None


def register(
    op: str,
    backend: str,
    declines: Callable[[OpQuery], str | None] = _accepts_all,
    traced: Callable[..., Any] | None = None,
    variants: frozenset[str] | None = frozenset({""}),
) -> Callable[[F], F]:
    """Decorator: the function serves `op` on `backend` for the queries it does not decline.

    `variants` are those it serves; None: all. `traced` is its form for torch.compile (a custom
    operator), where the function itself cannot be traced.
    """

    def decorate(function: F) -> F:
        _state.table[op, backend] = Implementation(
            op, backend, function, declines, traced, variants
        )
        return function

    return decorate


def _load(backend: str) -> str | None:
    """Import a backend's modules once; returns why it is unusable, or None."""
    if backend not in _state.loaded:
        try:
            for module in BACKEND_MODULES[backend]:
                importlib.import_module(module)
            _state.loaded[backend] = None
        except (ImportError, OSError, RuntimeError) as error:
            _state.loaded[backend] = f"{type(error).__name__}: {error}".splitlines()[0]
    return _state.loaded[backend]


def candidates(query: OpQuery) -> list[tuple[str, str | None]]:
    """Every backend asked for `query`, with None if it accepts or the reason it declines."""
    answers: list[tuple[str, str | None]] = []
    for backend in PREFERENCE[query.device]:
        unusable = _load(backend)
        implementation = _state.table.get((query.op, backend))
        if unusable is not None:
            answers.append((backend, unusable))
        elif implementation is None:
            answers.append((backend, "does not implement it"))
        else:
            answers.append((backend, implementation.why_not(query)))
    return answers


def select(query: OpQuery) -> Callable[..., Any]:
    """The implementation that serves `query`; raises `NoBackend` with every reason."""
    asked = candidates(query)
    for backend, reason in asked:
        if reason is None:
            _state.chosen[query] = backend
            chosen = _state.table[query.op, backend]
            traced = chosen.traced if query.traceable else None
            return chosen.function if traced is None else traced
    raise NoBackend(f"{query}: " + "; ".join(f"{name}: {why}" for name, why in asked))


def select_fused(query: OpQuery) -> Callable[..., Any] | None:
    """As `select`, for an operation that the caller can also compose of others: None if no backend
    fuses it."""
    if all(reason is not None for _, reason in candidates(query)):
        return None
    return select(query)


def unusable(device: str) -> dict[str, str]:
    """Backends of `device` ("cpu" or "cuda") that cannot be loaded here, and why."""
    reasons = {backend: _load(backend) for backend in PREFERENCE[device]}
    return {backend: why for backend, why in reasons.items() if why is not None}


def chosen() -> dict[OpQuery, str]:
    """What `select` has answered in this process."""
    return dict(_state.chosen)
