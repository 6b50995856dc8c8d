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

from atom.ops.triton import support
from atom.ops.triton.linear_config import slug

# Token counts that are measured.
BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 16384)
LARGE = 128  # rows per expert from which arithmetic decides, whatever their number


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


@functools.cache
def choose(problem: Problem, num_tokens: int, card: str, itemsize: int) -> Config:
    """The measured choice for bf16 and fp16 where there is one."""
    bucket = next((size for size in BUCKETS if size >= num_tokens), BUCKETS[-1])
    measured = _table(card).get(str(problem), {}) if itemsize == 2 else {}
    if str(bucket) in measured:
        return parse(measured[str(bucket)])
    if bucket * problem.top_k >= LARGE * problem.num_experts:  # enough to be alike
        larger = [size for size in BUCKETS if size > bucket and str(size) in measured]
        if larger:
            return parse(measured[str(larger[0])])
    return by_rule(problem, bucket, itemsize)


def by_rule(problem: Problem, num_tokens: int, itemsize: int = 2) -> Config:
    """For what nobody measured, after what was best for like numbers of rows per expert."""
    pairs = num_tokens * problem.top_k
    if pairs <= min(32, problem.num_experts):  # more would read the same experts again
        width = 1024 // support.next_power_of_2(problem.top_k)  # for 2048 values a step
        first, second = _block_k(problem.hidden, 256), _block_k(problem.wide, width)
        return PairConfig(  # narrow tiles have more rows: as many bytes are on their way
            PairTile(max(8, 2048 // first), first, num_stages=3),
            PairTile(max(2, 2 * width // second), second, num_warps=2, num_stages=3, early=4),
        )
    rows = pairs / problem.num_experts
    half = 2 if itemsize > 2 else 1  # bytes of a tile of weights stay the same
    if rows <= 12:
        return GroupedConfig(16, _tile(64, 128 // half, 4, 3), _tile(128, 128 // half, 4, 3))
    if rows < LARGE or half == 2:
        return GroupedConfig(64, _tile(64, 64 // half, 4, 3), _tile(128, 64 // half, 4, 4))
    return GroupedConfig(128, _tile(128, 64 // half, 8, 3), _tile(256, 64 // half, 8, 3))


def _block_k(size: int, limit: int) -> int:
    """A width that divides a row, if there is a fair one."""
    divisor = size & -size
    return min(divisor, limit) if divisor >= 64 else 64


def _tile(block_n: int, block_k: int, warps: int, stages: int) -> Tile:
    """What an H200 likes; ROCm devices have a third of its shared memory."""
    if support.IS_ROCM:
        stages = 2
    return Tile(block_n, block_k, 8 if block_n * warps >= 1024 else 1, warps, stages)
