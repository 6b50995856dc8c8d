"""Mixture of experts on a GPU: time of each kernel and of the whole layer, against the floor.

    python benchmarks/gpu_moe.py [--shape qwen3-30b-a3b ...] [--tokens 1 32 128 ...]
    python benchmarks/gpu_moe.py --tune [...]              # writes atom/ops/triton/configs/

Times are medians of replayed CUDA graphs of many launches, each with other experts (weights cold in
the cache). Floors: bytes of the experts touched over 4.43 TB/s, or operations over 786 TFLOP/s, as
measured on the H200. `--tune` tries candidates, compiled beforehand by worker processes.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from atom.ops.triton import moe, moe_grouped, moe_order, moe_pairs, moe_routing
from atom.ops.triton.elementwise import add_rms_norm_apart
from atom.ops.triton.moe_config import GroupedConfig, PairConfig, PairTile, Problem, Tile
from atom.ops.triton.moe_pairs import Choice

READ, MATH = 4.43e12, 786e12
SHAPES = {
    "qwen3-30b-a3b": Problem(128, 2048, 768, 8),
    "mixtral-8x7b": Problem(8, 4096, 14336, 2),
    "deepseek-v2-lite": Problem(64, 2048, 1408, 6),
    "deepseek-v3": Problem(256, 7168, 2048, 8),
    "glm-4.5-air": Problem(128, 4096, 1408, 8),
    "gpt-oss-120b": Problem(128, 2880, 2880, 4),
    "minimax-m2": Problem(256, 3072, 1536, 8),
}
TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 16384)


class Case:
    """Random inputs of one layer, and several routings of them."""

    def __init__(self, problem: Problem, tokens: int, experts: tuple[Tensor, Tensor]) -> None:
        self.problem, self.tokens = problem, tokens
        self.w13, self.w2 = experts
        make = {"device": "cuda", "dtype": torch.bfloat16}
        self.count = 16 if tokens < 1024 else 2
        self.x = torch.randn(tokens, problem.hidden, **make)
        self.residual = torch.randn(tokens, problem.hidden, **make)
        self.norm = torch.ones(problem.hidden, **make)
        self.routers = [
            torch.randn(problem.num_experts, problem.hidden, **make) * 0.02
            for _ in range(self.count)
        ]
        self.parts = [moe_routing.route_logits(self.x, router) for router in self.routers]
        self.logits = [part.sum(0) for part in self.parts]
        self.routes = [moe_routing.topk_softmax(one, problem.top_k, True) for one in self.logits]
        touched = [len(ids.unique()) for _, ids in self.routes]
        self.touched = statistics.mean(touched)

    def orders(self, block_m: int) -> list[moe_order.Order]:
        experts = self.problem.num_experts
        return [moe_order.sort_pairs(ids, experts, block_m) for _, ids in self.routes]

    @property
    def pairs(self) -> int:
        return self.tokens * self.problem.top_k

    def floor(self, matrices: int) -> float:
        """Seconds at least, of 2 (gate and up), 1 (down) or 3 matrices of each expert touched."""
        size = matrices * self.problem.hidden * self.problem.wide
        return max(2 * size * self.touched / READ, 2 * size * self.pairs / MATH)


def make_weights(problem: Problem) -> tuple[Tensor, Tensor]:
    experts, size, wide = problem.num_experts, problem.hidden, problem.wide
    w13 = torch.empty(experts, 2 * wide, size, device="cuda", dtype=torch.bfloat16)
    w2 = torch.empty(experts, size, wide, device="cuda", dtype=torch.bfloat16)
    return w13.normal_(0, 0.02), w2.normal_(0, 0.02)


def timed(launches: list[Callable[[], object]], repeats: int = 5) -> float:
    """Median seconds of one launch."""
    for launch in launches[:2]:
        launch()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for launch in launches:
            launch()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    times = []
    graph.replay()
    for _ in range(repeats):
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3 / len(launches))
    return statistics.median(times)


def layer(case: Case) -> float:
    """The whole of it: norm, router, experts."""

    def launch(router: Tensor) -> Callable[[], object]:
        arguments = (case.x, case.residual, case.norm, 1e-6, router, case.w13, case.w2)
        return lambda: moe.sparse_moe(*arguments, case.problem.top_k, True)

    return timed([launch(router) for router in case.routers])


Launches = list[Callable[[], object]]


def launches(case: Case, part: str, block_m: int, tile: Tile | PairTile) -> Launches:
    """One of the two products, cut up as `tile` says; `block_m` 0: pair by pair."""
    k, wide = case.problem.top_k, case.problem.wide
    if isinstance(tile, PairTile):
        choices = [Choice(k, logits=logits, renormalize=True) for logits in case.logits]
        if part == "gate_up":
            return [(lambda c=c: moe_pairs.gate_up(case.x, case.w13, c, tile)) for c in choices]
        hidden = torch.randn(case.pairs, wide, device="cuda", dtype=torch.bfloat16)
        return [(lambda c=c: moe_pairs.down(hidden, case.w2, c, tile)) for c in choices]
    orders = case.orders(block_m)
    if part == "gate_up":
        return [(lambda o=o: moe_grouped.gate_up(case.x, case.w13, o, k, tile)) for o in orders]
    rows = orders[0].max_blocks * block_m
    hidden = torch.randn(rows, wide, device="cuda", dtype=torch.bfloat16)
    return [
        (lambda o=o, w=weights: moe_grouped.down(hidden, case.w2, o, w, tile))
        for o, (weights, _) in zip(orders, case.routes, strict=True)
    ]


def both(case: Case, block_m: int, first: Tile | PairTile, second: Tile | PairTile) -> Launches:
    """The two products after each other."""
    k = case.problem.top_k
    if isinstance(first, PairTile) and isinstance(second, PairTile):
        config = PairConfig(first, second)
        choices = [Choice(k, logits=logits, renormalize=True) for logits in case.logits]
        return [
            (lambda c=c: moe_pairs.experts_by_pair(case.x, case.w13, case.w2, c, config))
            for c in choices
        ]

    def run(order: moe_order.Order, weights: Tensor) -> object:
        hidden = moe_grouped.gate_up(case.x, case.w13, order, k, first)
        return moe_grouped.down(hidden, case.w2, order, weights, second)

    orders = case.orders(block_m)
    return [
        (lambda o=o, w=weights: run(o, w))
        for o, (weights, _) in zip(orders, case.routes, strict=True)
    ]


def parts(case: Case, config: PairConfig | GroupedConfig) -> dict[str, float]:
    """Seconds of each kernel by itself."""
    block_m = config.block_m if isinstance(config, GroupedConfig) else 0
    products = {
        part: timed(launches(case, part, block_m, tile))
        for part, tile in (("gate_up", config.gate_up), ("down", config.down))
    }
    norm = (case.x, case.residual, case.norm, 1e-6)
    if isinstance(config, PairConfig):
        score = [(lambda r=r: moe_routing.norm_and_score(*norm, r)) for r in case.routers]
        return {**products, "norm+router": timed(score)}
    experts, k = case.problem.num_experts, case.problem.top_k
    ids = [chosen for _, chosen in case.routes]
    rows = torch.randn(case.pairs, case.problem.hidden, device="cuda", dtype=torch.bfloat16)
    others: dict[str, Launches] = {
        "sort": [(lambda i=i: moe_order.sort_pairs(i, experts, block_m)) for i in ids],
        "combine": [(lambda i=i: moe_grouped.combine(rows, i)) for i in ids],
    }
    if case.tokens <= 16:
        others["norm+router"] = [
            (lambda r=r: moe_routing.norm_and_score(*norm, r)) for r in case.routers
        ]
    else:
        add_norm = [lambda: add_rms_norm_apart(case.x, case.residual, case.norm, 1e-6)]
        route = [(lambda r=r: moe_routing.route_logits(case.x, r)) for r in case.routers]
        others |= {"norm": add_norm * case.count, "router": route}
    others["topk"] = [(lambda g=g: moe_routing.topk_of_parts(g, k, True)) for g in case.parts]
    return {**products, **{part: timed(runs) for part, runs in others.items()}}


def report(name: str, tokens: tuple[int, ...]) -> None:
    problem = SHAPES[name]
    experts = make_weights(problem)
    print(f"\n{name} ({problem}), us; rate of the two products alone")
    for count in tokens:
        case = Case(problem, count, experts)
        config = moe.config_for(case.x, case.w2, problem.top_k)
        kernels = parts(case, config)
        total, products = layer(case), kernels["gate_up"] + kernels["down"]
        size = 3 * problem.hidden * problem.wide * 2
        rate = (
            f"{size * case.touched / products / 1e12:.2f} TB/s"
            if case.floor(3) == size * case.touched / READ
            else f"{size * case.pairs / products / 1e12:.0f} TFLOP/s"
        )
        shown = " ".join(f"{part} {seconds * 1e6:.1f}" for part, seconds in kernels.items())
        print(
            f"T={count:<6} layer {total * 1e6:8.1f} floor {case.floor(3) * 1e6:8.1f} {rate:>12} "
            f"| {shown}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", nargs="*", default=["qwen3-30b-a3b"], choices=list(SHAPES))
    parser.add_argument("--tokens", nargs="*", type=int, default=list(TOKENS))
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--workers", type=int, default=14)
    arguments = parser.parse_args()
    for name in arguments.shape:
        if arguments.tune:
            import gpu_moe_tune

            gpu_moe_tune.tune(SHAPES[name], arguments.tokens, arguments.workers)
        else:
            report(name, tuple(arguments.tokens))


if __name__ == "__main__":
    main()
