"""Routing and experts of the reference, token by token."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from atom.ops.reference.moe import fused_experts, topk_softmax


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize(("tokens", "experts", "k"), [(1, 4, 2), (7, 9, 3), (3, 5, 5)])
def test_topk_softmax(tokens: int, experts: int, k: int, renormalize: bool) -> None:
    logits = torch.randn(tokens, experts) * 3
    weights, ids = topk_softmax(logits, k, renormalize)
    assert (weights.dtype, ids.dtype) == (torch.float32, torch.int32)
    for row in range(tokens):
        total = sum(math.exp(x) for x in logits[row].tolist())
        chances = [math.exp(x) / total for x in logits[row].tolist()]
        best = sorted(range(experts), key=lambda e: -chances[e])[:k]
        share = sum(chances[e] for e in best) if renormalize else 1.0
        assert ids[row].tolist() == best
        want = torch.tensor([chances[e] / share for e in best])
        torch.testing.assert_close(weights[row], want, rtol=1e-5, atol=1e-6)


def naive(x: Tensor, w13: Tensor, w2: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
    out = torch.zeros(x.shape, dtype=torch.float64)
    size = w2.shape[-1]
    for t in range(len(x)):
        for j, expert in enumerate(ids[t].tolist()):
            if expert >= 0:
                both = w13[expert].double() @ x[t].double()
                gate, up = both[:size], both[size:]
                hidden = gate * torch.sigmoid(gate) * up
                out[t] += float(weights[t, j]) * (w2[expert].double() @ hidden)
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 9])
def test_fused_experts(dtype: torch.dtype, tokens: int) -> None:
    experts, size, hidden, k = 6, 5, 7, 3
    generator = torch.Generator().manual_seed(tokens)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    x, w13 = random(tokens, hidden).to(dtype), random(experts, 2 * size, hidden).to(dtype)
    w2, weights = random(experts, hidden, size).to(dtype), random(tokens, k).abs()
    ids = torch.stack([torch.randperm(experts, generator=generator)[:k] for _ in range(tokens)])
    ids[0, 1] = -1  # an expert of another rank
    w13[5], w2[5] = float("nan"), float("nan")  # an expert that nobody chose must not be read
    ids[ids == 5] = 0
    out = fused_experts(x, w13, w2, weights, ids.to(torch.int32))
    assert out.dtype == dtype
    tolerance = 1e-4 if dtype == torch.float32 else 0.2
    want = naive(x, w13, w2, weights, ids)
    torch.testing.assert_close(out.double(), want, rtol=tolerance, atol=tolerance)


def test_experts_stored_narrower_than_the_activations() -> None:
    x, w13, w2 = torch.randn(2, 4), torch.randn(3, 6, 4).bfloat16(), torch.randn(3, 4, 3).bfloat16()
    weights, ids = torch.ones(2, 1), torch.tensor([[2], [0]], dtype=torch.int32)
    out = fused_experts(x, w13, w2, weights, ids)
    torch.testing.assert_close(out.double(), naive(x, w13, w2, weights, ids), rtol=1e-5, atol=1e-5)
