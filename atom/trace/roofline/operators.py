"""What an operator computes, from the shapes that the profiler wrote beside it.

Shapes are in the trace where it was recorded with them (`record_shapes`, ATOM_PROFILER_MORE=1), and
in capture traces. They are the only source in traces of other engines.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import msgspec

from atom.trace.roofline.work import Attended, Work, attention, bits_of, product

# With these in its name, an operator with two matrices is their product.
_PRODUCTS = ("mm", "gemm", "linear", "matmul")
_DENSE_ATTENTION = ("scaled_dot_product", "_flash_attention_forward", "_efficient_attention")
_ATTENTION = ("attention", "attn", "mha", "fmha")


class Shapes(msgspec.Struct, frozen=True):
    """`CpuEvents.args`, as far as it matters here."""

    dims: list[Any] = msgspec.field(name="Input Dims", default_factory=list)
    types: list[Any] = msgspec.field(name="Input type", default_factory=list)


@lru_cache(maxsize=8192)
def _decode(text: str) -> Shapes | None:
    try:
        return msgspec.json.decode(text, type=Shapes)
    except msgspec.MsgspecError:
        return None


def operator_work(name: str, args: str, seen: Attended | None) -> Work | None:
    """Of a call of operator `name`; None where its shapes do not tell. `seen`: what attention saw
    in its step."""
    shapes = _decode(args) if args else None
    if shapes is None:
        return None
    bare = name.rpartition("::")[2].lower()
    tensors = _tensors(shapes)
    if any(part in bare for part in _DENSE_ATTENTION):
        return _dense_attention(tensors)
    if any(part in bare for part in _ATTENTION):
        return _paged_attention(tensors, seen)
    if any(part in bare for part in _PRODUCTS):
        return _product(tensors)
    return None


Tensor = tuple[list[int], int]  # shape, bits of a value


def _tensors(shapes: Shapes) -> list[Tensor]:
    """Of numbers of a known width; indices, scalars and absent arguments are left out."""
    found = []
    for dims, kind in zip(shapes.dims, shapes.types, strict=False):
        bits = bits_of(kind) if isinstance(kind, str) else None
        if bits and isinstance(dims, list) and dims and all(isinstance(d, int) for d in dims):
            found.append((dims, bits))
    return found


def _product(tensors: Sequence[Tensor]) -> Work | None:
    """The first two tensors that share an inner size. `addmm` has its bias in front."""
    matrices = [t for t in tensors if len(t[0]) >= 2]
    for (a, bits), (b, weight_bits) in itertools.pairwise(matrices):
        if len(a) == 3 and len(b) == 3:
            return _batched(a, b, bits)
        if len(b) != 2:
            continue
        inner = a[-1]
        tokens = 1
        for size in a[:-1]:
            tokens *= size
        if inner not in b:
            continue
        n = b[1] if b[0] == inner else b[0]
        width = max(bits, weight_bits)
        return product(tokens, n, inner, width, weight_bytes=n * inner * weight_bits / 8)
    return None


def _batched(a: Sequence[int], b: Sequence[int], bits: int) -> Work | None:
    if a[0] != b[0] or a[2] not in b[1:]:
        return None
    n = b[2] if b[1] == a[2] else b[1]
    one = product(a[1], n, a[2], bits)
    shape = f"{a[0]} x ({one.shape})"
    return Work("gemm", shape, one.flops * a[0], one.nbytes * a[0], bits)


def _dense_attention(tensors: Sequence[Tensor]) -> Work | None:
    """q [B, H, Sq, D], k [B, Hk, Sk, D] of torch's own attention. Masks are not in the shapes: with
    as many queries as keys it is taken as causal."""
    if len(tensors) < 2 or len(tensors[0][0]) != 4 or len(tensors[1][0]) != 4:
        return None
    (batch, heads, queries, dim), bits = tensors[0]
    (_, kv_heads, keys, _), kv_bits = tensors[1]
    causal = queries == keys and queries > 1
    masked = queries * (queries - 1) // 2 if causal else 0
    seen = Attended(batch * queries, batch * keys, batch * (queries * keys - masked))
    made = attention(seen, heads, kv_heads, dim, bits=bits, kv_bits=kv_bits)
    return replace(made, note="taken as causal: as many queries as keys" if causal else "")


def _paged_attention(tensors: Sequence[Tensor], seen: Attended | None) -> Work | None:
    """q [T, Hq, D] and a paged cache [blocks, ..., Hk, D]; how much of it is seen, only the step's
    label knows."""
    if seen is None:
        return None
    queries = next((t for t in tensors if len(t[0]) == 3 and t[0][0] == seen.tokens), None)
    if queries is None:
        return None
    (_, heads, dim), bits = queries
    cache = next((t for t in tensors if len(t[0]) in (4, 5) and t[0][-1] == dim), None)
    if cache is None or heads % cache[0][-2]:
        return None
    return attention(seen, heads, cache[0][-2], dim, bits=bits, kv_bits=cache[1])
