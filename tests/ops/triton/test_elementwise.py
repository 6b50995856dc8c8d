"""Norms, activation, rotary embedding and lookup against the reference, in every layout allowed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from atom.ops.reference import elementwise as reference
from atom.ops.triton import elementwise, embedding, rotary

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}
SHAPES = [(1, 64), (3, 100), (2, 3, 128), (5, 2, 40), (0, 64), (7,), (2, 1, 3, 16)]
BIG = [(1, 4096), (4096, 4096), (513, 1024), (16384, 2048), (4097, 8, 128), (3, 12288)]


def close(got: Tensor, want: Tensor, dtype: torch.dtype) -> None:
    tolerance = TOLERANCE[dtype]
    assert got.dtype == want.dtype
    torch.testing.assert_close(got.float(), want.float(), rtol=tolerance, atol=tolerance)


def strided(*shape: int, dtype: torch.dtype, device: str) -> Tensor:
    """Random rows that are slices of wider ones, between which NaN stands."""
    wide = torch.full((*shape[:-1], 2 * shape[-1] + 16), float("nan"), dtype=dtype, device=device)
    inner = wide[..., 16 : 16 + shape[-1]]
    inner.copy_(torch.randn(*shape, device=device))
    return inner


@pytest.fixture
def shapes(on_gpu: bool) -> list[tuple[int, ...]]:
    return SHAPES + BIG if on_gpu else SHAPES


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_rms_norm(dtype: torch.dtype, device: str, shapes: list[tuple[int, ...]]) -> None:
    for shape in shapes:
        x = strided(*shape, dtype=dtype, device=device)
        weight = torch.randn(shape[-1], device=device).to(dtype)
        out = elementwise.rms_norm(x, weight, 1e-3)
        assert out.is_contiguous()
        close(out, reference.rms_norm(x, weight, 1e-3), dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("apart", [False, True])
def test_add_rms_norm(
    dtype: torch.dtype, apart: bool, device: str, shapes: list[tuple[int, ...]]
) -> None:
    for shape in [s for s in shapes if len(s) == 2]:
        x, residual = (strided(*shape, dtype=dtype, device=device) for _ in range(2))
        weight = torch.randn(shape[-1], device=device).to(dtype)
        kept, before = x.clone(), residual.clone()
        want, total = reference.add_rms_norm(x, residual.clone(), weight, 1e-5)
        run = elementwise.add_rms_norm_apart if apart else elementwise.add_rms_norm
        out, new = run(x, residual, weight, 1e-5)
        close(out, want, dtype)
        assert torch.equal(new, total)
        assert torch.equal(x, kept)
        assert (new is residual) is not apart
        assert not apart or torch.equal(residual, before)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_silu_and_mul(dtype: torch.dtype, device: str, on_gpu: bool) -> None:
    sizes = [(1, 3), (2, 768), (3, 1030), (0, 64)]
    if on_gpu:
        sizes += [(1, 14336), (16384, 768), (2048, 14336), (70000, 16)]
    for tokens, size in sizes:
        x = strided(tokens, 2 * size, dtype=dtype, device=device)
        if tokens:
            x[0, 0], x[0, 1], x[0, size + 1] = -100.0, 80.0, 2.0  # exp overflows for neither
        close(elementwise.silu_and_mul(x), reference.silu_and_mul(x), dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("dim", "rotated"), [(8, 8), (16, 6), (128, 128), (96, 32)])
def test_rotary(
    dtype: torch.dtype, interleaved: bool, dim: int, rotated: int, device: str, on_gpu: bool
) -> None:
    tokens = 4099 if on_gpu else 3
    table = torch.randn(50, rotated, device=device)
    positions = torch.randint(0, 50, (tokens,), device=device)
    for heads, kv_heads in ((3, 1), (8, 8)):
        qkv = torch.randn(tokens, heads + 2 * kv_heads, dim, device=device).to(dtype)
        want = qkv.clone()
        parts = (heads, kv_heads, kv_heads)
        q, k, _ = qkv.split(parts, dim=1)
        expected = want.split(parts, dim=1)
        reference.rotary(expected[0], expected[1], positions, table, interleaved)
        traced = rotary._rotary_apart(q, k, positions, table, interleaved)
        got = rotary.rotary(q, k, positions, table, interleaved)
        assert got[0] is q
        close(qkv, want, dtype)
        assert torch.equal(traced[0], q)
        assert torch.equal(traced[1], k)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("stored", TOLERANCE)
def test_embedding(dtype: torch.dtype, stored: torch.dtype, device: str, on_gpu: bool) -> None:
    sizes = [(1, 5, 40), (7, 100, 1100), (0, 5, 8)]
    if on_gpu:
        sizes += [(16384, 50000, 4096), (1, 300, 2048)]
    for tokens, vocab, size in sizes:
        weight = torch.randn(vocab, size, device=device).to(stored)
        ids = torch.randint(0, vocab, (tokens,), device=device)
        out = embedding.embedding(ids, weight, dtype)
        assert torch.equal(out, weight[ids].to(dtype))


def traced_forms(device: str) -> list[tuple[Callable[..., Any], tuple[Any, ...]]]:
    ops = torch.ops.atom_triton
    x, weight = torch.randn(4, 64, device=device), torch.randn(64, device=device)
    heads = torch.randn(4, 6, 16, device=device)
    table, positions = torch.randn(9, 16, device=device), torch.arange(4, device=device)
    return [
        (ops.rms_norm.default, (x, weight, 1e-5)),
        (ops.rms_norm.default, (heads, weight[:16], 1e-5)),
        (ops.add_rms_norm.default, (x, x.flip(0), weight, 1e-5)),
        (ops.silu_and_mul.default, (x,)),
        (ops.rotary.default, (heads[:, :4], heads[:, 4:], positions, table, False)),
        (ops.embedding.default, (positions, x, torch.bfloat16)),
    ]


def test_traced_forms_are_sound(device: str) -> None:
    """Shapes as declared, no input mutated, no alias returned, for any number of tokens."""
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    for operator, arguments in traced_forms(device):
        torch.library.opcheck(operator, arguments, test_utils=checks)
