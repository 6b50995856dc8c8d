"""CPU kernels against their floors and against torch, at the embedded model's shapes.

    python benchmarks/cpu_ops.py [--rows 1,8,16,128] [--repeat 15] [--torch]

All linears of one step (30 layers of distinct weights and the head, so that caches miss as they do
in service) and the other operations of a layer, 30 times. Times are the best of `--repeat`, because
other processes only ever add to them. Floors: bytes over the measured read bandwidth, and for
products 2 M N K over the rate of a large torch matrix product in bf16.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from atom.ops.contracts import AttentionMetadata, GGUFWeight
from atom.ops.cpu import attention, elementwise, native
from atom.ops.cpu.linear import NativeLinear

LAYERS, HIDDEN, INNER, HEADS, KV_HEADS, DIM, VOCAB = 30, 576, 1536, 9, 3, 64, 49152
SHAPES = [
    ((HEADS + 2 * KV_HEADS) * DIM, HIDDEN),
    (HIDDEN, HIDDEN),
    (2 * INNER, HIDDEN),
    (HIDDEN, INNER),
]
BLOCK_BYTES = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}


def best_ms(run: Callable[[], object], repeat: int) -> float:
    run()
    best = float("inf")
    for _ in range(repeat):
        begin = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - begin)
    return best * 1e3


def best_sum_ms(runs: Sequence[Callable[[], object]], repeat: int) -> float:
    """One after the other, `repeat` times over; the sum of each one's best.

    A short piece is more often left alone by other processes than a whole step is.
    """
    best = [float("inf")] * len(runs)
    for _ in range(repeat + 1):
        for i, run in enumerate(runs):
            begin = time.perf_counter()
            run()
            best[i] = min(best[i], time.perf_counter() - begin)
    return sum(best) * 1e3


def random_gguf(fmt: str, n: int, k: int) -> GGUFWeight:
    """Random quants with scales of a sane size."""
    blocks = torch.randint(0, 256, (n, k // 32, BLOCK_BYTES[fmt]), dtype=torch.uint8)
    scales = torch.full((n, k // 32, 2 if fmt == "Q4_1" else 1), 0.01, dtype=torch.float16)
    header = scales.view(torch.uint8)
    blocks[..., : header.shape[-1]] = header
    return GGUFWeight(fmt, blocks.view(n, -1), (n, k))


def read_bandwidth() -> float:
    """Bytes per millisecond of summing 256 MiB."""
    x = torch.ones(1 << 26)
    return x.nbytes / best_ms(x.sum, 8)


def matmul_rate() -> float:
    """bf16 operations per millisecond of a large torch product."""
    a = torch.randn(1024, 4096, dtype=torch.bfloat16)
    b = torch.randn(4096, 4096, dtype=torch.bfloat16)
    return 2 * 1024 * 4096 * 4096 / best_ms(lambda: a @ b.T, 5)


def native_linears(body: str, head: str) -> list[NativeLinear]:
    layers = [NativeLinear(random_gguf(body, n, k)) for _ in range(LAYERS) for n, k in SHAPES]
    return [*layers, NativeLinear(random_gguf(head, VOCAB, HIDDEN))]


def bf16_linear(x: Tensor, weight: Tensor) -> Tensor:
    return F.linear(x.bfloat16(), weight)


def bench_linears(rows: list[int], repeat: int, with_torch: bool) -> None:
    linears = native_linears("Q4_1", "Q8_0")
    bandwidth, rate = read_bandwidth(), matmul_rate()
    size = sum(linear.nbytes for linear in linears)
    macs = sum(linear.in_features * linear.out_features for linear in linears)
    print(
        f"linears: {size / 1e6:.1f} MB, {bandwidth / 1e6:.1f} GB/s, {rate / 1e9:.2f} TFLOP/s bf16"
    )
    dense = (
        [
            torch.randn(linear.out_features, linear.in_features).to(torch.bfloat16)
            for linear in linears
        ]
        if with_torch
        else []
    )
    print(f"{'rows':>5} {'ms':>8} {'floor':>8}" + (f" {'torch bf16':>11}" if with_torch else ""))
    for m in rows:
        inputs = {k: torch.randn(m, k) for k in (HIDDEN, INNER)}

        runs = [partial(linear, inputs[linear.in_features]) for linear in linears]
        torch_runs = [partial(bf16_linear, inputs[w.shape[1]], w) for w in dense]
        floor = max(size / bandwidth, 2 * m * macs / rate)
        line = f"{m:>5} {best_sum_ms(runs, repeat):>8.2f} {floor:>8.2f}"
        print(
            line + (f" {best_sum_ms(torch_runs, repeat):>11.2f}" if with_torch else ""), flush=True
        )


def paged(
    seqs: int, query: int, context: int, dtype: torch.dtype
) -> tuple[AttentionMetadata, Tensor, Tensor]:
    blocks = -(-context // 16)
    shape = (LAYERS, seqs * blocks, 16, KV_HEADS, DIM)
    meta = AttentionMetadata(
        num_tokens=seqs * query,
        num_seqs=seqs,
        max_query_len=query,
        max_seq_len=context,
        slot_mapping=torch.arange(seqs * query),
        block_table=torch.randperm(seqs * blocks).int().view(seqs, blocks),
        cu_seqlens_q=torch.arange(0, seqs * query + 1, query, dtype=torch.int32),
        seq_lens=torch.full((seqs,), context, dtype=torch.int32),
    )
    return meta, torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)


def bench_attention(repeat: int) -> None:
    cases = [
        (1, 1, 160),
        (1, 1, 2048),
        (16, 1, 160),
        (8, 1, 560),
        (1, 128, 128),
        (1, 544, 544),
        (1, 32, 544),
    ]
    print(f"{'attention: seqs':>16} {'query':>6} {'context':>8} {'f32 ms':>8} {'bf16 ms':>8}")
    for seqs, query, context in cases:
        times = []
        for dtype in (torch.float32, torch.bfloat16):
            meta, keys, values = paged(seqs, query, context, dtype)
            q = torch.randn(seqs * query, HEADS, DIM)

            runs = [
                partial(attention.paged_attention, q, keys[i], values[i], meta, 0.125)
                for i in range(LAYERS)
            ]
            times.append(best_sum_ms(runs, repeat))
        print(f"{seqs:>16} {query:>6} {context:>8} {times[0]:>8.2f} {times[1]:>8.2f}", flush=True)


def bench_small(rows: list[int], repeat: int) -> None:
    print(f"{'small ops x 30':>16} {'rows':>6} {'us each':>8}")
    for m in rows:
        x, weight, wide = torch.randn(m, HIDDEN), torch.randn(HIDDEN), torch.randn(m, 2 * INNER)
        qkv, table = torch.randn(m, HEADS + 2 * KV_HEADS, DIM), torch.randn(64, DIM)
        cache, slots = torch.zeros(2, m + 16, 16, KV_HEADS, DIM), torch.arange(m)
        q, k, v = qkv.split_with_sizes((HEADS, KV_HEADS, KV_HEADS), 1)
        positions = torch.zeros(m, dtype=torch.int64)
        runs: dict[str, Callable[[], object]] = {
            "rms_norm": partial(elementwise.rms_norm, x, weight, 1e-5),
            "add_rms_norm": partial(elementwise.add_rms_norm, x, x, weight, 1e-5),
            "silu_and_mul": partial(elementwise.silu_and_mul, wide),
            "rotary": partial(elementwise.rotary, q, k, positions, table, False),
            "cache": partial(attention.reshape_and_cache, k, v, cache[0], cache[1], slots),
        }
        for name, run in runs.items():
            ms = best_sum_ms([run] * LAYERS, repeat)
            print(f"{name:>16} {m:>6} {ms * 1e3 / LAYERS:>8.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", default="1,8,16,128")
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--threads", type=int, default=0, help="0: one per processor")
    parser.add_argument("--torch", action="store_true", help="also time torch's bf16 linears")
    parser.add_argument("--only", choices=("linears", "attention", "small"))
    args = parser.parse_args()
    rows = [int(m) for m in args.rows.split(",")]
    print(f"native: {native.features()}, {native.set_num_threads(args.threads)} threads")
    if args.only in (None, "linears"):
        bench_linears(rows, args.repeat, args.torch)
    if args.only in (None, "attention"):
        bench_attention(args.repeat)
    if args.only in (None, "small"):
        bench_small([1, 16, 128], args.repeat)


if __name__ == "__main__":
    main()
