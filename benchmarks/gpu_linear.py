"""Products with dense weights on one GPU: ours against the vendor's library and the floor.

    python benchmarks/gpu_linear.py [--models llama-3.1-8b,qwen3-0.6b] [--tokens 1,8,32,128]
    python benchmarks/gpu_linear.py --layer            # all linears of a layer, in one graph
    python benchmarks/gpu_linear.py --tune             # writes atom/ops/triton/configs/

Times are of launches in a CUDA graph over weights that are cold in the cache, the median of several
replays. Floor: bytes at the card's measured reading speed, or operations at its bf16 rate.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from atom.ops.triton import linear_config
from atom.ops.triton.linear_config import (
    BUCKETS,
    Columns,
    Config,
    Problem,
    Rows,
    Skinny,
    describe,
    slug,
)
from atom.ops.triton.linear_products import Launcher, Products
from atom.ops.triton.linear_products import products as products_of

READ = 4.43e12  # bytes/s, measured on an H200
FLOPS = 786e12  # bf16, likewise
EPS = 1e-6

Q, L, G = "norm", "linear", "gated"
MODELS: dict[str, dict[str, Problem]] = {
    "llama-3.1-8b": {
        "qkv": Problem(Q, 6144, 4096),
        "o": Problem(L, 4096, 4096),
        "gate_up": Problem(G, 14336, 4096),
        "down": Problem(L, 4096, 14336),
        "lm_head": Problem(L, 128256, 4096),
    },
    "qwen3-0.6b": {
        "qkv": Problem(Q, 4096, 1024),
        "o": Problem(L, 1024, 2048),
        "gate_up": Problem(G, 3072, 1024),
        "down": Problem(L, 1024, 3072),
        "lm_head": Problem(L, 151936, 1024),
    },
    "qwen3-30b-a3b": {
        "qkv": Problem(Q, 5120, 2048),
        "o": Problem(L, 2048, 4096),
        "router": Problem(Q, 128, 2048),
        "lm_head": Problem(L, 151936, 2048),
    },
    "mixtral-8x7b": {
        "qkv": Problem(Q, 6144, 4096),
        "o": Problem(L, 4096, 4096),
        "router": Problem(Q, 8, 4096),
        "lm_head": Problem(L, 32000, 4096),
    },
}


def weight_rows(problem: Problem) -> int:
    return problem.n * (2 if problem.kind == G else 1)


def floor_us(problem: Problem, tokens: int) -> float:
    rows, k = weight_rows(problem), problem.k
    traffic = 2 * (rows * k + tokens * (k + problem.n))
    return 1e6 * max(traffic / READ, 2 * tokens * rows * k / FLOPS)


class Bench:
    """Random operands; a pool of weights large enough that none stays in the cache."""

    def __init__(self, pool_bytes: int) -> None:
        torch.manual_seed(0)
        self.pool = torch.empty(pool_bytes // 2, dtype=torch.bfloat16, device="cuda")
        self.pool.normal_(0, 0.02)
        self.data = torch.randn(1 << 22, device="cuda").bfloat16()
        self.stream = torch.cuda.Stream()
        self.ones = torch.ones(32768, device="cuda").bfloat16()

    def weights(self, problem: Problem, at_least: int = 0) -> list[Tensor]:
        """Disjoint weights of the problem, together over 300 MB where the pool has that."""
        rows = weight_rows(problem)
        size = rows * problem.k
        count = max(at_least, min(64, math.ceil(300e6 / (2 * size))))
        count = max(1, min(count, len(self.pool) // size))
        return [self.pool[i * size : (i + 1) * size].view(rows, problem.k) for i in range(count)]

    def x(self, tokens: int, k: int, at: int = 0) -> Tensor:
        return self.data[at * 1024 : at * 1024 + tokens * k].view(tokens, k)

    def time(self, calls: list[Callable[[], Any]], repeats: int = 5) -> float:
        """Microseconds of one call, of all made one after the other in a graph."""
        for call in calls[:2]:
            call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self.stream):
            graph.capture_begin()
            for call in calls:
                call()
            graph.capture_end()
        graph.replay()
        samples = []
        for _ in range(repeats):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            samples.append(start.elapsed_time(end))
        return 1e3 * statistics.median(samples) / len(calls)


def call(products: Any, problem: Problem, weight: Tensor, x: Tensor, r: Tensor, g: Tensor) -> Any:
    """One product as the model makes it."""
    if problem.kind == L:
        head = torch.float32 if problem.n > 30000 else None
        return products.linear(x, weight, None, head)
    fused = products.norm_linear if problem.kind == Q else products.norm_gated
    return fused(x, (r, g, EPS), weight, None)


def products_with(problem: Problem, config: Config | None) -> Any:
    """The library's products, but `problem` by `config`."""
    device = torch.device("cuda", torch.cuda.current_device())
    out = Products(weight_rows(problem), problem.k, torch.bfloat16, device)
    name = {L: "plain", Q: "normed", G: "gated"}[problem.kind]
    out.plain = Launcher(Problem(L, out.rows, problem.k), device, (None,) * len(BUCKETS))
    setattr(out, name, Launcher(problem, device, (config,) * len(BUCKETS)))
    return out


