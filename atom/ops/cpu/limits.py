"""What the native kernels decline, and why."""

from __future__ import annotations

from atom.ops.cpu.linear import FORMATS
from atom.ops.registry import OpQuery

MAX_HEAD_DIM = 512


def float32(query: OpQuery) -> str | None:
    if query.traceable:
        return "native code cannot be traced by torch.compile"
    if query.dtype != "float32":
        return f"activations are float32 only, not {query.dtype}"
    return None


def linear(query: OpQuery) -> str | None:
    reason = float32(query)
    if reason is None and query.weight_format not in FORMATS:
        reason = f"weights are {', '.join(FORMATS)}, not {query.weight_format}"
    return reason


def embedding(query: OpQuery) -> str | None:
    if query.weight_format in ("", *FORMATS):
        return float32(query)
    return linear(query)


def cache(query: OpQuery) -> str | None:
    reason = float32(query)
    if reason is None and query.kv_dtype not in ("float32", "bfloat16"):
        reason = f"the KV cache is float32 or bfloat16, not {query.kv_dtype}"
    return reason


def attention(query: OpQuery) -> str | None:
    reason = cache(query)
    head_dim = query.size("D")
    if reason is None and (head_dim % 16 or head_dim > MAX_HEAD_DIM):
        reason = f"the head size is a multiple of 16 up to {MAX_HEAD_DIM}, not {head_dim}"
    return reason
