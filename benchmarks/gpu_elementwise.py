"""Elementwise kernels and the sampler on a GPU, next to the time that their bytes must take.

    python benchmarks/gpu_elementwise.py [norms] [activation] [argmax] [sampler] [logprobs]
        [routing] [torch]

A case is captured in a CUDA graph of many launches that rotate over more data than the L2 cache
holds; the median of some replays is shown. The floor is that of the bytes at the speed at which an
H200 copies (4.25 TB/s), but at least that of a launch in a graph (1.15 us).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from atom.engine.runner import draw
from atom.ops.contracts import Routing
from atom.ops.sampling_row import FLOORED, GREEDY, PLAIN, ROW, SEARCHED, WORDS, Kinds, kinds_of
from atom.ops.triton import elementwise, embedding, rotary
from atom.ops.triton.logprobs import logprobs
from atom.ops.triton.moe_route import topk_route
from atom.ops.triton.projection_norm import projection_norm
from atom.ops.triton.sampling import argmax, sample

COPY_BYTES_PER_S = 4.25e12
LAUNCH_US = 1.15
ROTATE_BYTES = 160 << 20
DEVICE = "cuda"


def measure(run: Callable[[Any], Any], inputs: list[Any], launches: int = 0) -> float:
    """Median microseconds of `run` over `inputs` in turn, inside a graph."""
    launches = launches or max(len(inputs), 20)
    for given in inputs[:2]:
        run(given)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(launches):
            run(inputs[i % len(inputs)])
    times = []
    for _ in range(9):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        stop.record()
        torch.cuda.synchronize()
        times.append(1e3 * start.elapsed_time(stop) / launches)
    return sorted(times)[len(times) // 2]


def copies(make: Callable[[], Any], nbytes: int) -> list[Any]:
    """As many inputs as it takes to leave the L2 cache cold."""
    return [make() for _ in range(max(2, min(400, -(-ROTATE_BYTES // nbytes))))]


def show(name: str, size: str, time: float, nbytes: float) -> None:
    floor = max(LAUNCH_US, 1e6 * nbytes / COPY_BYTES_PER_S)
    speed = nbytes / time / 1e6
    line = f"{name:<26} {size:<18} {time:8.2f} us  floor {floor:8.2f}  {floor / time:5.0%}"
    print(f"{line}  {speed:5.2f} TB/s", flush=True)


def norms() -> None:
    for size in (1024, 2048, 4096):
        weight = torch.randn(size, device=DEVICE, dtype=torch.bfloat16)
        for tokens in (1, 32, 128, 2048, 16384):
            nbytes = 2 * tokens * size

            def make(tokens: int = tokens, size: int = size) -> Any:
                return torch.randn(2, tokens, size, device=DEVICE).bfloat16().unbind()

            given = copies(make, 3 * nbytes)
            shape = f"T={tokens} K={size}"
            time = measure(lambda x, w=weight: elementwise.rms_norm(x[0], w, 1e-5), given)
            show("rms_norm", shape, time, 2 * nbytes)
            time = measure(lambda x, w=weight: elementwise.add_rms_norm(x[0], x[1], w, 1e-5), given)
            show("add_rms_norm", shape, time, 4 * nbytes)
    weight = torch.randn(128, device=DEVICE, dtype=torch.bfloat16)
    for tokens in (1, 128, 16384):
        shape = (tokens, 48, 128)
        given = copies(lambda s=shape: torch.randn(s, device=DEVICE).bfloat16(), 2 * tokens * 48)
        time = measure(lambda x: elementwise.rms_norm(x[:, :32], weight, 1e-5), given[:60])
        show("rms_norm per head", f"T={tokens} H=32 D=128", time, 4 * tokens * 32 * 128)


def activation() -> None:
    for size in (768, 3072, 14336):
        for tokens in (1, 32, 128, 2048, 16384):
            nbytes = 4 * tokens * size
            if nbytes > 1 << 30:
                continue

            def make(tokens: int = tokens, size: int = size) -> Any:
                return torch.randn(tokens, 2 * size, device=DEVICE).bfloat16()

            time = measure(elementwise.silu_and_mul, copies(make, nbytes))
            show("silu_and_mul", f"T={tokens} I={size}", time, 1.5 * nbytes)
    table = torch.randn(4096, 128, device=DEVICE)
    weight = torch.randn(128256, 4096, device=DEVICE, dtype=torch.bfloat16)
    for tokens in (1, 32, 128, 2048, 16384):
        positions = torch.randint(0, 4096, (tokens,), device=DEVICE)

        def heads(tokens: int = tokens) -> Any:
            qkv = torch.randn(tokens, 48, 128, device=DEVICE).bfloat16()
            return qkv[:, :32], qkv[:, 32:40]

        given = copies(heads, tokens * 48 * 256)
        time = measure(lambda x, p=positions: rotary.rotary(*x, p, table, False), given)
        show("rotary", f"T={tokens} H=32+8", time, tokens * 40 * 128 * 4)
        ids = [torch.randint(0, 128256, (tokens,), device=DEVICE) for _ in range(20)]
        time = measure(lambda i: embedding.embedding(i, weight, torch.bfloat16), ids)
        show("embedding", f"T={tokens} K=4096", time, tokens * 4096 * 4)


def greedy() -> None:
    for vocab in (128256, 151936):
        for rows in (1, 32, 128, 512):
            given = copies(lambda s=(rows, vocab): torch.randn(s, device=DEVICE), 4 * rows * vocab)
            out = torch.empty(rows, dtype=torch.int64, device=DEVICE)
            time = measure(lambda x, o=out: argmax(x, o), given)
            show("argmax", f"S={rows} V={vocab}", time, 4 * rows * vocab)


def params_of(count: int, **fields: float) -> tuple[torch.Tensor, Kinds]:
    rows = np.zeros(count, ROW)
    rows["temperature"], rows["top_p"], rows["key"] = 1.0, 1.0, np.arange(count) * 977
    for name, value in fields.items():
        rows[name] = value
    return torch.from_numpy(rows.view(np.int32).reshape(-1, WORDS)).to(DEVICE), kinds_of(rows)


KINDS: dict[str, dict[str, float]] = {
    "plain": {"kind": PLAIN},
    "min_p": {"kind": FLOORED, "min_p": 0.02},
    "top_p": {"kind": SEARCHED, "top_p": 0.95},
    "top_k": {"kind": SEARCHED, "top_k": 50},
    "top_k top_p": {"kind": SEARCHED, "top_k": 50, "top_p": 0.95},
    "greedy in a mixed batch": {"kind": GREEDY},
}


def sampler() -> None:
    """Logits flat (deviation 1: a nucleus of most of the vocabulary) and peaked (3)."""
    for vocab in (128256, 151936):
        for rows in (1, 32, 128, 512):
            for deviation in (1.0, 3.0):
                if (vocab, deviation) == (151936, 3.0):
                    continue
                shape = (rows, vocab)
                given = copies(
                    lambda s=shape, d=deviation: torch.randn(s, device=DEVICE) * d,
                    4 * rows * vocab,
                )
                for name, fields in KINDS.items():
                    given_params = params_of(rows, **fields)
                    time = measure(lambda x, p=given_params: sample(x, *p), given)
                    label = f"S={rows} V={vocab} x{deviation:g}"
                    show(f"sample {name}", label, time, 4 * rows * vocab)


def torch_sampler() -> None:
    """What takes the kernels' place where there are none, for comparison."""
    for rows in (1, 32, 128):
        given = copies(lambda s=(rows, 128256): torch.randn(s, device=DEVICE), rows * 128256 * 4)
        for name in ("plain", "top_p", "top_k top_p"):
            given_params = params_of(rows, **KINDS[name])
            run = measure(lambda x, p=given_params: draw.choose(x, *p), given)
            show(f"torch {name}", f"S={rows}", run, 4 * rows * 128256)


