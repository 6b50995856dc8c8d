"""Prefill and mixed steps: the kernel against the plain operation, caches poisoned with NaN."""

from __future__ import annotations

import random
from typing import Any, NamedTuple

import pytest
import torch
from harness import make_metadata, poison
from torch import Tensor

from atom.ops.contracts import AttentionMetadata
from atom.ops.reference.attention import paged_attention as reference
from atom.ops.reference.attention import reshape_and_cache
from atom.ops.triton.varlen_attention import varlen_attention

F32, F16, BF16, FP8 = torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn
TOLERANCE = {F32: 2e-5, F16: 4e-3, BF16: 2e-2}


class Inputs(NamedTuple):
    q: Tensor
    k_cache: Tensor
    v_cache: Tensor
    meta: AttentionMetadata


def make_inputs(
    chunks: list[tuple[int, int]],
    heads: tuple[int, int, int],
    block_size: int,
    dtype: torch.dtype,
    device: str,
    kv_dtype: torch.dtype | None = None,
    scales: tuple[float, float] = (1.0, 1.0),
    num_padding: int = 0,
) -> Inputs:
    """`chunks`: (tokens in the cache before, new ones) of each sequence; heads (Hq, Hk, D).

    q is a slice of a wider projection. Blocks stand in random order; slots without a key are NaN.
    """
    num_heads, num_kv_heads, dim = heads
    counts = [-(-(done + new) // block_size) for done, new in chunks]
    free = list(range(sum(counts) + 3))
    random.Random(0).shuffle(free)
    blocks = [[free.pop() for _ in range(count)] for count in counts]
    rows = [(mine, done, new) for mine, (done, new) in zip(blocks, chunks, strict=True)]
    shape = (sum(counts) + 3, block_size, num_kv_heads, dim)
    k_cache, v_cache = (
        poison(torch.empty(shape, dtype=kv_dtype or dtype, device=device)) for _ in range(2)
    )
    whole = [(mine, 0, done + new) for mine, done, new in rows]
    slots = make_metadata(whole, block_size, device=device).slot_mapping
    k, v = (torch.randn(len(slots), num_kv_heads, dim, device=device).to(dtype) for _ in range(2))
    reshape_and_cache(k, v, k_cache, v_cache, slots, *scales)
    meta = make_metadata(rows, block_size, num_padding, device)
    total = meta.num_tokens + num_padding
    q = torch.randn(total, num_heads + 2 * num_kv_heads, dim, device=device).to(dtype)
    return Inputs(q[:, :num_heads], k_cache, v_cache, meta)


def check(inputs: Inputs, limit: float = 0.0, **options: Any) -> None:
    q, meta = inputs.q, inputs.meta
    scale = q.shape[2] ** -0.5
    expected = reference(*inputs, scale, **options)
    out = poison(torch.empty_like(q))
    result = varlen_attention(*inputs, scale, **options, out=out)
    assert result is out
    rows = slice(0, meta.num_tokens)
    limit = limit or TOLERANCE[q.dtype]
    torch.testing.assert_close(out[rows], expected[rows], atol=limit, rtol=limit)


# The last one: a tile's queries on both sides of the start of a block of keys.
MIXED = [(0, 5), (7, 1), (0, 1), (33, 40), (70, 1), (127, 5)]


@pytest.mark.parametrize("dtype", [F32, F16, BF16])
@pytest.mark.parametrize("heads", [(4, 2, 64), (3, 1, 80), (2, 2, 96), (8, 1, 128), (4, 2, 256)])
def test_mixed_chunks(heads: tuple[int, int, int], dtype: torch.dtype, device: str) -> None:
    check(make_inputs(MIXED, heads, 16, dtype, device))


@pytest.mark.parametrize("block_size", [1, 32, 48, 128])
def test_block_sizes(block_size: int, device: str) -> None:
    check(make_inputs(MIXED, (4, 2, 64), block_size, BF16, device))


@pytest.mark.parametrize("window", [1, 7, 30, 64, 100])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_windows(window: int, dtype: torch.dtype, device: str) -> None:
    check(make_inputs([*MIXED, (150, 70)], (6, 2, 64), 16, dtype, device), window=window)


@pytest.mark.parametrize("window", [0, 20])
def test_sinks_and_soft_cap(window: int, device: str) -> None:
    inputs = make_inputs(MIXED, (6, 2, 64), 16, F32, device)
    sinks = torch.randn(6, device=device)
    check(inputs, window=window, sinks=sinks, soft_cap=2.0)
    check(inputs, window=window, sinks=sinks * 10)
    check(inputs, window=window, soft_cap=0.5)


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_float8_cache(dtype: torch.dtype, device: str) -> None:
    scales = (0.25, 3.0)
    inputs = make_inputs(MIXED, (4, 2, 128), 16, dtype, device, FP8, scales)
    check(inputs, k_scale=scales[0], v_scale=scales[1])


def test_cache_of_another_type(device: str) -> None:
    check(make_inputs(MIXED, (4, 2, 64), 16, F32, device, BF16))


def test_padding_tokens_and_sequences(device: str) -> None:
    """A captured step: rows past the tokens, and sequences without any."""
    inputs = make_inputs([(0, 5), (20, 3)], (4, 2, 64), 16, BF16, device, num_padding=6)
    meta = inputs.meta
    expected = reference(*inputs, 0.125)[: meta.num_tokens]
    meta.cu_seqlens_q = torch.cat((meta.cu_seqlens_q, meta.cu_seqlens_q[-1:].repeat(3)))
    meta.seq_lens = torch.cat((meta.seq_lens, meta.seq_lens.new_zeros(3)))
    meta.block_table = torch.cat((meta.block_table, meta.block_table.new_full((3, 2), -1)))
    meta.num_seqs, meta.num_tokens = 5, 14
    out = varlen_attention(*inputs, 0.125)
    torch.testing.assert_close(out[:8], expected, atol=2e-2, rtol=2e-2)


def test_large_scores(device: str) -> None:
    """Far from zero, weights must neither overflow nor vanish."""
    inputs = make_inputs([(40, 30)], (2, 1, 64), 16, F32, device)
    inputs.q.mul_(200)
    check(inputs, 5e-4)


@pytest.mark.parametrize("dtype", [F16, BF16])
@pytest.mark.parametrize("heads", [(32, 8, 128), (32, 4, 128), (16, 16, 64), (14, 2, 64)])
def test_long_prompts(
    heads: tuple[int, int, int], dtype: torch.dtype, device: str, on_gpu: bool
) -> None:
    if not on_gpu:
        pytest.skip("too much for the interpreter")
    chunks = [(0, 2048), (0, 1000), (3000, 1), (511, 513), (0, 1), (129, 128), (0, 3)]
    inputs = make_inputs(chunks, heads, 16, dtype, device)
    check(inputs)
    check(inputs, window=300)
    fp8 = make_inputs(chunks, heads, 16, dtype, device, FP8, (0.5, 2.0))
    check(fp8, k_scale=0.5, v_scale=2.0)
