"""The compiled library, and the two ways to use it: run an operation now, or record it.

Operations take one argument record of 8-byte fields (native/ops.h). Normally it is run at once;
while a `Recorder` is active it is kept, to be run later with other sizes (atom.ops.cpu.program).
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

from atom.ops.cpu.build import CannotBuild, library_path


class Recorder(Protocol):
    """Takes the operations of a forward pass instead of the processor."""

    def add(self, op: int, args: bytes) -> None: ...

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Memory for a result, kept as long as the recording."""
        ...

    def rows(self, count: int) -> tuple[int, int]:
        """A leading size of the recorded tensors as (count, kind): see `Rows` in native/pool.h."""
        ...

    def address(self, tensor: Tensor) -> int:
        """Where the operation finds `tensor`: its address, or its number if it is an input."""
        ...

    def table_stride(self, table: Tensor) -> int:
        """Of a block table."""
        ...


_recorder: Recorder | None = None


@contextmanager
def recording(recorder: Recorder) -> Iterator[None]:
    """Operations go to `recorder` within."""
    global _recorder
    assert _recorder is None, "a recording within a recording"
    _recorder = recorder
    try:
        yield
    finally:
        _recorder = None


@cache
def load() -> Any:
    """The library, compiled if need be. Raises `CannotBuild` with the reason."""
    path = library_path()
    try:
        lib = ctypes.CDLL(str(path))
    except OSError as error:
        raise CannotBuild(f"the kernels cannot be loaded: {error}") from error
    lib.atom_op.argtypes = [ctypes.c_char_p]
    lib.atom_op_name.argtypes = [ctypes.c_int]
    lib.atom_op_name.restype = ctypes.c_char_p
    lib.atom_call.argtypes = [ctypes.c_int, ctypes.c_char_p]
    lib.atom_call.restype = None
    lib.atom_node_bytes.restype = ctypes.c_int64
    lib.atom_make_node.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]
    lib.atom_make_node.restype = None
    lib.atom_run.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p]
    lib.atom_run.restype = None
    lib.atom_packed_bytes.argtypes = [ctypes.c_int64] * 3
    lib.atom_packed_bytes.restype = ctypes.c_int64
    lib.atom_set_num_threads.argtypes = [ctypes.c_int]
    lib.atom_features.restype = ctypes.c_char_p
    return lib


def features() -> str:
    """What the library was compiled to use, e.g. "avx512-vnni bf16 amx"."""
    text: bytes = load().atom_features()
    return text.decode()


def set_num_threads(count: int) -> int:
    """Threads of the kernels, 0: one per processor that this process may use. Returns them."""
    return int(load().atom_set_num_threads(count))


def op(name: str) -> int:
    """The number of an operation."""
    number = int(load().atom_op(name.encode()))
    assert number >= 0, name
    return number


def op_names() -> list[str]:
    """By number."""
    lib = load()
    names: list[str] = []
    while (name := lib.atom_op_name(len(names))) is not None:
        names.append(name.decode())
    return names


def run_now(number: int, args: bytes) -> None:
    """Run the operation, even while a recording is made."""
    load().atom_call(number, args)


def emit(number: int, args: bytes) -> None:
    """Run the operation, or record it."""
    if _recorder is None:
        run_now(number, args)
    else:
        _recorder.add(number, args)


def empty(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """An uninitialised result."""
    if _recorder is None:
        return torch.empty(shape, dtype=dtype)
    return _recorder.empty(shape, dtype)


def rows(count: int) -> tuple[int, int]:
    """A leading size, as the (count, kind) that opens an argument record."""
    return (count, 0) if _recorder is None else _recorder.rows(count)


def address(tensor: Tensor) -> int:
    """Where an operation finds a tensor that may be an input of the step."""
    return tensor.data_ptr() if _recorder is None else _recorder.address(tensor)


def table_stride(table: Tensor) -> int:
    """int32s between the rows of a block table."""
    return table.stride(0) if _recorder is None else _recorder.table_stride(table)
