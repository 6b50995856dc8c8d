"""Cache writes: every byte as the plain operation leaves it."""

from __future__ import annotations

import pytest
import torch
from harness import poison

from atom.ops.reference.attention import reshape_and_cache as reference
from atom.ops.triton.reshape_and_cache import reshape_and_cache

F32, BF16, FP8 = torch.float32, torch.bfloat16, torch.float8_e4m3fn


@pytest.mark.parametrize(
    ("dtype", "kv_dtype"), [(F32, F32), (BF16, BF16), (F32, BF16), (BF16, FP8)]
)
@pytest.mark.parametrize(("heads", "dim", "block_size"), [(2, 64, 16), (3, 80, 1), (1, 96, 48)])
def test_same_bytes(
    heads: int,
    dim: int,
    block_size: int,
    dtype: torch.dtype,
    kv_dtype: torch.dtype,
    device: str,
) -> None:
    tokens, blocks = 9, 70
    qkv = (torch.randn(tokens, 4 * heads, dim, device=device) * 300).to(dtype)
    k, v = qkv[:, heads : 2 * heads], qkv[:, 3 * heads :]
    slots = torch.randperm(blocks * block_size, device=device)[:tokens]
    slots[[2, 7]] = -1
    k[1, 0, 5], v[3, 0, 7] = float("nan"), float("inf")  # a NaN must show
    scales = (0.5, 0.75) if kv_dtype == FP8 else (1.0, 1.0)
    caches = [
        poison(torch.empty(blocks, block_size, heads, dim, dtype=kv_dtype, device=device))
        for _ in range(4)
    ]
    reference(k, v, caches[0], caches[1], slots, *scales)
    reshape_and_cache(k, v, caches[2], caches[3], slots, *scales)
    for expected, result in zip(caches[:2], caches[2:], strict=True):
        assert torch.equal(result.view(torch.uint8), expected.view(torch.uint8))
