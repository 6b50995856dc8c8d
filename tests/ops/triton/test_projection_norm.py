"""Norms over all heads of a projection, against plain torch."""

from __future__ import annotations

import pytest
import torch

from atom.ops.reference import elementwise as reference
from atom.ops.triton.projection_norm import projection_norm, projection_sums

EPS = 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("q", "k"), [(96, 32), (64, 16)])
@pytest.mark.parametrize("ranks", [1, 2])
def test_projection_norm(device: str, q: int, k: int, ranks: int, dtype: torch.dtype) -> None:
    qkv = torch.randn(3, q + 2 * k, device=device).to(dtype)
    weight = torch.rand(q + k, device=device) + 0.5
    counts = (float(q * ranks), float(k * ranks))
    sums = None
    if ranks > 1:
        sums = projection_sums(qkv, q, k)
        torch.testing.assert_close(sums, reference.projection_sums(qkv, q, k))
        sums += torch.rand(3, 2, device=device) * 50  # another rank's
    want = reference.projection_norm(qkv, q, k, weight, EPS, sums, counts)
    got = projection_norm(qkv.clone(), q, k, weight, EPS, sums, counts)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
    assert torch.equal(got[:, q + k :], qkv[:, q + k :])


def test_no_tokens(device: str) -> None:
    empty = torch.empty(0, 128, device=device)
    weight = torch.ones(96, device=device)
    assert projection_norm(empty, 64, 32, weight, EPS, None, (64.0, 32.0)).shape == (0, 128)
