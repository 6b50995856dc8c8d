"""How many operations and bytes a call of a module or operator needs at least.

Bytes are those that must cross the memory's bus once: weights, inputs, outputs, the keys and values
that are seen. An operation is a multiplication or an addition.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Bits of a value by the names that our engine, torch and the profiler use.
_BITS = {
    "float32": 32, "float": 32, "fp32": 32, "f32": 32,
    "bfloat16": 16, "c10::bfloat16": 16, "bf16": 16,
    "float16": 16, "c10::half": 16, "half": 16, "fp16": 16, "f16": 16,
    "float8_e4m3fn": 8, "float8_e4m3fnuz": 8, "float8_e5m2": 8, "float8_e5m2fnuz": 8, "fp8": 8,
    "fp8_e4m3": 8, "c10::float8_e4m3fn": 8, "c10::float8_e4m3fnuz": 8, "c10::float8_e5m2": 8,
    "int8": 8, "signed char": 8, "unsigned char": 8, "uint8": 8,
    "mxfp4": 4, "fp4": 4, "int4": 4, "c10::float4_e2m1fn_x2": 4,
}  # fmt: skip


def bits_of(dtype: str) -> int | None:
    """Bits of one value; None for a type that is not known."""
    return _BITS.get(dtype.strip().lower())


@dataclass(frozen=True, slots=True)
class Work:
    """Of one call. `note` says what had to be assumed."""

    kind: str  # "gemm", "attention", "moe"
    shape: str  # for people, e.g. "32 x 6144 x 4096"
    flops: float
    nbytes: float
    bits: int  # of the numbers that are multiplied
    note: str = ""
    keys: int = 0  # that attention saw; not in `shape`, because each step sees more


def product(tokens: int, n: int, k: int, bits: int, *, weight_bytes: float | None = None,
            out_bits: int | None = None) -> Work:  # fmt: skip
    """y[T, n] = x[T, k] w[k, n]: 2 T n k operations."""
    weights = n * k * bits / 8 if weight_bytes is None else weight_bytes
    moved = weights + tokens * k * bits / 8 + tokens * n * (out_bits or bits) / 8
    return Work("gemm", f"{tokens} x {n} x {k}", 2.0 * tokens * n * k, moved, bits)


@dataclass(frozen=True, slots=True)
class Attended:
    """Sums over the requests of a step: q tokens computed, k tokens seen at its end."""

    tokens: int  # sum of q
    keys: int  # sum of k
    pairs: int  # causal: sum of q k - q (q - 1) / 2


def attended(fields: Mapping[str, Any]) -> Attended | None:
    """From a step's label; None where it does not tell what attention saw.

    sqsk - (sqsq - sq) / 2 pairs are not masked: token j of q sees k - q + j keys, j = 1 .. q.
    """
    tokens, keys = _number(fields, "tok", "sq"), _number(fields, "sk")
    if tokens is None or keys is None:
        return None
    crossed, squared = _number(fields, "sqsk"), _number(fields, "sqsq")
    if crossed is None or squared is None:
        if tokens != _number(fields, "bs"):
            return None
        crossed, squared = keys, tokens  # decode: q is 1 everywhere
    return Attended(tokens, keys, crossed - (squared - tokens) // 2)


def _number(fields: Mapping[str, Any], *names: str) -> int | None:
    return next((v for v in map(fields.get, names) if isinstance(v, int)), None)


def attention(
    seen: Attended,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    *,
    bits: int,
    kv_bits: int,
    window: int = 0,
) -> Work:
    """2 operations for each of q k^T and p v, per pair, head and element of a head."""
    keys, pairs, note = seen.keys, seen.pairs, ""
    if window:  # the label's sums do not tell how many requests are longer than the window
        keys, pairs = min(keys, seen.tokens * window), min(pairs, seen.tokens * window)
        note = f"at most: a window of {window} keys, lengths known only as sums"
    moved = (
        2 * keys * num_kv_heads * head_dim * kv_bits / 8
        + 2 * seen.tokens * num_heads * head_dim * bits / 8
    )
    shape = f"{seen.tokens} queries, {num_heads}/{num_kv_heads} heads x {head_dim}"
    flops = 4.0 * pairs * num_heads * head_dim
    return Work("attention", shape, flops, moved, max(bits, kv_bits), note, seen.keys)


def experts(tokens: int, facts: Mapping[str, Any], bits: int) -> Work:
    """Gate, up and down of `top_k` experts for each token. Weights of E (1 - (1 - k / E)^T) experts
    are read, the expectation when tokens choose evenly and independently."""
    total, chosen = int(facts["num_experts"]), int(facts["top_k"])
    hidden, inner = int(facts["hidden_size"]), int(facts["intermediate_size"])
    used = total * (1 - (1 - chosen / total) ** tokens)
    moved = float(facts["weight_bytes"]) * used / total + 2 * tokens * hidden * bits / 8
    flops = 6.0 * tokens * chosen * hidden * inner
    shape = f"{tokens} x {chosen} of {total} experts {hidden} x {inner}"
    # Of a packed format, whose blocks have no width of their own, values are unpacked first.
    weight_bits = bits_of(str(facts.get("weight_format", ""))) or bits
    return Work("moe", shape, flops, moved, weight_bits, f"{used:.1f} experts read, if even")
