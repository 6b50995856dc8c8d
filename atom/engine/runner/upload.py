"""Small host arrays to the device in one copy per step.

`Upload.add` copies an array into a staging buffer and answers the device tensor at once; its
content is valid, in stream order, after `send`. The staging buffer is fresh for each step, made
when something is added: pinned memory comes from torch's caching allocator, which hands a block out
again only when the copy from it has finished, so the host never overwrites what the device still
reads.

On CPU nothing is copied: the tensors share the arrays' memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_ALIGN = 16
_CAPACITY = 1 << 16  # of a staging buffer, unless one array is larger
_DTYPES = {
    np.dtype(np.int32): torch.int32,
    np.dtype(np.int64): torch.int64,
    np.dtype(np.float32): torch.float32,
    np.dtype(np.float64): torch.float64,
    np.dtype(np.bool_): torch.bool,
}


class Upload:
    """The arrays of one step; used once."""

    __slots__ = ("_chunks", "_device", "_free", "_host", "_offset", "_target")

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._chunks: list[tuple[Tensor, Tensor]] = []  # staging, target
        self._offset = self._free = 0
        self._host: NDArray[np.uint8]
        self._target: Tensor

    def _open(self, capacity: int) -> None:
        staging = torch.empty(capacity, dtype=torch.uint8, pin_memory=True)
        target = torch.empty(capacity, dtype=torch.uint8, device=self._device)
        self._chunks.append((staging, target))
        self._host, self._target = staging.numpy(), target
        self._offset, self._free = 0, capacity

    def add(self, array: NDArray[Any]) -> Tensor:
        """The tensor on the device that will hold `array` (its shape and dtype)."""
        if self._device.type == "cpu":
            return torch.from_numpy(array)
        size = -(-array.nbytes // _ALIGN) * _ALIGN
        if size > self._free:
            self._open(max(size, _CAPACITY))
        start, stop = self._offset, self._offset + array.nbytes
        self._host[start:stop] = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
        self._offset += size
        self._free -= size
        return self._target[start:stop].view(_DTYPES[array.dtype]).view(array.shape)

    def send(self) -> None:
        """Start the copies on the current stream; returns at once."""
        for staging, target in self._chunks:
            target.copy_(staging, non_blocking=True)
