"""Choice of experts by score, group and correction, against plain torch."""

from __future__ import annotations

import pytest
import torch

from atom.ops.contracts import Routing
from atom.ops.reference.moe import topk_route as reference
from atom.ops.registry import OpQuery, candidates
from atom.ops.triton.moe_route import topk_route

V3 = Routing("sigmoid", True, 8, 4, "top2", 2.5)
CASES = {
    "DeepSeek V3": (V3, 256, 8, True),
    "DeepSeek V2": (Routing("softmax", False, 8, 3, "max", 16.0), 160, 6, False),
    "DeepSeek V4": (Routing("sqrt_softplus", True, scale=1.5), 256, 6, True),
    "GLM-4.5-Air": (Routing("sigmoid", True), 128, 8, True),
    "Kimi-K2": (Routing("sigmoid", True, scale=2.827), 384, 8, True),
    "softmax, corrected": (Routing(renormalize=True), 12, 3, True),
    "three groups of five": (Routing("sigmoid", False, 3, 2, "top2"), 15, 4, True),
}


@pytest.mark.parametrize("tokens", [1, 5, 300])
@pytest.mark.parametrize("name", CASES)
def test_topk_route(device: str, on_gpu: bool, name: str, tokens: int) -> None:
    if tokens > 256 and not on_gpu and name != "three groups of five":
        pytest.skip("the interpreter takes a program at a time")
    routing, experts, k, corrected = CASES[name]
    logits = torch.randn(tokens, experts + 3, device=device)[:, :experts]  # strided rows
    bias = torch.randn(experts, device=device) * 0.2 if corrected else None
    weights, ids = topk_route(logits, k, routing, bias)
    want, chosen = reference(logits, k, routing, bias)
    assert (weights.dtype, ids.dtype) == (torch.float32, torch.int32)
    assert torch.equal(ids, chosen)
    torch.testing.assert_close(weights, want, rtol=1e-5, atol=1e-6)


def test_of_equal_scores_the_first_experts_are_taken(device: str) -> None:
    _, ids = topk_route(torch.zeros(2, 16, device=device).bfloat16(), 3, Routing("sigmoid"), None)
    assert ids.tolist() == [[0, 1, 2], [0, 1, 2]]
    grouped = Routing("sigmoid", False, 4, 2, "top2")
    _, ids = topk_route(torch.zeros(1, 16, device=device), 6, grouped, None)
    assert ids.tolist() == [[0, 1, 2, 3, 4, 5]]


def test_a_negative_correction_does_not_let_absent_experts_in(device: str) -> None:
    """Columns that fill a group up to a power of two have no score."""
    routing, bias = Routing("sigmoid", False, 3, 2, "top2"), torch.full((15,), -9.0, device=device)
    logits = torch.randn(4, 15, device=device)
    weights, ids = topk_route(logits, 8, routing, bias)
    want, chosen = reference(logits, 8, routing, bias)
    assert torch.equal(ids, chosen)
    torch.testing.assert_close(weights, want)


def test_padding_of_nan_chooses_experts_that_exist(device: str) -> None:
    logits = torch.randn(3, 20, device=device)
    logits[1] = float("nan")
    for routing in (Routing("sigmoid"), Routing("softmax", True, 4, 2), Routing("sqrt_softplus")):
        weights, ids = topk_route(logits, 3, routing, torch.zeros(20, device=device))
        assert 0 <= int(ids.min()) <= int(ids.max()) < 20
        assert torch.isfinite(weights[[0, 2]]).all()


def test_no_tokens(device: str) -> None:
    weights, ids = topk_route(torch.empty(0, 8, device=device), 2, V3, None)
    assert (weights.shape, ids.shape) == ((0, 2), (0, 2))


def test_who_serves_it() -> None:
    shape = (("E", 384), ("k", 8))
    answers = dict(candidates(OpQuery(op="topk_route", device="cuda", shape=shape)))
    assert answers["triton"] is None
    answers = dict(candidates(OpQuery(op="topk_route", device="cuda", shape=(("E", 2048),))))
    assert "E=2048" in str(answers["triton"])
