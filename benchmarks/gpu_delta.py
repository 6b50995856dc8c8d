"""Gated DeltaNet on a GPU: microseconds of one layer's operation, beside its floor.

    python benchmarks/gpu_delta.py [--ranks 1] [--device cpu --tiny]

Sizes of Qwen3-Next and Qwen3.5-MoE: 16 key heads, 32 value heads, 128 channels, 4 taps, shared out
over `--ranks`. The floor is the bytes read and written once (states, inputs, outputs) at the card's
measured rate; of prompts it is far below what chunks cost, so that their kernels are also timed
each. Launches run in a CUDA graph over layers of their own states. `--tiny --device cpu` under
TRITON_INTERPRET=1 only shows that the program works.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from atom.ops.contracts import AttentionMetadata
from atom.ops.contracts_delta import DeltaNetParams
from atom.ops.triton.delta import gated_delta_net

BYTES_PER_US = 4.43e6
LAYERS = 4
# Sequences that decode, and lengths of prompts in the same step.
STEPS: list[tuple[int, list[int]]] = [(n, []) for n in (1, 8, 32, 64, 128, 256)]
STEPS += [(0, [512]), (0, [2048]), (0, [8192]), (0, [1024] * 8), (64, [2048])]


def make_params(ranks: int, tiny: bool, device: str) -> DeltaNetParams:
    heads, dim = (2, 16) if tiny else (16 // ranks, 128)
    channels = 4 * heads * dim
    options = {"device": device, "dtype": torch.float32}
    return DeltaNetParams(
        num_k_heads=heads,
        num_v_heads=2 * heads,
        k_dim=dim,
        v_dim=dim,
        taps=4,
        eps=1e-6,
        conv_weight=torch.randn(4, channels, **options).to(torch.bfloat16),
        rate=torch.rand(2 * heads, **options),
        dt_bias=torch.randn(2 * heads, **options),
        norm_weight=torch.ones(dim, **options),
    )


class Step:
    """`decodes` sequences of one token and one of each of `prompts`, in every layer."""

    def __init__(
        self, params: DeltaNetParams, decodes: int, prompts: list[int], device: str
    ) -> None:
        lengths = [1] * decodes + prompts
        self.params, self.seqs, self.tokens = params, len(lengths), sum(lengths)
        new = torch.tensor(lengths, dtype=torch.int32)
        zero = torch.zeros(1, dtype=torch.int32)
        starts = torch.cat((zero, new.cumsum(0, dtype=torch.int32)))
        done = torch.tensor([1000] * decodes + [0] * len(prompts), dtype=torch.int32)
        self.meta = AttentionMetadata(
            num_tokens=self.tokens,
            num_seqs=self.seqs,
            max_query_len=max(lengths),
            max_seq_len=int((new + done).max()),
            slot_mapping=torch.zeros(self.tokens, dtype=torch.int64, device=device),
            block_table=torch.zeros(self.seqs, 1, dtype=torch.int32, device=device),
            cu_seqlens_q=starts.to(device),
            seq_lens=(new + done).to(device),
            state_slots=torch.randperm(self.seqs).to(device, torch.int32),
        )
        half = {"device": device, "dtype": torch.bfloat16}
        heads, dims = params.num_v_heads, (params.v_dim, params.k_dim)
        self.x = torch.randn(self.tokens, params.width, **half)
        self.rings = [torch.randn(self.seqs, 4, params.channels, **half) for _ in range(LAYERS)]
        self.states = [
            torch.randn(self.seqs, heads, *dims, device=device) * 0.1 for _ in range(LAYERS)
        ]

    def run(self) -> None:
        for ring, state in zip(self.rings, self.states, strict=True):
            gated_delta_net(self.x, ring, state, self.meta, self.params)

    def floor_us(self) -> float:
        state = 8 * self.params.num_v_heads * self.params.v_dim * self.params.k_dim
        rows = 2 * (self.params.width + self.params.v_size)
        return (self.seqs * state + self.tokens * rows) / BYTES_PER_US


def time_us(run: Callable[[], None], device: str, repeats: int = 15) -> float:
    """Of one layer: the median over replays of a graph of all of them; on CPU, of one run."""
    run()
    if device == "cpu":
        start = time.perf_counter()
        run()
        return (time.perf_counter() - start) * 1e6 / LAYERS
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
        times.append(begin.elapsed_time(end) * 1000 / LAYERS)
    return statistics.median(times)


def kernels_us(run: Callable[[], None]) -> dict[str, float]:
    """Of one layer, by kernel, run eagerly."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize()
    return {e.key: e.device_time_total / LAYERS for e in profile.key_averages()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    params = make_params(args.ranks, args.tiny, args.device)
    steps: list[tuple[int, list[int]]] = [(2, []), (1, [70])] if args.tiny else STEPS
    print(f"{'decodes':>8} {'prompts':>16} {'us':>10} {'floor':>10} {'share':>6}")
    for decodes, prompts in steps:
        step = Step(params, decodes, prompts, args.device)
        us, floor = time_us(step.run, args.device), step.floor_us()
        named = f"{len(prompts)} x {prompts[0]}" if prompts else "-"
        print(f"{decodes:8} {named:>16} {us:10.1f} {floor:10.1f} {floor / us:6.0%}")
        if prompts and args.device != "cpu":
            for name, spent in kernels_us(step.run).items():
                print(f"{'':8} {name:>40} {spent:10.1f}")


if __name__ == "__main__":
    main()
