"""Measures how the experts' products are best cut up (`gpu_moe.py --tune`).

Worker processes compile the candidates first, into Triton's cache, by launching them where nobody
chose an expert; then one process times them.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path
from typing import Any, NamedTuple

import torch
from gpu_moe import Case, launches, make_weights, timed

from atom.ops.triton import moe_config
from atom.ops.triton.linear_config import slug
from atom.ops.triton.moe_config import GroupedConfig, PairConfig, PairTile, Problem, Tile

CONFIGS = Path(moe_config.__file__).parent / "configs"


class Candidate(NamedTuple):
    part: str  # gate_up or down
    block_m: int  # 0: pair by pair
    tile: tuple[int, ...]

    def decoded(self) -> Tile | PairTile:
        return Tile(*self.tile) if self.block_m else PairTile(*self.tile)


def pair_tiles(columns: int) -> Iterator[PairTile]:
    for block_n in (2, 4, 8, 16):
        for block_k in (128, 256, 512, 1024, 2048):
            if columns % block_k or not 1024 <= block_n * block_k <= 8192:
                continue
            if block_n * block_k in (2048, 4096):
                yield PairTile(block_n, block_k, 4, 1)
                yield PairTile(block_n, block_k, 8, 1)
                if columns > block_k:
                    yield PairTile(block_n, block_k, 4, 3)


def small_tiles(block_m: int, halves: int) -> Iterator[Tile]:
    """Where reading weights decides: enough bytes on their way."""
    for rows, block_k, warps, stages in (
        (64, 64, 4, 6),
        (64, 128, 4, 3),
        (64, 128, 4, 4),
        (64, 256, 4, 3),
        (128, 64, 4, 3),
        (128, 64, 4, 4),
        (128, 64, 4, 6),
        (128, 64, 8, 4),
        (128, 128, 4, 3),
        (128, 128, 4, 4),
        (128, 128, 8, 3),
        (256, 64, 4, 3),
        (256, 64, 8, 4),
    ):
        if block_m * rows // (32 * warps) <= 128:
            yield Tile(rows // halves, block_k, 1, warps, stages)


def large_tiles(halves: int) -> Iterator[Tile]:
    """Where arithmetic decides."""
    for rows, block_k, warps, stages in (
        (256, 64, 8, 3),
        (256, 64, 8, 4),
        (256, 32, 8, 5),
        (128, 64, 4, 3),
        (128, 64, 4, 4),
        (128, 64, 8, 4),
        (128, 128, 8, 3),
    ):
        for group in (8,):
            yield Tile(rows // halves, block_k, group, warps, stages)


def block_sizes(problem: Problem, tokens: int) -> tuple[int, ...]:
    rows = tokens * problem.top_k / problem.num_experts
    if rows <= 4:
        return (16,)
    return (16, 64) if rows <= 24 else (32, 64) if rows < 48 else (64, 128)


def candidates(problem: Problem, tokens: int) -> list[Candidate]:
    out: list[Candidate] = []
    pairs = tokens * problem.top_k
    for part, halves, columns in (("gate_up", 2, problem.hidden), ("down", 1, problem.wide)):
        if pairs <= 64:
            out += [Candidate(part, 0, astuple(tile)) for tile in pair_tiles(columns)]
        for block_m in block_sizes(problem, tokens) if pairs >= 32 else ():
            tiles = large_tiles(halves) if block_m == 128 else small_tiles(block_m, halves)
            out += [Candidate(part, block_m, astuple(tile)) for tile in tiles]
    return out


def compile_some(problem: Problem, work: list[Candidate]) -> None:
    """In a worker: each candidate once, with nothing to do."""
    case = Case(problem, 16, make_weights(problem))
    for _, ids in case.routes:
        ids.fill_(-1)
    for candidate in work:
        try:
            launches(case, *candidate[:2], candidate.decoded())[0]()
        except Exception as error:
            print(f"{candidate}: {str(error).splitlines()[-1][:100]}", flush=True)
    torch.cuda.synchronize()


def compile_all(problem: Problem, buckets: list[int], workers: int) -> None:
    items = list(dict.fromkeys(c for tokens in buckets for c in candidates(problem, tokens)))
    print(f"{len(items)} candidates to compile", flush=True)
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=compile_some, args=(problem, items[i::workers]))
        for i in range(workers)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()


def measure(case: Case, candidate: Candidate) -> float:
    try:
        runs = launches(case, *candidate[:2], candidate.decoded())
        return timed(runs[:8], 3)
    except Exception as error:  # too much shared memory: not a candidate on this card
        print(f"{candidate}: {str(error).splitlines()[-1][:100]}", flush=True)
        return float("inf")


def best(case: Case) -> moe_config.Config:
    """The fastest choice for the case."""
    found: dict[tuple[str, int], list[tuple[float, Candidate]]] = {}
    for candidate in candidates(case.problem, case.tokens):
        entry = (measure(case, candidate), candidate)
        found.setdefault((candidate.part, candidate.block_m), []).append(entry)
    totals: dict[int, float] = {}
    for block_m in {key[1] for key in found}:
        products = sum(min(found[part, block_m])[0] for part in ("gate_up", "down"))
        # Sorting and combining cost launches of their own.
        totals[block_m] = products + (6e-6 if block_m else 0)
    block_m = min(totals, key=lambda size: totals[size])
    first, second = (min(found[part, block_m])[1].decoded() for part in ("gate_up", "down"))
    for (part, size), entries in sorted(found.items(), key=lambda item: item[0]):
        top = "  ".join(f"{s * 1e6:.1f} {c.tile}" for s, c in sorted(entries)[:4])
        print(f"   {part:8} m={size:<4} {top}", flush=True)
    matrices = case.floor(2) * 1e6, case.floor(1) * 1e6
    print(f"T={case.tokens} -> m={block_m}; floors {matrices[0]:.1f} + {matrices[1]:.1f} us")
    if block_m:
        assert isinstance(first, Tile)
        assert isinstance(second, Tile)
        return GroupedConfig(block_m, first, second)
    assert isinstance(first, PairTile)
    assert isinstance(second, PairTile)
    return PairConfig(first, second)


def tune(problem: Problem, buckets: list[int], workers: int) -> None:
    """Measures each bucket and writes the choices into the card's file."""
    start = time.perf_counter()
    compile_all(problem, buckets, workers)
    print(f"compiled in {time.perf_counter() - start:.1f} s", flush=True)
    path = CONFIGS / f"moe_{slug(torch.cuda.get_device_name())}.json"
    table: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    weights = make_weights(problem)
    for tokens in buckets:
        config = best(Case(problem, tokens, weights))
        table.setdefault(str(problem), {})[str(tokens)] = moe_config.describe(config)
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")
    print(f"tuned in {time.perf_counter() - start:.1f} s; {path.name} written", flush=True)
