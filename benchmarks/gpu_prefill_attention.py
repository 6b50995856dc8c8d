"""Attention of prompts over the paged cache, beside torch's own dense attention of the same data.

    python -m benchmarks.gpu_prefill_attention

TFLOP/s count 4 * head size * query heads * (query, key) pairs that the causal mask keeps. Each
figure is the median of replays of a CUDA graph that runs every layer's worth of distinct data.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from atom.ops.contracts import AttentionMetadata
from atom.ops.triton.varlen_attention import varlen_attention

HEADS = {"llama-3.1-8b": (32, 8), "qwen3-0.6b": (16, 8), "qwen3-30b-a3b": (32, 4)}
HEAD_DIM = 128
LAYERS = 4  # distinct inputs and caches that a graph goes through


class Step(NamedTuple):
    """(tokens in the cache before, new tokens) of each sequence."""

    name: str
    chunks: list[tuple[int, int]]

    @property
    def pairs(self) -> int:
        return sum(new * done + new * (new + 1) // 2 for done, new in self.chunks)

    @property
    def dense(self) -> bool:
        """Equal prompts from their start: what a dense kernel can do too."""
        return len(set(self.chunks)) == 1 and self.chunks[0][0] == 0


STEPS = [
    Step("1 x 16384", [(0, 16384)]),
    Step("8 x 2048", [(0, 2048)] * 8),
    Step("32 x 2048", [(0, 2048)] * 32),
    Step("16 x 1024", [(0, 1024)] * 16),
    Step("64 x 256", [(0, 256)] * 64),
    Step("2 x 4096 after 8192", [(8192, 4096)] * 2),
    Step("64 decodes at 1024 + 15 x 1024", [(1024, 1)] * 64 + [(0, 1024)] * 15),
]


def make_step(
    step: Step, num_kv_heads: int, block_size: int, dtype: torch.dtype
) -> tuple[AttentionMetadata, int]:
    """Metadata with shuffled blocks, and the size of the pool."""
    counts = [-(-(done + new) // block_size) for done, new in step.chunks]
    free = list(range(sum(counts)))
    random.Random(0).shuffle(free)
    table = torch.zeros(len(counts), max(counts), dtype=torch.int32)
    starts, slots = [0], []
    for row, (count, (done, new)) in enumerate(zip(counts, step.chunks, strict=True)):
        blocks = torch.tensor([free.pop() for _ in range(count)])
        table[row, :count] = blocks
        at = torch.arange(done, done + new)
        slots.append(blocks[at // block_size] * block_size + at % block_size)
        starts.append(starts[-1] + new)
    meta = AttentionMetadata(
        num_tokens=starts[-1],
        num_seqs=len(counts),
        max_query_len=max(new for _, new in step.chunks),
        max_seq_len=max(done + new for done, new in step.chunks),
        slot_mapping=torch.cat(slots).cuda(),
        block_table=table.cuda(),
        cu_seqlens_q=torch.tensor(starts, dtype=torch.int32).cuda(),
        seq_lens=torch.tensor([a + b for a, b in step.chunks], dtype=torch.int32).cuda(),
    )
    return meta, sum(counts)


def time_graph(runs: list[Callable[[], object]], replays: int = 5) -> float:
    """Median seconds of one of `runs`, which are captured one after the other."""
    for run in runs[:1]:
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for run in runs:
            run()
    graph.replay()
    times = []
    for _ in range(replays):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3 / len(runs))
    return sorted(times)[len(times) // 2]


def ours(step: Step, heads: tuple[int, int], dtype: torch.dtype, kv_dtype: torch.dtype) -> float:
    """Seconds of a layer."""
    meta, blocks = make_step(step, heads[1], 16, dtype)
    runs = []
    for _ in range(LAYERS):
        q = torch.randn(meta.num_tokens, heads[0], HEAD_DIM, device="cuda", dtype=dtype)
        k, v = (
            torch.randn(blocks, 16, heads[1], HEAD_DIM, device="cuda", dtype=dtype).to(kv_dtype)
            for _ in range(2)
        )
        out = torch.empty_like(q)
        runs.append(
            lambda q=q, k=k, v=v, out=out: varlen_attention(q, k, v, meta, HEAD_DIM**-0.5, out=out)
        )
    return time_graph(runs)


def dense(step: Step, heads: tuple[int, int], dtype: torch.dtype, backend: SDPBackend) -> float:
    """Seconds of torch's attention for a step of equal prompts; NaN where it cannot."""
    count, length = len(step.chunks), step.chunks[0][1]
    runs: list[Callable[[], Tensor]] = []
    for _ in range(LAYERS):
        q, k, v = (
            torch.randn(count, length, h, HEAD_DIM, device="cuda", dtype=dtype).transpose(1, 2)
            for h in (heads[0], heads[1], heads[1])
        )
        runs.append(
            lambda q=q, k=k, v=v: F.scaled_dot_product_attention(
                q, k, v, is_causal=True, enable_gqa=True
            )
        )
    try:
        with sdpa_kernel(backend):
            return time_graph(runs)
    except RuntimeError as error:
        print(f"  {backend}: {str(error).splitlines()[0]}")
        return float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=HEADS, action="append")
    parser.add_argument("--kv-dtype", default="bfloat16", choices=("bfloat16", "float8_e4m3fn"))
    parser.add_argument("--no-torch", action="store_true", help="leave torch's kernels out")
    args = parser.parse_args()
    print(f"{'model':14} {'step':32} {'us':>9} {'TFLOP/s':>8} {'flash':>7} {'cuDNN':>7}")
    for model in args.model or HEADS:
        heads = HEADS[model]
        for step in STEPS:
            flops = 4 * HEAD_DIM * heads[0] * step.pairs
            seconds = ours(step, heads, torch.bfloat16, getattr(torch, args.kv_dtype))
            row = f"{model:14} {step.name:32} {seconds * 1e6:9.1f} {flops / seconds / 1e12:8.0f}"
            if step.dense and not args.no_torch:
                for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
                    other = flops / dense(step, heads, torch.bfloat16, backend) / 1e12
                    row += f" {other:7.0f}"
            print(row, flush=True)


if __name__ == "__main__":
    main()
