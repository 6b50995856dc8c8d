from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def _clean_atom_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No ATOM_ variable of the tester's shell may decide a test."""
    for name in [n for n in os.environ if n.startswith("ATOM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
