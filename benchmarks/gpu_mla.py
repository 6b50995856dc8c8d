"""Latent attention on a GPU: microseconds of one layer's operations, beside the floor of each.

    python benchmarks/gpu_mla.py [--ranks 8] [--fp8] [--tiny]

Sizes of DeepSeek V3, the heads of one rank of `--ranks`. `write` is op `mla_cache`, `latents` op
`mla_attention`, `chunk` op `mla_prefill` with all its products. Floors are the larger of bytes read
once at the card's measured rate (latents of the context) and operations at its bfloat16 rate, in
the form that the operation has; for `chunk` in the form of keys and values, which are made once.
Launches run in a CUDA graph over layers of their own data. `--tiny`: small shapes, which only show
that the program works.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import NamedTuple

import torch
from gpu_sparse import BLOCK_SIZE, FLOP_PER_US, READ_BYTES_PER_US, time_us

from atom.ops.contracts import AttentionMetadata
from atom.ops.triton.mla_attention import mla_attention
from atom.ops.triton.mla_cache import mla_cache
from atom.ops.triton.mla_prefill import mla_prefill

# Sequences, context with the step's tokens, new tokens of each.
SHAPES = [(1, 8192, 1), (1, 131072, 1), (32, 8192, 1), (128, 4096, 1), (64, 32768, 1)]
SHAPES += [(8, 4096, 4), (1, 2048, 2048), (1, 8192, 8192), (4, 2048, 2048), (1, 65536, 4096)]


class Sizes(NamedTuple):
    rank: int = 512
    rope: int = 64
    nope: int = 128
    value: int = 128


class Step:
    """`seqs` sequences of `context` tokens of which `new` are the step's, on scattered blocks."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        heads: int,
        sizes: Sizes,
        layers: int,
        device: str,
        kv: torch.dtype,
    ) -> None:
        seqs, context, new = self.shape = shape
        options = {"device": device, "dtype": torch.bfloat16}
        per_seq, tokens = -(-context // BLOCK_SIZE), seqs * new
        blocks = torch.randperm(seqs * per_seq).view(seqs, per_seq).to(torch.int32)
        positions = torch.arange(context - new, context).repeat(seqs)
        rows = torch.arange(seqs).repeat_interleave(new)
        slots = blocks[rows, positions // BLOCK_SIZE].long() * BLOCK_SIZE + positions % BLOCK_SIZE
        self.sizes, self.heads = sizes, heads
        self.meta = AttentionMetadata(
            num_tokens=tokens,
            num_seqs=seqs,
            max_query_len=new,
            max_seq_len=context,
            slot_mapping=slots.to(device),
            block_table=blocks.to(device),
            cu_seqlens_q=torch.arange(0, tokens + 1, new, dtype=torch.int32, device=device),
            seq_lens=torch.full((seqs,), context, dtype=torch.int32, device=device),
        )
        latent = sizes.rank + sizes.rope
        pool = (seqs * per_seq, BLOCK_SIZE, latent)
        self.caches = [torch.randn(pool, **options).to(kv) for _ in range(layers)]
        self.positions = positions.to(device)
        self.cos_sin = torch.rand(context, sizes.rope, device=device)
        self.norm = torch.ones(sizes.rank, **options)
        self.kv = torch.randn(tokens, latent, **options)
        self.q = torch.randn(tokens, heads, sizes.nope + sizes.rope, **options)
        self.q_latent = torch.randn(tokens, heads, sizes.rank, **options)
        self.w_uk = torch.randn(heads, sizes.nope, sizes.rank, **options)
        self.w_uv = torch.randn(heads, sizes.rank, sizes.value, **options)
        self.out = torch.empty(tokens, heads, sizes.value, **options)

    def run(self, name: str) -> None:
        q_rope, meta = self.q[..., self.sizes.nope :], self.meta
        for cache in self.caches:
            if name == "write":
                mla_cache(
                    q_rope, self.kv, self.positions, self.norm, 1e-6, self.cos_sin, cache,
                    meta.slot_mapping,
                )  # fmt: skip
            elif name == "latents":
                mla_attention(self.q_latent, q_rope, cache, meta, 0.05)
            else:
                mla_prefill(self.q, self.kv, cache, self.w_uk, self.w_uv, meta, 0.05, self.out)

    def floors(self) -> dict[str, float]:
        """us, by what is computed and what is read once."""
        s, (seqs, context, new) = self.sizes, self.shape
        tokens, width = seqs * new, self.caches[0].element_size() * (s.rank + s.rope)
        pairs = tokens * (context - new / 2) * self.heads
        read = seqs * context * width / READ_BYTES_PER_US
        written = tokens * (2 * self.heads * s.rope + 3 * (s.rank + s.rope)) * 2
        over_latents = 2 * pairs * (2 * s.rank + s.rope) / FLOP_PER_US
        floors = {"write": written / READ_BYTES_PER_US, "latents": max(over_latents, read)}
        if new > 1:
            made = seqs * context * self.heads * 2 * s.rank * (s.nope + s.value)
            over_keys = 2 * pairs * (s.nope + s.rope + s.value)
            floors["chunk"] = max((made + over_keys) / FLOP_PER_US, read)
        return floors


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--fp8", action="store_true", help="a float8 cache")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    sizes = Sizes(32, 16, 16, 16) if args.tiny else Sizes()
    heads = 2 if args.tiny else max(128 // args.ranks, 1)
    kv = torch.float8_e4m3fn if args.fp8 else torch.bfloat16
    print(f"{'seqs':>5} {'context':>8} {'new':>6} {'what':8} {'us':>10} {'floor':>10} {'share':>6}")
    for shape in [(2, 40, 1), (1, 20, 9)] if args.tiny else SHAPES:
        layers = 2 if args.tiny or shape[0] * shape[1] > 1 << 20 else 4
        step = Step(shape, heads, sizes, layers, args.device, kv)
        for name, floor in step.floors().items():
            us = time_us(partial(step.run, name), layers, args.device)
            seqs, context, new = shape
            print(
                f"{seqs:5} {context:8} {new:6} {name:8} {us:10.1f} {floor:10.1f} {floor / us:6.0%}"
            )


if __name__ == "__main__":
    main()
