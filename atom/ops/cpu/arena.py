"""Memory of a recorded program: intermediate results that share buffers as their lives allow."""

from __future__ import annotations

import math
import weakref

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_ALIGN = 64


class Arena:
    """Tensors during a recording; the memory stays as long as the arena.

    A tensor's memory is reused as soon as the last view of it is gone, which is how the recorded
    operations will use it as well: the recording calls them in the order in which they will run.
    Pages are real only once a run touches them.
    """

    def __init__(self) -> None:
        self._chunks: list[NDArray[np.uint8]] = []
        self._free: list[NDArray[np.uint8]] = []

    @property
    def nbytes(self) -> int:
        return sum(chunk.nbytes for chunk in self._chunks)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Uninitialised, contiguous, 64-byte aligned."""
        num_bytes = max(math.prod(shape) * dtype.itemsize, 1)
        chunk = self._take(-(-num_bytes // _ALIGN) * _ALIGN)
        start = -chunk.ctypes.data % _ALIGN
        # torch keeps `owner` exactly as long as the storage: its end is the end of all views.
        owner = chunk[start : start + num_bytes]
        weakref.finalize(owner, self._free.append, chunk)
        return torch.from_numpy(owner).view(dtype).view(shape)

    def _take(self, num_bytes: int) -> NDArray[np.uint8]:
        """The smallest free chunk that is not much too large, or a new one."""
        fitting = [
            (chunk.nbytes, index)
            for index, chunk in enumerate(self._free)
            if num_bytes + _ALIGN <= chunk.nbytes <= 2 * num_bytes
        ]
        if fitting:
            return self._free.pop(min(fitting)[1])
        self._chunks.append(np.empty(num_bytes + _ALIGN, np.uint8))
        return self._chunks[-1]