def best() -> None:
    for rows, vocab in ((1, 128256), (32, 151936), (128, 128256)):
        for num_top in (0, 5, 20):
            given = copies(lambda s=(rows, vocab): torch.randn(s, device=DEVICE), 4 * rows * vocab)
            ids = torch.randint(0, vocab, (rows,), device=DEVICE)
            time = measure(lambda x, i=ids, n=num_top: logprobs(x, None, i, n), given)
            show("logprobs", f"S={rows} top {num_top}", time, 4 * rows * vocab)


def routing() -> None:
    """Choice of experts, and norms over all heads."""
    cases = {
        "DeepSeek V3": (256, 8, Routing("sigmoid", True, 8, 4, "top2", 2.5)),
        "Kimi-K2": (384, 8, Routing("sigmoid", True, scale=2.8)),
        "GLM-4.5-Air": (128, 8, Routing("sigmoid", True)),
    }
    for name, (experts, k, rule) in cases.items():
        bias = torch.randn(experts, device=DEVICE)
        for tokens in (1, 32, 256, 2048, 16384):
            given = copies(
                lambda s=(tokens, experts): torch.randn(s, device=DEVICE), 4 * tokens * experts
            )
            time = measure(lambda x, k=k, r=rule, b=bias: topk_route(x, k, r, b), given)
            show(f"topk_route {name}", f"T={tokens}", time, 4 * tokens * (experts + 2 * k))
    weight = torch.ones(6144 + 1024, device=DEVICE)
    counts = (6144.0, 1024.0)
    for tokens in (1, 32, 2048, 16384):
        given = copies(
            lambda t=tokens: torch.randn(t, 8192, device=DEVICE).bfloat16(), tokens * 16384
        )
        time = measure(lambda x: projection_norm(x, 6144, 1024, weight, 1e-6, None, counts), given)
        show("projection_norm", f"T={tokens} 6144+1024", time, 4 * tokens * 7168)


CASES: dict[str, Callable[[], None]] = {
    "norms": norms,
    "routing": routing,
    "activation": activation,
    "argmax": greedy,
    "sampler": sampler,
    "logprobs": best,
    "torch": torch_sampler,
}


def main() -> None:
    print(torch.cuda.get_device_name(), torch.__version__)
    for name in sys.argv[1:] or CASES:
        CASES[name]()


if __name__ == "__main__":
    main()
