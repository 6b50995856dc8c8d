"""Recorded inputs of an operator, short enough for a cell."""

from __future__ import annotations

import functools
import json
from typing import Any

# As PyTorch's profiler names them, and as people do.
_TYPES = {
    "c10::BFloat16": "bf16",
    "c10::Half": "f16",
    "float": "f32",
    "double": "f64",
    "c10::Float8_e4m3fn": "f8e4m3",
    "c10::Float8_e4m3fnuz": "f8e4m3fnuz",
    "c10::Float8_e5m2": "f8e5m2",
    "c10::Float4_e2m1fn_x2": "f4e2m1x2",
    "signed char": "i8",
    "unsigned char": "u8",
    "short int": "i16",
    "int": "i32",
    "long int": "i64",
    "long": "i64",
    "bool": "bool",
}


@functools.lru_cache(maxsize=4096)
def shapes_text(op_args: str) -> str:
    """`CpuEvents.args` as e.g. "bf16[32,4096] bf16[4096,6144]"; "" if no tensor was recorded.

    Scalars are left out. What is no JSON object of the profiler's keys gives "".
    """
    if not op_args:
        return ""
    try:
        found: Any = json.loads(op_args)
    except ValueError:
        return ""
    if not isinstance(found, dict):
        return ""
    dims, types = found.get("Input Dims"), found.get("Input type")
    if not isinstance(dims, list):
        return ""
    names = types if isinstance(types, list) else []
    parts = []
    for place, shape in enumerate(dims):
        name = str(names[place]) if place < len(names) else ""
        text = _tensors(shape, name)
        if text:
            parts.append(text)
    return " ".join(parts)


def _tensors(shape: Any, name: str) -> str:
    """One input: a tensor's shape, or a list of them."""
    if not isinstance(shape, list) or not shape:
        return ""
    if all(isinstance(size, int) for size in shape):
        return f"{_TYPES.get(name, name)}[{','.join(map(str, shape))}]"
    inner = [_tensors(each, "") for each in shape]
    return f"({' '.join(text for text in inner if text)})"
