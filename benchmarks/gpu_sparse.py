"""Sparse attention on a GPU: microseconds of one layer's operations, beside the floor of each.

    python benchmarks/gpu_sparse.py [--device cpu --tiny]

Sizes of DeepSeek V3.2: 64 index heads of 128, 2048 keys chosen, latents of 512 + 64, the heads of
one rank of `--ranks`. Floors are the larger of bytes read once at the card's measured rate (index
keys; chosen latents) and operations at its bfloat16 rate; `choose` is `score` and the choice, whose
own floor is nothing beside it. Launches run in a CUDA graph over layers of their own data.
`--tiny --device cpu` under TRITON_INTERPRET=1 only shows that the program works.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from atom.ops.contracts import AttentionMetadata
from atom.ops.triton import sparse_mla, sparse_scores, sparse_topk

READ_BYTES_PER_US, FLOP_PER_US = 4.43e6, 800e6
BLOCK_SIZE = 16
SHAPES = [(1, 8192, 1), (1, 131072, 1), (32, 8192, 1), (64, 32768, 1), (1, 8192, 8192)]
SHAPES += [(1, 65536, 4096)]


class Sizes(NamedTuple):
    index_heads: int = 64
    index_dim: int = 128
    k: int = 2048
    rank: int = 512
    rope: int = 64


class Step:
    """`seqs` sequences of `context` tokens of which `new` are the step's, on scattered blocks."""

    def __init__(
        self, seqs: int, context: int, new: int, heads: int, sizes: Sizes, layers: int, device: str
    ) -> None:
        options = {"device": device, "dtype": torch.bfloat16}
        per_seq, tokens = -(-context // BLOCK_SIZE), seqs * new
        blocks = torch.randperm(seqs * per_seq).view(seqs, per_seq).to(torch.int32)
        lengths = torch.full((seqs,), context, dtype=torch.int32)
        starts = torch.arange(0, tokens + 1, new, dtype=torch.int32)
        self.sizes, self.heads, self.seqs, self.context, self.new = sizes, heads, seqs, context, new
        self.meta = AttentionMetadata(
            num_tokens=tokens,
            num_seqs=seqs,
            max_query_len=new,
            max_seq_len=context,
            slot_mapping=torch.zeros(tokens, dtype=torch.int64, device=device),
            block_table=blocks.to(device),
            cu_seqlens_q=starts.to(device),
            seq_lens=lengths.to(device),
        )
        pool = (seqs * per_seq, BLOCK_SIZE)
        self.keys = [torch.randn(*pool, sizes.index_dim, **options) for _ in range(layers)]
        self.latents = [
            torch.randn(*pool, sizes.rank + sizes.rope, **options) for _ in range(layers)
        ]
        self.q = torch.randn(tokens, sizes.index_heads, sizes.index_dim, **options)
        self.weights = torch.randn(tokens, sizes.index_heads, **options)
        self.q_latent = torch.randn(tokens, heads, sizes.rank, **options)
        self.q_rope = torch.randn(tokens, heads, sizes.rope, **options)
        self.chosen = [self.choose(keys) for keys in self.keys]

    def choose(self, keys: Tensor) -> Tensor:
        return sparse_topk.index_topk(self.q, self.weights, keys, self.meta, self.sizes.k)

    def score(self, keys: Tensor) -> None:
        """As `index_topk` does before it chooses."""
        tiling = sparse_scores.Tiling.of(self.meta)
        step = max(1, sparse_topk.WORKSPACE // (self.context * tiling.block_q))
        for first in range(0, tiling.tiles, step):
            rows = min(step, tiling.tiles - first) * tiling.block_q
            scores = torch.empty(rows, self.context, dtype=torch.float32, device=keys.device)
            sparse_scores.index_scores(
                scores, self.q, self.weights, keys, self.meta, self.sizes.k, tiling, first
            )

    def run(self, name: str) -> None:
        for keys, latents, chosen in zip(self.keys, self.latents, self.chosen, strict=True):
            if name == "score":
                self.score(keys)
            elif name == "choose":
                self.choose(keys)
            else:
                sparse_mla.sparse_mla(self.q_latent, self.q_rope, latents, chosen, 0.05)

    def floors(self) -> dict[str, float]:
        """us, by what is computed and what is read once."""
        s, tokens = self.sizes, self.seqs * self.new
        pairs = tokens * (self.context - self.new / 2)
        scored = 2 * pairs * s.index_heads * s.index_dim
        keys = self.seqs * self.context * 2 * s.index_dim
        attended = 2 * tokens * s.k * self.heads * (2 * s.rank + s.rope)
        latents = min(tokens * s.k, self.seqs * self.context) * 2 * (s.rank + s.rope)
        score = max(scored / FLOP_PER_US, keys / READ_BYTES_PER_US)
        attend = max(attended / FLOP_PER_US, latents / READ_BYTES_PER_US)
        return {"score": score, "choose": score, "attend": attend}


def time_us(run: Callable[[], None], layers: int, device: str, repeats: int = 15) -> float:
    """Of one layer: the median over replays of a graph of all of them; on CPU, of one run."""
    run()
    if device == "cpu":
        start = time.perf_counter()
        run()
        return (time.perf_counter() - start) * 1e6 / layers
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    graph.replay()
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1000 / layers)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    sizes = Sizes(4, 32, 8, 32, 16) if args.tiny else Sizes()
    shapes = [(2, 40, 1), (1, 20, 9)] if args.tiny else SHAPES
    print(f"{'seqs':>5} {'context':>8} {'new':>6} {'what':8} {'us':>10} {'floor':>10} {'share':>6}")
    for seqs, context, new in shapes:
        layers = 2 if args.tiny or seqs * context > 1 << 20 else 4
        step = Step(seqs, context, new, max(128 // args.ranks, 1), sizes, layers, args.device)
        floors = step.floors()
        for name in floors:
            us = time_us(partial(step.run, name), layers, args.device)
            print(
                f"{seqs:5} {context:8} {new:6} {name:8} {us:10.1f} {floors[name]:10.1f} "
                f"{floors[name] / us:6.0%}"
            )


if __name__ == "__main__":
    main()
