"""Norms, rotary embedding and activation of the reference against plain Python arithmetic."""

from __future__ import annotations

import math

import pytest
import torch

from atom.ops.reference.elementwise import add_rms_norm, rms_norm, rotary, silu_and_mul

DTYPES = [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)]


def naive_norm(row: list[float], weight: list[float], eps: float) -> list[float]:
    scale = 1 / math.sqrt(sum(x * x for x in row) / len(row) + eps)
    return [x * scale * w for x, w in zip(row, weight, strict=True)]


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("shape", [(1, 7), (5, 64), (3, 2, 33)])
def test_rms_norm(dtype: torch.dtype, tolerance: float, shape: tuple[int, ...]) -> None:
    wide = torch.randn(*shape[:-1], 2 * shape[-1]).to(dtype)
    x, weight = wide[..., : shape[-1]], torch.randn(shape[-1]).to(dtype)  # strided rows
    out = rms_norm(x, weight, 1e-3)
    assert out.dtype == dtype
    rows = x.reshape(-1, shape[-1]).tolist()
    want = torch.tensor([naive_norm(row, weight.tolist(), 1e-3) for row in rows]).view(shape)
    torch.testing.assert_close(out.float(), want, rtol=tolerance, atol=tolerance)


def test_add_rms_norm_adds_in_place() -> None:
    x, residual, weight = torch.randn(4, 9), torch.randn(4, 9), torch.randn(9)
    total, kept = x + residual, x.clone()
    normed, returned = add_rms_norm(x, residual, weight, 1e-5)
    assert returned.data_ptr() == residual.data_ptr()
    assert torch.equal(residual, total)
    assert torch.equal(x, kept)
    assert torch.equal(normed, rms_norm(total, weight, 1e-5))


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotated", [8, 4])
def test_rotary_turns_each_pair_by_its_angle(interleaved: bool, rotated: int) -> None:
    dim, half = 8, rotated // 2
    angles = [[p * 0.3 / (c + 1) for c in range(half)] for p in range(20)]
    table = torch.tensor(
        [[math.cos(a) for a in row] + [math.sin(a) for a in row] for row in angles]
    )
    positions = [0, 19, 7]
    fused = torch.randn(3, 5, dim)
    q, k = fused[:, :3], fused[:, 3:]  # views of one projection
    before = fused.clone()
    rotary(q, k, torch.tensor(positions), table, interleaved)
    for t, position in enumerate(positions):
        for head in range(5):
            want = before[t, head].tolist()
            for c in range(half):
                i, j = (2 * c, 2 * c + 1) if interleaved else (c, c + half)
                a, b = before[t, head, i].item(), before[t, head, j].item()
                cos, sin = math.cos(angles[position][c]), math.sin(angles[position][c])
                want[i], want[j] = a * cos - b * sin, b * cos + a * sin
            torch.testing.assert_close(fused[t, head], torch.tensor(want), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_silu_and_mul(dtype: torch.dtype, tolerance: float) -> None:
    x = torch.randn(3, 10).to(dtype)
    out = silu_and_mul(x)
    want = [
        [g / (1 + math.exp(-g)) * u for g, u in zip(row[:5], row[5:], strict=True)]
        for row in x.tolist()
    ]
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), torch.tensor(want), rtol=tolerance, atol=tolerance)
