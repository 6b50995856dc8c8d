"""Fixtures that several rooms share."""

from __future__ import annotations

import contextlib
import importlib
import os
from pathlib import Path

import pytest
import torch

from atom.models.embedded import embedded_gguf as provide_embedded_gguf

# Without a GPU, Triton's kernels run under its interpreter. That is settled when a kernel is
# declared, and any test may be the first to import one, so it is settled here.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# torch's compiler imports setuptools when it first compiles. Once, under parallel tests, that
# failed on a distutils which was there already (Python 3.11). It was not seen again; importing
# setuptools first should rule it out.
with contextlib.suppress(ImportError):
    importlib.import_module("setuptools")


@pytest.fixture(scope="session")
def embedded_gguf() -> Path:
    """The embedded model's GGUF file; fetched into atom's cache the first time."""
    return provide_embedded_gguf()
