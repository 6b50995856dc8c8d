"""Fixtures that several rooms share."""

from __future__ import annotations

from pathlib import Path

import pytest

from atom.models.embedded import embedded_gguf as provide_embedded_gguf


@pytest.fixture(scope="session")
def embedded_gguf() -> Path:
    """The embedded model's GGUF file; fetched into atom's cache the first time."""
    return provide_embedded_gguf()
