"""What a GPU engine does late: kernels specialised and device memory asked for after its start.

Each is a pause that a request pays for. On a machine without Triton or a GPU nothing is seen.
"""

from __future__ import annotations

import importlib
from collections import Counter
from typing import Any


class Late:
    """Counts from the moment it is made; `take` answers and starts again."""

    def __init__(self) -> None:
        self._kernels: Counter[str] = Counter()
        self._allocations = self._device_allocations()
        try:
            knobs: Any = importlib.import_module("triton").knobs
            knobs.runtime.jit_post_compile_hook = self._compiled
        except (ImportError, AttributeError):
            pass  # no Triton here, or one without this hook: nothing is counted

    def _compiled(self, *_: Any, fn: Any = None, **__: Any) -> None:
        self._kernels[str(getattr(fn, "name", fn)).rpartition(".")[2]] += 1

    @staticmethod
    def _device_allocations() -> int:
        import torch

        if not torch.cuda.is_available():
            return 0
        return int(torch.cuda.memory_stats().get("num_device_alloc", 0))

    def take(self) -> dict[str, Any]:
        now = self._device_allocations()
        found = {"kernels": dict(self._kernels), "device_allocations": now - self._allocations}
        self._kernels.clear()
        self._allocations = now
        return found
