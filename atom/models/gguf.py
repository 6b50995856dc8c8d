"""GGUF files: metadata, the table of tensors, and dequantisation to float32.

Our own reader, because a start-up must not wait for one: 100,000 vocabulary strings take some tens
of milliseconds. Tensor data is mapped, never copied. Every integer of the file is checked before it
is used, so a truncated or hostile file ends in a `ModelError` and in nothing else.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from atom.errors import ModelError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMS = 4
MAX_ALIGNMENT = 1 << 20
MAX_ELEMENTS = 1 << 48
DEQUANTISE_ROWS_BYTES = 16 << 20  # float32 bytes made at a time: bounds the peak memory


class QuantType(NamedTuple):
    """A GGML storage type: `block` elements share `block_bytes` bytes."""

    name: str
    block: int
    block_bytes: int


QUANT_TYPES: dict[int, QuantType] = {
    0: QuantType("F32", 1, 4),
    1: QuantType("F16", 1, 2),
    2: QuantType("Q4_0", 32, 18),
    3: QuantType("Q4_1", 32, 20),
    6: QuantType("Q5_0", 32, 22),
    7: QuantType("Q5_1", 32, 24),
    8: QuantType("Q8_0", 32, 34),
    10: QuantType("Q2_K", 256, 84),
    11: QuantType("Q3_K", 256, 110),
    12: QuantType("Q4_K", 256, 144),
    13: QuantType("Q5_K", 256, 176),
    14: QuantType("Q6_K", 256, 210),
    30: QuantType("BF16", 1, 2),
}
_TYPE_IDS = {t.name: i for i, t in QUANT_TYPES.items()}

# Metadata value types: id -> (struct format, size). 8 is a string, 9 an array.
_SCALARS: dict[int, tuple[str, int]] = {
    0: ("<B", 1),
    1: ("<b", 1),
    2: ("<H", 2),
    3: ("<h", 2),
    4: ("<I", 4),
    5: ("<i", 4),
    6: ("<f", 4),
    7: ("<?", 1),
    10: ("<Q", 8),
    11: ("<q", 8),
    12: ("<d", 8),
}
_STRING, _ARRAY = 8, 9
_U64 = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """One tensor. `shape` is row-major ([N, K] of a linear, [E, N, K] of experts); the last
    dimension is the quantised one. `data` [*shape[:-1], row_bytes] uint8 is mapped, read-only."""

    name: str
    qtype: str
    shape: tuple[int, ...]
    data: NDArray[np.uint8]


class _Cursor:
    """A position in the mapped file that cannot leave it."""

    def __init__(self, buffer: mmap.mmap) -> None:
        self.buffer = buffer
        self.size = len(buffer)
        self.pos = 0

    def take(self, count: int, what: str) -> int:
        """Advance by `count` bytes; returns where they start."""
        start = self.pos
        if count > self.size - start:
            raise ModelError(f"ends inside {what} (byte {start} of {self.size})")
        self.pos = start + count
        return start

    def number(self, fmt: str, size: int, what: str) -> Any:
        return struct.unpack_from(fmt, self.buffer, self.take(size, what))[0]

    def u32(self, what: str) -> int:
        return int(self.number("<I", 4, what))

    def u64(self, what: str) -> int:
        return int(self.number("<Q", 8, what))

    def string(self, what: str) -> str:
        length = self.u64(what)
        start = self.take(length, what)
        try:
            return self.buffer[start : start + length].decode()
        except UnicodeDecodeError:
            raise ModelError(f"{what} is not UTF-8") from None

    def strings(self, count: int, what: str) -> list[str]:
        """`count` strings in a row: the one hot loop of the reader."""
        if count > (self.size - self.pos) // 8:
            raise ModelError(f"{what} claims {count} strings, more than the file can hold")
        out: list[str] = []
        buffer, pos, size, unpack = self.buffer, self.pos, self.size, _U64.unpack_from
        try:
            for _ in range(count):
                start = pos + 8
                if start > size:
                    raise ModelError(f"ends inside {what} (byte {pos} of {size})")
                length = unpack(buffer, pos)[0]
                if length > size - start:
                    raise ModelError(f"ends inside {what} (byte {pos} of {size})")
                pos = start + length
                out.append(buffer[start:pos].decode())
        except UnicodeDecodeError:
            raise ModelError(f"entry {len(out)} of {what} is not UTF-8") from None
        self.pos = pos
        return out

    def value(self, kind: int, what: str) -> Any:
        if kind in _SCALARS:
            return self.number(*_SCALARS[kind], what)
        if kind == _STRING:
            return self.string(what)
        if kind == _ARRAY:
            return self.array(what)
        raise ModelError(f"{what} has the unknown value type {kind}")

    def array(self, what: str) -> list[Any]:
        kind, count = self.u32(what), self.u64(what)
        if kind == _STRING:
            return self.strings(count, what)
        if kind not in _SCALARS:
            raise ModelError(f"{what} is an array of the unsupported value type {kind}")
        fmt, size = _SCALARS[kind]
        start = self.take(count * size, what)
        dtype = np.dtype("?" if fmt == "<?" else fmt)
        values: list[Any] = np.frombuffer(self.buffer, dtype, count, start).tolist()
        return values


class GGUFFile:
    """A GGUF file: `.metadata` (plain Python values) and `.tensors` by name, lazily mapped.

    Raises `ModelError`, naming the file and the fault, for anything that is not a sound file of
    version 2 or 3, little-endian, with tensors of `QUANT_TYPES`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.metadata: dict[str, Any] = {}
        self.tensors: dict[str, GGUFTensor] = {}
        try:
            with open(self.path, "rb") as file:
                if os.fstat(file.fileno()).st_size < 24:
                    raise ModelError("is too short to be a GGUF file")
                buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._read(_Cursor(buffer))
        except OSError as error:
            raise ModelError(f"cannot read {self.path}: {error.strerror or error}") from None
        except ModelError as error:
            raise ModelError(f"{self.path}: {error}") from None

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def __getitem__(self, name: str) -> GGUFTensor:
        if name not in self.tensors:
            raise ModelError(f"{self.path}: there is no tensor {name}")
        return self.tensors[name]

    def _read(self, cursor: _Cursor) -> None:
        start = cursor.take(4, "the magic number")
        if cursor.buffer[start : start + 4] != MAGIC:
            raise ModelError("is not a GGUF file")
        version = cursor.u32("the version")
        if version not in VERSIONS:
            raise ModelError(
                f"has GGUF version {version}; atom reads little-endian versions 2 and 3"
            )
        num_tensors = cursor.u64("the header")
        num_pairs = cursor.u64("the header")
        for _ in range(num_pairs):
            key = cursor.string("a metadata key")
            kind = cursor.u32(f"metadata {key!r}")
            if key in self.metadata:
                raise ModelError(f"has metadata {key!r} twice")
            self.metadata[key] = cursor.value(kind, f"metadata {key!r}")
        table = [_read_entry(cursor) for _ in range(num_tensors)]
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 1 <= alignment <= MAX_ALIGNMENT:
            raise ModelError(f"has the impossible general.alignment {alignment!r}")
        base = -(-cursor.pos // alignment) * alignment
        for entry in table:
            if entry.name in self.tensors:
                raise ModelError(f"has tensor {entry.name!r} twice")
            if entry.offset % alignment:
                raise ModelError(f"tensor {entry.name!r} is not aligned to {alignment} bytes")
            self.tensors[entry.name] = _map_tensor(cursor.buffer, entry, base)


class _Entry(NamedTuple):
    name: str
    shape: tuple[int, ...]
    quant: QuantType
    offset: int


def _read_entry(cursor: _Cursor) -> _Entry:
    """One row of the tensor table, with its shape turned round to row-major."""
    name = cursor.string("a tensor's name")
    what = f"tensor {name!r}"
    num_dims = cursor.u32(what)
    if not 1 <= num_dims <= MAX_DIMS:
        raise ModelError(f"{what} has {num_dims} dimensions; 1 to {MAX_DIMS} are possible")
    shape = tuple(cursor.u64(what) for _ in range(num_dims))[::-1]
    if min(shape) < 1 or math.prod(shape) > MAX_ELEMENTS:
        raise ModelError(f"{what} has the impossible shape {list(shape)}")
    type_id = cursor.u32(what)
    quant = QUANT_TYPES.get(type_id)
    if quant is None:
        known = ", ".join(sorted(_TYPE_IDS))
        raise ModelError(f"{what} has the unsupported GGML type {type_id}; atom reads {known}")
    if shape[-1] % quant.block:
        raise ModelError(f"{what}: {quant.name} needs rows of {quant.block}, got {shape[-1]}")
    return _Entry(name, shape, quant, cursor.u64(what))


def _map_tensor(buffer: mmap.mmap, entry: _Entry, base: int) -> GGUFTensor:
    row_bytes = entry.shape[-1] // entry.quant.block * entry.quant.block_bytes
    nbytes = math.prod(entry.shape[:-1]) * row_bytes
    start, size = base + entry.offset, len(buffer)
    if start + nbytes > size:
        raise ModelError(
            f"tensor {entry.name!r} needs bytes {start} to {start + nbytes} of {size}:"
            " the file is cut short"
        )
    data = np.frombuffer(buffer, np.uint8, nbytes, start).reshape(*entry.shape[:-1], row_bytes)
    return GGUFTensor(entry.name, entry.quant.name, entry.shape, data)


def dequantize(tensor: GGUFTensor) -> NDArray[np.float32]:
    """The tensor's values, float32 of `tensor.shape`; a new array."""
    rows = tensor.data.reshape(-1, tensor.data.shape[-1])
    width = tensor.shape[-1]
    out = np.empty((rows.shape[0], width), np.float32)
    step = max(1, DEQUANTISE_ROWS_BYTES // (4 * width))
    for start in range(0, len(rows), step):
        out[start : start + step] = _dequantize_rows(tensor.qtype, rows[start : start + step])
    return out.reshape(tensor.shape)


def _dequantize_rows(qtype: str, rows: NDArray[np.uint8]) -> NDArray[Any]:
    """[R, row_bytes] uint8 -> [R, K]."""
    if qtype == "F32":
        return rows.view(np.float32)
    if qtype == "F16":
        return rows.view(np.float16)
    if qtype == "BF16":
        return (rows.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    from gguf import GGMLQuantizationType, quants  # 70 ms: only weights need it

    values: NDArray[Any] = quants.dequantize(rows, GGMLQuantizationType[qtype])
    return values
