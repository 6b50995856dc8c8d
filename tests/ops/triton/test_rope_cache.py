"""Norms, rotation and cache write in one launch against the reference's operations in a row."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from attention_cases import FP8, compose, make_cached, make_params, relative_error
from harness import poison

from atom.ops.triton.rope_cache import rope_cache

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
LIMITS = {F32: 1e-5, BF16: 3e-3, F16: 5e-4}

# (Hq, Hk, D), R, interleaved, norms, dtype, cache's dtype, scales
CASES: dict[str, tuple[Any, ...]] = {
    "plain": ((8, 2, 64), 64, False, False, BF16, BF16, (1.0, 1.0)),
    "norms": ((9, 3, 128), 128, False, True, BF16, BF16, (1.0, 1.0)),
    "float32 norms": ((2, 1, 64), 64, False, True, F32, F32, (1.0, 1.0)),
    "interleaved": ((4, 2, 64), 64, True, True, F32, F32, (1.0, 1.0)),
    "partial": ((4, 2, 80), 32, False, True, F16, F16, (1.0, 1.0)),
    "partial, odd sizes": ((3, 1, 96), 72, True, False, F32, F32, (1.0, 1.0)),
    "float8": ((4, 2, 64), 64, False, True, BF16, FP8, (0.02, 0.005)),
    "float8 interleaved": ((4, 2, 256), 128, True, False, F32, FP8, (0.5, 2.0)),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_the_operations_in_a_row(device: str, on_gpu: bool, name: str) -> None:
    (hq, hk, dim), rotated, interleaved, norms, dtype, kv_dtype, scales = CASES[name]
    new = [5, 1, 3]
    lengths = [21, 1, 40]
    if on_gpu:
        lengths, new = [*lengths, 900], [*new, 777]
    cached = make_cached(
        lengths, hk, dim, 16, dtype, kv_dtype, device, new=new, scales=scales, num_padding=2
    )
    params = make_params(hq, hk, dim, rotated, dtype, device, norms=norms, interleaved=interleaved)
    params = replace(params, k_scale=scales[0], v_scale=scales[1])
    tokens = cached.meta.slot_mapping.shape[0]
    wide = torch.randn(tokens, hq + 2 * hk + 1, dim).to(device, dtype)
    qkv = wide[:, : hq + 2 * hk]  # strided rows
    positions = torch.randint(params.cos_sin.shape[0], (tokens,), device=device)
    other = cached.copy()
    _, expected = compose(qkv.clone(), positions, other, params)
    v_before = qkv[:, hq + hk :].clone()
    q = rope_cache(qkv, positions, cached.k_cache, cached.v_cache, cached.meta, params, 4, 4)
    assert q.data_ptr() == wide.data_ptr()
    assert relative_error(q, expected) < LIMITS[dtype]
    assert torch.equal(qkv[:, hq + hk :], v_before)
    limit = 0.02 if kv_dtype == FP8 else LIMITS[dtype]
    for got, want in ((cached.k_cache, other.k_cache), (cached.v_cache, other.v_cache)):
        got, want = got.float(), want.float()
        assert torch.equal(got.isnan(), want.isnan())  # nothing else was written
        assert relative_error(got.nan_to_num(), want.nan_to_num()) < limit
    assert torch.equal(
        cached.v_cache.view(torch.uint8), other.v_cache.view(torch.uint8)
    )  # values are only converted


@pytest.mark.gpu
def test_many_tokens(device: str, on_gpu: bool) -> None:
    if not on_gpu:
        pytest.skip("needs a GPU")
    cached = make_cached([4096] * 4, 8, 128, 16, BF16, BF16, device, new=[4096] * 4)
    params = make_params(32, 8, 128, 128, BF16, device, norms=True)
    qkv = torch.randn(16384, 48, 128, device=device, dtype=BF16)
    positions = torch.randint(params.cos_sin.shape[0], (16384,), device=device)
    other = cached.copy()
    _, expected = compose(qkv.clone(), positions, other, params)
    out = poison(torch.empty_like(qkv)).copy_(qkv)
    q = rope_cache(out, positions, cached.k_cache, cached.v_cache, cached.meta, params)
    assert relative_error(q, expected) < LIMITS[BF16]
    for got, want in ((cached.k_cache, other.k_cache), (cached.v_cache, other.v_cache)):
        assert relative_error(got.nan_to_num(), want.nan_to_num()) < LIMITS[BF16]
