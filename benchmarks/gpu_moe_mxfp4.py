"""Experts in MXFP4 on a GPU: time of the layer's products, against the floor and bfloat16.

    python benchmarks/gpu_moe_mxfp4.py [--shape gpt-oss-120b ...] [--tokens 1 8 64 1024 ...]
    python benchmarks/gpu_moe_mxfp4.py --tiles ...          # every tile of a list, best first

Times and floors are as in `gpu_moe.py`; routing is random, weights are not in the cache.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator

import torch
from gpu_moe import MATH, READ, timed
from torch import Tensor

from atom.ops.contracts import GatedActivation, MXFP4Weight
from atom.ops.triton import moe, moe_mxfp4, moe_mxfp4_pairs
from atom.ops.triton.moe_act import Extras
from atom.ops.triton.moe_config import Config, GroupedConfig, PairConfig, PairTile, Problem, Tile

SHAPES = {
    "gpt-oss-120b": Problem(128, 2880, 2880, 4),
    "gpt-oss-20b": Problem(32, 2880, 2880, 4),
    "gpt-oss-120b, a rank of four": Problem(128, 2880, 736, 4),
}
TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 4096, 16384)
ACT = GatedActivation("gpt_oss", 7.0)


class Case:
    def __init__(self, problem: Problem, tokens: int) -> None:
        self.problem, self.tokens = problem, tokens
        experts, size, wide = problem.num_experts, problem.hidden, problem.wide
        self.w13, self.w2 = _random(experts, 2 * wide, size), _random(experts, size, wide)
        make = {"device": "cuda", "dtype": torch.bfloat16}
        self.extras = Extras(ACT, torch.randn(experts, 2 * wide, **make), None)
        self.x = torch.randn(tokens, size, **make)
        count = 16 if tokens < 1024 else 2
        self.routes = [self._route() for _ in range(count)]
        self.touched = sum(len(ids.unique()) for _, ids in self.routes) / count

    def _route(self) -> tuple[Tensor, Tensor]:
        logits = torch.randn(self.tokens, self.problem.num_experts, device="cuda")
        weights, ids = logits.softmax(-1).topk(self.problem.top_k)
        return weights, ids.int()

    def floor(self) -> float:
        values = 3 * self.problem.hidden * self.problem.wide
        pairs = self.tokens * self.problem.top_k
        return max(values * 17 / 32 * self.touched / READ, 2 * values * pairs / MATH)

    def time(self, config: Config | None) -> float:
        """Seconds of both products, by the rule without a `config`."""
        return timed([lambda r=route: self._run(*r, config) for route in self.routes])

    def _run(self, weights: Tensor, ids: Tensor, config: Config | None) -> Tensor:
        if config is None:
            return moe.fused_experts(self.x, self.w13, self.w2, weights, ids, *self.extras)
        run = moe_mxfp4.experts_grouped
        if isinstance(config, PairConfig):
            run = moe_mxfp4_pairs.experts_by_pair  # type: ignore[assignment]
        return run(self.x, self.w13, self.w2, weights, ids, config, self.extras)  # type: ignore[arg-type]


def _random(experts: int, rows: int, cols: int) -> MXFP4Weight:
    shape = (experts, rows, cols // 2)
    data = torch.randint(0, 256, shape, dtype=torch.uint8, device="cuda")
    scales = torch.full((experts, rows, cols // 32), 120, dtype=torch.uint8, device="cuda")
    return MXFP4Weight(data, scales)


def candidates(tokens: int) -> Iterator[Config]:
    if tokens <= 16:
        sizes = itertools.product((8, 16, 32), (128, 256, 512), (4, 8), (2, 4))
        for n, k, warps, stages in sizes:
            yield PairConfig(PairTile(n, k, warps, stages), PairTile(n // 4, k, warps, stages))
    for m, n, k, stages in itertools.product((16, 32, 64, 128), (64, 128), (64, 128), (2, 3, 4)):
        warps = 8 if m * n >= 8192 else 4
        yield GroupedConfig(m, Tile(n, k, 8, warps, stages), Tile(n, k, 8, warps, stages))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--tokens", nargs="+", type=int, default=list(TOKENS))
    parser.add_argument("--tiles", action="store_true")
    arguments = parser.parse_args()
    for name, tokens in itertools.product(arguments.shape, arguments.tokens):
        case = Case(SHAPES[name], tokens)
        floor, spent = case.floor(), case.time(None)
        print(f"{name} T={tokens}: {spent * 1e6:.1f} us, floor {floor * 1e6:.1f}", flush=True)
        if arguments.tiles:
            found = sorted(((case.time(c), str(c)) for c in candidates(tokens)), key=lambda p: p[0])
            for seconds, config in found[:3]:
                print(f"    {seconds * 1e6:.1f} us {config}", flush=True)


if __name__ == "__main__":
    main()
