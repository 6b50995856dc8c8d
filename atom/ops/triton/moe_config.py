"""How the experts' products are cut up: measured choices as data, else a rule.

`configs/moe_<card>.json` is written by `benchmarks/gpu_moe.py --tune`: a shape ("E128 K2048 I768
k8"), then a number of tokens, then a choice. A number between two of them takes the next one up.
"""

from __future__ import annotations

import functools
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from atom.ops.triton.linear_config import slug

# Token counts that are measured.
BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 16384)


@dataclass(frozen=True, slots=True)
class Problem:
    """E experts, [2I, K] and [K, I] each, of which a token takes k."""

    num_experts: int
    hidden: int
    wide: int
    top_k: int

    def __str__(self) -> str:
        return f"E{self.num_experts} K{self.hidden} I{self.wide} k{self.top_k}"


@dataclass(frozen=True, slots=True)
class PairTile:
    """A matrix-vector product: rows of the weight, and columns read at a time; of the second
    product, how many times such columns are read before the first one has ended."""

    block_n: int
    block_k: int
    num_warps: int = 4
    num_stages: int = 1
    early: int = 0


@dataclass(frozen=True, slots=True)
class PairConfig:
    """`moe_pairs`."""

    gate_up: PairTile
    down: PairTile


@dataclass(frozen=True, slots=True)
class Tile:
    """A matrix product. `block_n` columns of the result; of gate and up, that many of both.
    `tma`: tiles come by the tensor copy engine."""

    block_n: int
    block_k: int
    group_m: int
    num_warps: int
    num_stages: int
    tma: bool = False


@dataclass(frozen=True, slots=True)
class GroupedConfig:
    """`moe_grouped`: both products have blocks of `block_m` rows of one expert."""

    block_m: int
    gate_up: Tile
    down: Tile


Config = PairConfig | GroupedConfig


def describe(config: Config) -> dict[str, Any]:
    """A choice as data, and back by `parse`."""
    return asdict(config)


def parse(entry: dict[str, Any]) -> Config:
    if "block_m" not in entry:
        return PairConfig(PairTile(**entry["gate_up"]), PairTile(**entry["down"]))
    return GroupedConfig(entry["block_m"], Tile(**entry["gate_up"]), Tile(**entry["down"]))


@functools.cache
def _table(card: str) -> dict[str, dict[str, Any]]:
    path = Path(__file__).parent / "configs" / f"moe_{slug(card)}.json"
    table: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}
    return table


def _bucket(num_tokens: int) -> int:
    return next((size for size in BUCKETS if size >= num_tokens), BUCKETS[-1])


@functools.cache
def choose(problem: Problem, num_tokens: int, card: str, itemsize: int) -> Config:
    """The measured choice for bf16 and fp16 where there is one."""
    bucket = _bucket(num_tokens)
    entry = _table(card).get(str(problem), {}).get(str(bucket))
    if entry is None or itemsize != 2:
        return by_rule(problem, bucket, itemsize)
    return parse(entry)


def _pow2_divisor(n: int, limit: int) -> int:
    return min(n & -n, limit)


def _block_k(n: int) -> int:
    """A width that divides a row if there is a fair one."""
    return _pow2_divisor(n, 512) if n % 64 == 0 else 256


def by_rule(problem: Problem, num_tokens: int, itemsize: int = 2) -> Config:
    """For shapes that nobody measured: safe rather than best."""
    pairs = num_tokens * problem.top_k
    if pairs <= min(32, problem.num_experts):  # more would read the same experts again
        return PairConfig(
            PairTile(block_n=8, block_k=min(256, _block_k(problem.hidden)), num_stages=3),
            PairTile(block_n=2, block_k=min(256, _block_k(problem.wide)), num_stages=3, early=4),
        )
    rows = pairs / problem.num_experts
    k = 64 * 2 // itemsize  # bytes of a tile of weights stay the same
    if rows <= 16:
        tile = Tile(block_n=64, block_k=k, group_m=1, num_warps=4, num_stages=4)
        return GroupedConfig(16, tile, tile)
    if rows <= 64:
        tile = Tile(block_n=64, block_k=k, group_m=1, num_warps=4, num_stages=4)
        return GroupedConfig(64, tile, tile)
    return GroupedConfig(
        128,
        Tile(block_n=128, block_k=k, group_m=8, num_warps=8, num_stages=3),
        Tile(block_n=256, block_k=k, group_m=8, num_warps=8, num_stages=3),
    )
