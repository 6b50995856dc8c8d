"""Which kernel serves a product of M tokens with a weight, and how it is cut up.

Measured choices are data: `configs/<card>.json`, written by `benchmarks/gpu_linear.py --tune`.
A shape that is not there gets a choice by rule. None means: the vendor's library.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from atom.ops.triton import support

# Token counts that have a choice of their own; others take the next one up.
BUCKETS = (1, 16, 32, 64, 128, 256)
KINDS = ("linear", "norm", "gated")


@dataclass(frozen=True, slots=True)
class Rows:
    """`linear_kernels.gemv_rows`: `waves` programs per multiprocessor; 0: one per tile."""

    block_n: int
    num_warps: int
    waves: int = 0
    prefetch: int = 0


@dataclass(frozen=True, slots=True)
class Columns:
    """`linear_kernels.gemv_columns`."""

    block_n: int
    block_k: int
    num_warps: int
    stages: int = 1
    prefetch: int = 0


@dataclass(frozen=True, slots=True)
class Skinny:
    """`linear_kernels.skinny`; a kernel of its own takes the norm before."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    split: int = 1
    swap: bool = False
    tma: bool = False
    prefetch: int = 0


Config = Rows | Columns | Skinny
_TYPES: dict[str, Any] = {"rows": Rows, "columns": Columns, "skinny": Skinny}


@dataclass(frozen=True, slots=True)
class Problem:
    """`kind` linear, norm (the norm before it) or gated (the norm before, silu * up after; `n`
    counts outputs, so the weight has 2n rows)."""

    kind: str
    n: int
    k: int

    def __str__(self) -> str:
        return f"{self.kind} {self.n}x{self.k}"


def describe(config: Config | None) -> dict[str, Any]:
    """A choice as data, and back by `parse`."""
    if config is None:
        return {"kernel": "library"}
    name = next(name for name, kind in _TYPES.items() if type(config) is kind)
    return {"kernel": name, **{f: getattr(config, f) for f in config.__dataclass_fields__}}


def parse(entry: dict[str, Any]) -> Config | None:
    fields = dict(entry)
    name = fields.pop("kernel")
    config: Config | None = None if name == "library" else _TYPES[name](**fields)
    return config


def slug(card: str) -> str:
    """Name of a card's file: "NVIDIA H200" -> "nvidia_h200"."""
    return card.lower().replace(" ", "_").replace("/", "_")


@functools.cache
def _table(card: str) -> dict[str, dict[str, Any]]:
    path = Path(__file__).parent / "configs" / f"linear_{slug(card)}.json"
    table: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}
    return table


def choose(problem: Problem, card: str, shared_bytes: int) -> tuple[Config | None, ...]:
    """The choice for each bucket on a card whose programs have `shared_bytes` of shared memory."""
    measured = _table(card).get(str(problem), {})
    return tuple(
        parse(measured[str(m)]) if str(m) in measured else by_rule(problem, m, shared_bytes)
        for m in BUCKETS
    )


def by_rule(problem: Problem, tokens: int, shared_bytes: int) -> Config | None:
    """For shapes that nobody measured: what is best for those around them."""
    k, both = problem.k, 2 if problem.kind == "gated" else 1
    if tokens == 1:
        width = support.next_power_of_2(k)
        if width > 8192:
            return Columns(block_n=4 // both, block_k=2048, num_warps=4, prefetch=2048)
        block_n = 1 if both == 2 or width == 8192 else 2
        warps = min(16, max(1, block_n * both * width // 1024))
        return Rows(block_n, warps, waves=32 // warps)
    if tokens > 32 or k % 128 or torch.version.hip is not None:
        return None
    tiles, split = -(-problem.n // 64), 1
    while both == 1 and 2 * tiles * split <= 136 and k % (256 * split) == 0 and k >= 1024 * split:
        split *= 2
    # Where one wave of programs does it all, each keeps more in flight.
    stages = 6 if tiles * split <= 136 else 3
    block_m, block_n, block_k = max(16, tokens), 64, 128
    stages = min(stages, shared_bytes // (2 * block_k * (both * block_n + block_m)))
    return Skinny(block_m, block_n, block_k, 4, stages, split, swap=True) if stages > 1 else None