def time_problem(
    bench: Bench, products: Any, problem: Problem, tokens: int, repeats: int = 5
) -> float:
    weights = bench.weights(problem)
    x, r = bench.x(tokens, problem.k), bench.x(tokens, problem.k, 3).clone()
    g = bench.ones[: problem.k]
    count = max(len(weights), min(24, math.ceil(400 / floor_us(problem, tokens))))
    calls = [
        partial(call, products, problem, weights[i % len(weights)], x, r, g) for i in range(count)
    ]
    return bench.time(calls, repeats)


def candidates(problem: Problem, tokens: int) -> Iterator[Config | None]:
    """What `--tune` tries."""
    yield None
    k, n = problem.k, problem.n
    both = 2 if problem.kind == G else 1
    if tokens == 1:
        yield from _candidates_of_one(n, k, both)
    if 1 < tokens <= BUCKETS[-1]:
        yield from _candidates_of_few(problem, tokens, both)


def _candidates_of_one(n: int, k: int, both: int) -> Iterator[Config]:
    width = 1 << (k - 1).bit_length()
    for block_n, warps, waves in itertools.product((1, 2, 4, 8), (2, 4, 8, 16), (0, 2, 4, 8)):
        per_thread = block_n * both * width // (32 * warps)
        tiles = -(-n // block_n)
        most = 64 if width > 2048 else 128
        if not 16 <= per_thread <= most or (waves and tiles <= waves * 132):
            continue
        if waves * warps > 64 or width // (32 * warps) > 64:
            continue
        yield Rows(block_n, warps, waves)
    for block_n, block_k, warps, stages in itertools.product(
        (2, 4, 8, 16, 32), (512, 1024, 2048), (4, 8), (1, 2, 3, 4)
    ):
        per_thread = block_n * both * block_k // (32 * warps)
        if not 16 <= per_thread <= 64 or block_k > k or n // block_n < 100:
            continue
        if stages > 1 and stages * block_n * both * block_k * 2 > 100_000:
            continue
        if stages > max(1, -(-k // block_k)):
            continue
        yield Columns(block_n, block_k, warps, stages)


def _candidates_of_few(problem: Problem, tokens: int, both: int) -> Iterator[Config]:
    k, n = problem.k, problem.n
    for (swap, block_m), block_n, block_k, split, tma in itertools.product(
        ((True, max(16, tokens)), (False, max(64, tokens))),
        (16, 32, 64, 128),
        (64, 128, 256),
        (1, 2, 4, 7, 8),
        (False, True),
    ):
        programs = -(-n // block_n) * split
        few = programs < min(90, n // 16)
        if few or (split > 1 and (programs > 300 or problem.kind == G)):
            continue
        if k % (split * block_k) or k // split < 3 * block_k or (swap and block_n < 64):
            continue
        if n < 1000 and block_n > 16:
            continue
        stage = block_k * 2 * (block_n * both + block_m)
        at_once = min(4, -(-programs // 132))  # programs of a multiprocessor, if all are to run
        depths = {min(6, 222_000 // c // stage) for c in (at_once, max(1, at_once - 1))}
        # Little shared memory lets the next kernel's programs in, to fetch theirs ahead.
        for stages in sorted(depths | {min(4, 110_000 // stage)}):
            if stages < 3 or (stages - 1) * stage < 14_000:
                continue
            warps = 8 if block_n * both * block_m >= 128 * 64 else 4
            yield Skinny(block_m, block_n, block_k, warps, stages, split, swap, tma)


def _compile_share(jobs: list[tuple[Problem, int, Config | None]]) -> None:
    """Run each once, to fill the compiler's cache on disk."""
    largest = max((weight_rows(p) * p.k for p, _, _ in jobs), default=0)
    weight = torch.zeros(largest, dtype=torch.bfloat16, device="cuda")
    data = torch.zeros(1 << 21, dtype=torch.bfloat16, device="cuda")
    for problem, tokens, config in jobs:
        rows = weight_rows(problem)
        if config is None:
            continue
        w = weight[: rows * problem.k].view(rows, problem.k)
        x = data[: tokens * problem.k].view(tokens, problem.k)
        try:
            call(products_with(problem, config), problem, w, x, x, data[: problem.k])
        except Exception as error:
            print("failed", problem, config, str(error)[:90], flush=True)
    torch.cuda.synchronize()


def compile_all(jobs: list[tuple[Problem, int, Config | None]], workers: int) -> None:
    """In processes of their own, before this one has a CUDA context."""
    context = multiprocessing.get_context("fork")
    shares = [jobs[i::workers] for i in range(workers)]
    processes = [context.Process(target=_compile_share, args=(share,)) for share in shares]
    for process in processes:
        process.start()
    for process in processes:
        process.join()


def tune(problems: list[Problem], tokens: list[int], args: argparse.Namespace) -> None:
    start = time.perf_counter()
    jobs = [(p, m, c) for p in problems for m in tokens for c in candidates(p, m)]
    compile_all(jobs, args.workers)
    print(f"{len(jobs)} choices compiled in {time.perf_counter() - start:.0f} s", flush=True)
    bench = Bench(args.pool << 20)
    table: dict[str, dict[str, Any]] = {}
    for m, problem in itertools.product(tokens, problems):
        if time.perf_counter() - start > args.seconds:
            print(f"no time left for {problem!s} M={m}")
            continue
        tried = [c for p, t, c in jobs if (p, t) == (problem, m)]
        results = _time_all(bench, problem, m, tried)
        refined = [c for _, best in results[:3] for c in _variants(best, problem.k)]
        results = sorted([*results, *_time_all(bench, problem, m, refined)], key=lambda r: r[0])
        library = next(us for us, config in results if config is None)
        floor = floor_us(problem, m)
        print(f"{problem!s} M={m}: floor {floor:.2f}, library {library:.2f}, {len(results)} tried")
        for us, config in results[: args.best]:
            print(f"  {us:7.2f} us {us / floor:5.2f}x {config}", flush=True)
        table.setdefault(str(problem), {})[str(m)] = describe(results[0][1])
        if args.log:
            with open(args.log, "a") as file:
                for us, config in results:
                    print(json.dumps([str(problem), m, us, describe(config)]), file=file)
    _write(table, args.out)
    print(f"tuned in {time.perf_counter() - start:.0f} s")


def _time_all(
    bench: Bench, problem: Problem, tokens: int, configs: list[Config | None]
) -> list[tuple[float, Config | None]]:
    """(us, choice), the fastest first."""
    results = []
    for config in configs:
        try:
            us = time_problem(bench, products_with(problem, config), problem, tokens, 3)
        except Exception as error:
            print("failed", problem, config, str(error).splitlines()[0][:100], flush=True)
            continue
        results.append((us, config))
    return sorted(results, key=lambda pair: pair[0])


def _variants(config: Config | None, k: int) -> list[Config | None]:
    """The choice with some and with much of its weight fetched ahead, and the like."""
    if config is None:
        return []
    if isinstance(config, Rows):
        return [replace(config, prefetch=count) for count in (1, 3)] if config.waves else []
    if isinstance(config, Columns):
        most = 1 << (k.bit_length() - 1)
        return [replace(config, prefetch=elements) for elements in (most // 4, most)]
    others = [replace(config, num_warps=12 - config.num_warps)]
    share = k // config.split
    return others + [replace(config, prefetch=p) for p in (256, 512, 1024) if p <= share]


def _write(table: dict[str, dict[str, Any]], folder: Path) -> None:
    """Into the card's file, beside what it has."""
    folder.mkdir(exist_ok=True)
    path = folder / f"linear_{slug(torch.cuda.get_device_name())}.json"
    old = json.loads(path.read_text()) if path.exists() else {}
    for problem, choices in table.items():
        old.setdefault(problem, {}).update(choices)
    lines = []
    for problem in sorted(old):
        rows = [f'    "{m}": {json.dumps(old[problem][m])}' for m in sorted(old[problem], key=int)]
        lines.append(f'  "{problem}": {{\n' + ",\n".join(rows) + "\n  }")
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def show(models: list[str], tokens: list[int], args: argparse.Namespace) -> None:
    bench = Bench(args.pool << 20)
    device = torch.device("cuda", torch.cuda.current_device())
    print(f"{'':24}{'M':>5}{'ours':>9}{'library':>9}{'floor':>9}  TB/s")
    for model in models:
        for (name, problem), m in itertools.product(MODELS[model].items(), tokens):
            rows = weight_rows(problem)
            ours = products_of(rows, problem.k, torch.bfloat16, device)
            us = time_problem(bench, ours, problem, m)
            library = time_problem(bench, products_with(problem, None), problem, m)
            print(
                f"{model:15}{name:9}{m:5}{us:9.2f}{library:9.2f}{floor_us(problem, m):9.2f}"
                f"{2e-6 * rows * problem.k / us:6.2f}",
                flush=True,
            )


def show_layers(models: list[str], tokens: list[int], args: argparse.Namespace) -> None:
    """All linears of a layer one after the other, the attention left out."""
    bench = Bench(args.pool << 20)
    device = torch.device("cuda", torch.cuda.current_device())
    print(f"{'layer of':15}{'M':>5}{'ours':>9}{'library':>9}{'floor':>9}")
    for model, m in itertools.product(models, tokens):
        problems = [p for name, p in MODELS[model].items() if name != "lm_head"]
        ours = [products_of(weight_rows(p), p.k, torch.bfloat16, device) for p in problems]
        theirs = [products_with(p, None) for p in problems]
        size = sum(weight_rows(p) * p.k for p in problems)
        layers = max(2, min(6, len(bench.pool) // size))
        times = [bench.time(_layers(bench, problems, f, m, layers)) for f in (ours, theirs)]
        floor = sum(floor_us(p, m) for p in problems)
        us, library = (t * len(problems) for t in times)
        print(f"{model:15}{m:5}{us:9.2f}{library:9.2f}{floor:9.2f}", flush=True)


def _layers(
    bench: Bench, problems: list[Problem], products: list[Any], m: int, layers: int
) -> list[Callable[[], Any]]:
    calls, at = [], 0
    g = bench.ones
    for _ in range(layers):
        for problem, p in zip(problems, products, strict=True):
            rows = weight_rows(problem)
            w = bench.pool[at : at + rows * problem.k].view(rows, problem.k)
            at += rows * problem.k
            x, r = bench.x(m, problem.k), bench.x(m, problem.k, 3).clone()
            calls.append(partial(call, p, problem, w, x, r, g[: problem.k]))
    return calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--problems", default="", help="names, e.g. qkv,down; all by default")
    parser.add_argument("--tokens", default="1,2,4,8,16,32,64,128,256")
    parser.add_argument("--layer", action="store_true")
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--best", type=int, default=4, help="choices shown when tuning")
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop tuning after that")
    parser.add_argument("--log", default="", help="every time measured when tuning, JSON lines")
    parser.add_argument("--out", type=Path, default=Path(linear_config.__file__).parent / "configs")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 2))
    parser.add_argument("--pool", type=int, default=2700, help="MiB of weights")
    args = parser.parse_args()
    models, tokens = args.models.split(","), [int(m) for m in args.tokens.split(",")]
    if args.tune:
        names = args.problems.split(",") if args.problems else []
        chosen = [p for m in models for n, p in MODELS[m].items() if not names or n in names]
        tune(list(dict.fromkeys(chosen)), tokens, args)
    elif args.layer:
        show_layers(models, tokens, args)
    else:
        show(models, tokens, args)


if __name__ == "__main__":
    main()
