"""Operations as Triton kernels, for NVIDIA and ROCm."""

from __future__ import annotations

import functools
import importlib.util


@functools.cache
def is_installed() -> bool:
    """Whether Triton is there. A failure to import kernels where it is would be a fault of ours."""
    return importlib.util.find_spec("triton") is not None
