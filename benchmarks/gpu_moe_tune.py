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
from gpu_moe import Case, both, launches, make_weights, timed

from atom.ops.triton import moe_config
from atom.ops.triton.linear_config import slug
from atom.ops.triton.moe_config import GroupedConfig, PairConfig, PairTile, Problem, Tile
from atom.ops.triton.support import next_power_of_2

CONFIGS = Path(moe_config.__file__).parent / "configs"


class Candidate(NamedTuple):
    part: str  # gate_up or down
    block_m: int  # 0: pair by pair
    tile: tuple[int, ...]

    def decoded(self) -> Tile | PairTile:
        return Tile(*self.tile) if self.block_m else PairTile(*self.tile)


def gate_up_pair_tiles(columns: int) -> Iterator[PairTile]:
    for block_n, block_k, warps, stages in (
        (8, 256, 4, 1),
        (8, 256, 4, 3),
        (8, 256, 4, 4),
        (8, 256, 4, 6),
        (8, 256, 2, 4),
        (4, 256, 2, 6),
        (4, 512, 4, 1),
        (4, 512, 4, 3),
        (4, 512, 4, 4),
        (8, 512, 8, 3),
        (8, 512, 4, 3),
        (16, 256, 4, 3),
        (16, 256, 8, 4),
        (8, 128, 4, 6),
    ):
        if columns % block_k == 0:
            yield PairTile(block_n, block_k, warps, stages)


def down_pair_tiles(columns: int, top_k: int) -> Iterator[PairTile]:
    for block_n in (1, 2, 4, 8, 16):
        for block_k in (128, 256, 512, 1024):
            size = block_n * block_k * next_power_of_2(top_k)  # of a step
            steps = columns // block_k
            if columns % block_k or size not in (2048, 4096):
                continue
            for warps in (2, 4):
                if not 8 <= size // (32 * warps) <= 64:
                    continue
                for early in {0, min(steps, 2), min(steps, 3), min(steps, 4)}:
                    if early * size // (32 * warps) > 128:
                        continue
                    stages = (3,) if early == 0 else (1,) if early == steps else (2, 3)
                    for count in stages:
                        yield PairTile(block_n, block_k, warps, count, early)


def small_tiles(block_m: int, halves: int) -> Iterator[Tile]:
    """Where reading weights decides: enough bytes on their way."""
    for rows, block_k, warps, stages in (
        (64, 128, 4, 3),
        (64, 128, 4, 4),
        (64, 256, 4, 3),
        (128, 64, 4, 3),
        (128, 64, 4, 4),
        (128, 128, 4, 3),
        (128, 128, 4, 4),
        (128, 128, 8, 3),
        (256, 64, 8, 4),
    ):
        if block_m * rows // (32 * warps) <= 128:
            yield Tile(rows // halves, block_k, 1, warps, stages)


def large_tiles(halves: int) -> Iterator[Tile]:
    """Where arithmetic decides."""
    for rows, block_k, warps, stages in (
        (256, 64, 8, 3),
        (256, 64, 8, 4),
        (128, 64, 4, 3),
        (128, 64, 8, 3),
        (256, 128, 8, 2),
    ):
        for tma in (False, True):
            yield Tile(rows // halves, block_k, 8, warps, stages, tma)


def block_sizes(problem: Problem, tokens: int) -> tuple[int, ...]:
    rows = tokens * problem.top_k / problem.num_experts
    if rows <= 4:
        return (16,)
    if rows <= 24:
        return (16, 32, 64)
    return (32, 64) if rows < 48 else (64, 128) if rows < 128 else (128,)


def candidates(problem: Problem, tokens: int) -> list[Candidate]:
    out: list[Candidate] = []
    pairs = tokens * problem.top_k
    for part, halves, columns in (("gate_up", 2, problem.hidden), ("down", 1, problem.wide)):
        if pairs <= min(64, 2 * problem.num_experts):
            tiles = (
                gate_up_pair_tiles(columns)
                if halves == 2
                else down_pair_tiles(columns, problem.top_k)
            )
            out += [Candidate(part, 0, astuple(tile)) for tile in tiles]
        for block_m in (
            block_sizes(problem, tokens) if pairs >= min(32, problem.num_experts) else ()
        ):
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


def measure(case: Case, candidate: Candidate, before: Candidate | None = None) -> float:
    """Seconds of a product, or of the two after each other, which overlap."""
    try:
        tile = candidate.decoded()
        if before is None:
            runs = launches(case, *candidate[:2], tile)
        else:
            runs = both(case, candidate.block_m, before.decoded(), tile)
        return timed(runs[:8], 3)
    except Exception as error:  # too much shared memory: not a candidate on this card
        print(f"{candidate}: {str(error).splitlines()[-1][:100]}", flush=True)
        return float("inf")


def show(part: str, block_m: int, entries: list[tuple[float, Candidate]]) -> None:
    top = "  ".join(f"{s * 1e6:.1f} {c.tile}" for s, c in sorted(entries)[:5])
    print(f"   {part:8} m={block_m:<4} {top}", flush=True)


def best(case: Case) -> moe_config.Config:
    """The fastest choice for the case."""
    found: dict[tuple[str, int], list[Candidate]] = {}
    for candidate in candidates(case.problem, case.tokens):
        found.setdefault((candidate.part, candidate.block_m), []).append(candidate)
    totals: dict[int, tuple[float, Candidate, Candidate]] = {}
    for block_m in {key[1] for key in found}:
        first = [(measure(case, c), c) for c in found["gate_up", block_m]]
        show("gate_up", block_m, first)
        leader = min(first)[1]
        second = [(measure(case, c, leader), c) for c in found["down", block_m]]
        show("both", block_m, second)
        # Sorting and combining cost launches of their own.
        totals[block_m] = (min(second)[0] + (6e-6 if block_m else 0), leader, min(second)[1])
    block_m = min(totals, key=lambda size: totals[size][0])
    seconds, up, down = totals[block_m]
    print(f"T={case.tokens} -> m={block_m} {seconds * 1e6:.1f}; floor {case.floor(3) * 1e6:.1f} us")
    tiles: Any = up.decoded(), down.decoded()
    return GroupedConfig(block_m, *tiles) if block_m else PairConfig(*tiles)


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
