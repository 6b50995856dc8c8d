"""Decode attention on a GPU: microseconds of one layer, and the share of the floor.

    python benchmarks/gpu_decode_attention.py

One launch norms, rotates, writes the cache and attends. A CUDA graph holds launches over as many
layers as exceed the L2 cache; the floor is the bytes of keys, values, projection and output over
the card's measured read bandwidth. `alone`: without the overlap with the launch before.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass

import torch
from torch import Tensor

from atom.ops.contracts import AttentionMetadata, AttentionParams
from atom.ops.triton.decode_attention import Cut, launch

READ_BYTES_PER_US = 4.43e6
MODELS = {  # query heads, KV heads, head size, norms
    "llama-3.1-8b": (32, 8, 128, False),
    "qwen3-0.6b": (16, 8, 128, True),
    "qwen3-30b-a3b": (32, 4, 128, True),
}
SHAPES = [(1, 192), (1, 2048), (1, 32768), (8, 192), (32, 192), (128, 192), (256, 1088)]
DTYPES = {"bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}
BLOCK_SIZE = 16


@dataclass
class Layer:
    qkv: Tensor
    k_cache: Tensor
    v_cache: Tensor
    out: Tensor


class Step:
    """`batch` sequences of `context` tokens, their blocks scattered over the pool, in layers of
    their own data."""

    def __init__(
        self,
        batch: int,
        context: int,
        model: str,
        kv_dtype: torch.dtype,
        layers: int = 0,
        max_len: int = 40960,
    ) -> None:
        hq, hk, dim, norms = MODELS[model]
        per_seq = -(-context // BLOCK_SIZE)
        keys = 2 * batch * context * hk * dim * kv_dtype.itemsize
        self.bytes = keys + batch * (2 * hq + 2 * hk) * dim * 2
        self.floor_us = self.bytes / READ_BYTES_PER_US
        layers = layers or min(64, max(4, -(-160_000_000 // keys)))
        options = {"device": "cuda", "dtype": torch.bfloat16}
        pool = (batch * per_seq, BLOCK_SIZE, hk, dim)
        self.layers = [
            Layer(
                torch.randn(batch, hq + 2 * hk, dim, **options),
                torch.randn(pool, **options).to(kv_dtype),
                torch.randn(pool, **options).to(kv_dtype),
                torch.empty(batch, hq, dim, **options),
            )
            for _ in range(layers)
        ]
        blocks = torch.randperm(pool[0]).view(batch, per_seq).to(torch.int32)
        table = torch.zeros(batch, max_len // BLOCK_SIZE, dtype=torch.int32)
        table[:, :per_seq] = blocks
        last = context - 1
        self.meta = AttentionMetadata(
            num_tokens=batch,
            num_seqs=batch,
            max_query_len=1,
            max_seq_len=max_len,
            slot_mapping=(blocks[:, -1].long() * BLOCK_SIZE + last % BLOCK_SIZE).cuda(),
            block_table=table.cuda(),
            cu_seqlens_q=torch.arange(batch + 1, dtype=torch.int32).cuda(),
            seq_lens=torch.full((batch,), context, dtype=torch.int32).cuda(),
        )
        self.positions = torch.full((batch,), last).cuda()
        weight = torch.ones(dim, **options) if norms else None
        self.params = AttentionParams(
            num_heads=hq,
            num_kv_heads=hk,
            head_dim=dim,
            scale=dim**-0.5,
            cos_sin=torch.rand(max_len, dim, device="cuda"),
            q_norm=weight,
            k_norm=weight,
            norm_eps=1e-6,
        )

    def run(self, cut: Cut | None, dependent: bool) -> None:
        for layer in self.layers:
            launch(
                layer.qkv,
                layer.k_cache,
                layer.v_cache,
                self.meta,
                self.params,
                layer.out,
                self.positions,
                cut,
                dependent,
            )

    def time_us(self, cut: Cut | None = None, dependent: bool = True, repeats: int = 15) -> float:
        """Of one layer: the median over replays of a graph of all layers."""
        self.run(cut, dependent)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.run(cut, dependent)
        graph.replay()
        times = []
        for _ in range(repeats):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) * 1000 / len(self.layers))
        return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    args = parser.parse_args()
    print(f"{'model':14} {'kv':5} {'batch':>5} {'context':>7} {'us':>8} {'alone':>8} "
          f"{'floor':>8} {'share':>6}")  # fmt: skip
    for model in args.models:
        for name, kv_dtype in DTYPES.items():
            for batch, context in SHAPES:
                step = Step(batch, context, model, kv_dtype)
                us, alone = step.time_us(), step.time_us(dependent=False)
                print(f"{model:14} {name:5} {batch:5} {context:7} {us:8.2f} {alone:8.2f} "
                      f"{step.floor_us:8.2f} {step.floor_us / us:6.0%}")  # fmt: skip


if __name__ == "__main__":
    main()
