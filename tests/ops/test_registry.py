"""Who serves an operation, and what is said when nobody does."""

from __future__ import annotations

import pytest

from atom.errors import NoBackend
from atom.ops import registry
from atom.ops.contracts import OPS
from atom.ops.registry import OpQuery


@pytest.fixture
def backends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two backends of our own, without modules to import."""
    monkeypatch.setattr(registry, "_state", registry._State())
    monkeypatch.setattr(registry, "BACKEND_MODULES", {"fast": (), "plain": (), "broken": ("no.x",)})
    monkeypatch.setattr(registry, "PREFERENCE", {"cpu": ("broken", "fast", "plain")})


@pytest.mark.parametrize("op", sorted(OPS))
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_reference_serves_every_operation(
    op: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "PREFERENCE", {device: ("reference",)})
    assert registry.candidates(OpQuery(op=op, device=device)) == [("reference", None)]


@pytest.mark.usefixtures("backends")
def test_the_first_that_accepts_serves() -> None:
    @registry.register("rms_norm", "fast", lambda q: None if q.size("K") % 8 == 0 else "K % 8")
    def fast() -> None: ...

    @registry.register("rms_norm", "plain")
    def plain() -> None: ...

    even, odd = (OpQuery(op="rms_norm", shape=(("K", k),)) for k in (64, 65))
    assert registry.select(even) is fast
    assert registry.select(odd) is plain
    assert registry.chosen() == {even: "fast", odd: "plain"}


@pytest.mark.usefixtures("backends")
def test_nobody_accepts_and_everyone_says_why() -> None:
    @registry.register("linear", "fast", lambda q: f"no {q.weight_format} here")
    def fast() -> None: ...

    with pytest.raises(NoBackend) as caught:
        registry.select(OpQuery(op="linear", weight_format="Q4_1"))
    message = str(caught.value)
    assert "\n" not in message
    for part in ("linear(", "broken: ModuleNotFoundError", "fast: no Q4_1 here", "plain: does not"):
        assert part in message


def test_a_backend_that_cannot_be_loaded_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.BACKEND_MODULES, "triton", ("no_such_module_here",))
    monkeypatch.setattr(registry._state, "loaded", {})
    assert registry.unusable("cuda") == {
        "triton": "ModuleNotFoundError: No module named 'no_such_module_here'"
    }
