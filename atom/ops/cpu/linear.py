"""Packed weights of the native kernels: op `linear`, and `embedding` from the same pack."""

from __future__ import annotations

import ctypes
import mmap
from struct import Struct

import torch
from torch import Tensor

from atom.ops.contracts import GGUFWeight, PackedLinear
from atom.ops.cpu import native

# Numbers of `Format` in native/weights.h.
FORMATS = {"Q4_0": 0, "Q4_1": 1, "Q8_0": 2, "bfloat16": 3, "float16": 4, "float32": 5}
_FORMAT_NAMES = {number: name for name, number in FORMATS.items()}
DENSE_DTYPES = {torch.bfloat16: 3, torch.float16: 4, torch.float32: 5}

# rows, x, ldx, weights (data, format, N, K), bias, out, ldo
_LINEAR = Struct("=11q")
_PACK = Struct("=6q")
_UNPACK = Struct("=5q")
_EMBEDDING = Struct("=8q")

_linear = native.op("linear")
_pack = native.op("pack")
_unpack = native.op("unpack")
_embedding = native.op("embedding")

# Weights are read from end to end in each step: 2 MiB pages save most of the page walks.
_HUGE = 2 << 20
_MADV_HUGEPAGE = 14


def _allocate(num_bytes: int) -> Tensor:
    """Uninitialised bytes, 64-byte aligned; on huge pages where they are large."""
    if num_bytes < _HUGE:
        return torch.empty(num_bytes, dtype=torch.uint8)
    memory = torch.empty(num_bytes + _HUGE, dtype=torch.uint8)
    start = -memory.data_ptr() % _HUGE
    data = memory[start : start + num_bytes]
    libc = ctypes.CDLL(None)
    length = num_bytes // mmap.PAGESIZE * mmap.PAGESIZE
    # Advice only: where it is refused the pages are small, nothing else.
    libc.madvise(ctypes.c_void_p(data.data_ptr()), ctypes.c_size_t(length), _MADV_HUGEPAGE)
    return data


class NativeLinear:
    """A weight [N, K] in the layout of native/weights.h. Takes and returns float32."""

    __slots__ = ("_spec", "data", "format", "in_features", "out_features")

    def __init__(self, weight: Tensor | GGUFWeight) -> None:
        if isinstance(weight, GGUFWeight):
            source, self.format, shape = weight.data, FORMATS[weight.qtype], weight.shape
        else:
            source, self.format = weight, DENSE_DTYPES[weight.dtype]
            shape = (weight.shape[0], weight.shape[1])
        source = source.contiguous()
        n, k = shape
        self.out_features, self.in_features = n, k
        self.data = _allocate(native.load().atom_packed_bytes(self.format, n, k))
        to = self.data.data_ptr()
        native.run_now(_pack, _PACK.pack(source.data_ptr(), to, self.format, n, k, to))
        self._spec = (to, self.format, n, k)

    @property
    def nbytes(self) -> int:
        return self.data.nbytes

    @property
    def format_name(self) -> str:
        """GGUF type or dtype of what was packed."""
        return _FORMAT_NAMES[self.format]

    @property
    def spec(self) -> tuple[int, int, int, int]:
        """Address, format, N, K: `Weights` in native/weights.h."""
        return self._spec

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        rows = x.shape[0]
        out = native.empty((rows, self.out_features))
        native.emit(
            _linear,
            _LINEAR.pack(
                *native.rows(rows),
                x.data_ptr(),
                x.stride(0),
                *self._spec,
                0 if bias is None else bias.data_ptr(),
                out.data_ptr(),
                self.out_features,
            ),
        )
        return out

    def dequantize(self) -> Tensor:
        out = torch.empty((self.out_features, self.in_features))
        native.run_now(_unpack, _UNPACK.pack(*self._spec, out.data_ptr()))
        return out


def embedding(ids: Tensor, weight: Tensor | PackedLinear, dtype: torch.dtype) -> Tensor:
    """Rows of a packed or a dense weight, as float32."""
    assert dtype == torch.float32
    if isinstance(weight, NativeLinear):
        spec, width = weight.spec, weight.in_features
    else:
        assert isinstance(weight, Tensor)
        assert weight.is_contiguous()
        n, width = weight.shape
        # 16 + format: plain rows.
        spec = (weight.data_ptr(), 16 + DENSE_DTYPES[weight.dtype], n, width)
    rows = ids.shape[0]
    out = native.empty((rows, width))
    native.emit(
        _embedding, _EMBEDDING.pack(*native.rows(rows), native.address(ids), *spec, out.data_ptr())
    )
    return out
