"""Routing, sorting and the experts' products, against plain torch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from atom.layers.build import BuildContext
from atom.layers.moe import FusedMoE, SparseMoE
from atom.layers.norm import RMSNorm
from atom.models.loader import load_dummy
from atom.ops import registry
from atom.ops.contracts import SILU, GatedActivation, Routing
from atom.ops.reference.moe import fused_experts as reference_experts
from atom.ops.registry import OpQuery, candidates
from atom.ops.triton import moe, moe_config, moe_grouped, moe_order, moe_pairs, moe_routing
from atom.ops.triton.moe_act import PLAIN, Extras
from atom.ops.triton.moe_config import GroupedConfig, PairConfig, PairTile, Tile
from atom.ops.triton.moe_pairs import Choice

PAIR = PairConfig(PairTile(4, 32), PairTile(8, 16, early=1))
SMALL = GroupedConfig(16, Tile(32, 32, 1, 4, 3), Tile(32, 16, 1, 4, 3))
DESCRIBED = GroupedConfig(64, Tile(64, 64, 4, 4, 3, tma=True), Tile(64, 64, 4, 4, 3, tma=True))
WIDE = GroupedConfig(64, Tile(64, 64, 4, 4, 3), Tile(64, 64, 4, 4, 3))


def close(got: Tensor, want: Tensor, tolerance: float) -> None:
    assert torch.isfinite(got).all()
    error = (got.double() - want.double()).norm() / want.double().norm().clamp_min(1e-9)
    assert error < tolerance, f"relative error {error:.2e}"


def distinct_logits(tokens: int, experts: int, device: str) -> Tensor:
    """No two of a row are equal, so that the order is beyond doubt."""
    rows = [torch.randperm(experts) for _ in range(tokens)]
    return (torch.stack(rows).float() * 0.1 - 3).to(device)


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize(("tokens", "experts", "k"), [(1, 4, 2), (9, 128, 8), (300, 6, 6)])
def test_topk_softmax(device: str, tokens: int, experts: int, k: int, renormalize: bool) -> None:
    logits = distinct_logits(tokens, experts + 3, device)[:, :experts]  # strided rows
    weights, ids = moe_routing.topk_softmax(logits, k, renormalize)
    want, chosen = logits.softmax(-1).topk(k)
    if renormalize:
        want = want / want.sum(-1, keepdim=True)
    assert (weights.dtype, ids.dtype) == (torch.float32, torch.int32)
    assert torch.equal(ids.long(), chosen)
    torch.testing.assert_close(weights, want, rtol=1e-5, atol=1e-6)


def test_of_equal_logits_the_first_experts_are_taken(device: str) -> None:
    _, ids = moe_routing.topk_softmax(torch.zeros(2, 16, device=device).bfloat16(), 3, True)
    assert ids.tolist() == [[0, 1, 2], [0, 1, 2]]


def test_padding_of_nan_chooses_experts_that_exist(device: str) -> None:
    logits = torch.randn(3, 6, device=device)
    logits[1] = float("nan")
    weights, ids = moe_routing.topk_softmax(logits, 2, True)
    assert 0 <= int(ids.min()) <= int(ids.max()) < 6
    assert torch.isfinite(weights[[0, 2]]).all()


@pytest.mark.parametrize(
    ("tokens", "k", "experts", "block"),
    [(1, 2, 4, 16), (37, 3, 5, 16), (64, 4, 16, 32), (700, 6, 20, 64)],
)
def test_sort_pairs(device: str, tokens: int, k: int, experts: int, block: int) -> None:
    ids = torch.randint(-1, experts, (tokens, k), dtype=torch.int32, device=device)
    if tokens > 1:
        ids[ids == 2] = 1  # an expert without pairs
    order = moe_order.sort_pairs(ids, experts, block)
    want, owners = [], []
    flat = ids.flatten().tolist()
    for expert in range(experts):
        pairs = [p for p, chosen in enumerate(flat) if chosen == expert]
        blocks = -(-len(pairs) // block)
        want += pairs + [len(flat)] * (blocks * block - len(pairs))
        owners += [expert] * blocks
    assert order.num_blocks.tolist() == [len(owners)]
    assert order.places[: len(want)].tolist() == want
    assert order.experts[: len(owners)].tolist() == owners
    assert len(owners) <= order.max_blocks


def make_experts(
    tokens: int, experts: int, size: int, wide: int, k: int, dtype: torch.dtype, device: str
) -> tuple[Tensor, ...]:
    """Inputs of the experts; some choices are elsewhere, and the last expert, which nobody chose,
    must not be read."""
    x = torch.randn(tokens, size + 16)[:, :size].to(device, dtype)
    w13 = (torch.randn(experts, 2 * wide, size) / size**0.5).to(device, dtype)
    w2 = (torch.randn(experts, size, wide) / wide**0.5).to(device, dtype)
    weights = torch.rand(tokens, k).to(device)
    ids = torch.stack([torch.randperm(experts - 1)[:k] for _ in range(tokens)]).int()
    ids[torch.rand(tokens, k) < 0.1] = -1
    weights = torch.where(ids.to(device) < 0, float("nan"), weights)
    w13[-1], w2[-1] = float("nan"), float("nan")
    return x, w13, w2, weights, ids.to(device)


def by_config(
    config: moe_config.Config, arguments: tuple[Tensor, ...], extras: Extras = PLAIN
) -> Tensor:
    x, w13, w2, weights, ids = arguments
    if isinstance(config, PairConfig):
        choice = Choice(ids.shape[1], ids, weights)
        return moe_pairs.experts_by_pair(x, w13, w2, choice, config, extras)
    return moe_grouped.experts_grouped(x, w13, w2, weights, ids, config, extras)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    "config", [PAIR, SMALL, WIDE, DESCRIBED], ids=["pairs", "small", "wide", "tma"]
)
@pytest.mark.parametrize(("size", "wide"), [(64, 32), (40, 88)])
def test_experts(
    device: str, on_gpu: bool, config: moe_config.Config, size: int, wide: int, dtype: torch.dtype
) -> None:
    if on_gpu:
        size, wide = 16 * size, 8 * wide
    tokens = {"PairConfig": 5}.get(type(config).__name__, 70 if on_gpu else 23)
    arguments = make_experts(tokens, 7, size, wide, 3, dtype, device)
    x, w13, w2, weights, ids = arguments
    want = reference_experts(
        *(t.double() for t in (x, w13, w2)), torch.where(ids < 0, 0.0, weights).double(), ids
    )
    close(by_config(config, arguments), want, 1e-2 if dtype == torch.bfloat16 else 1e-4)


OSS = GatedActivation("gpt_oss", 1.0)  # the limit bites
EXTRAS = {
    "gpt_oss": (OSS, True, True),
    "gpt_oss, another rank": (OSS, True, False),  # rank 0 alone adds the second bias
    "silu, limited": (GatedActivation("silu", 0.5), False, False),
    "silu, biases": (SILU, True, True),
}


@pytest.mark.parametrize("name", EXTRAS)
@pytest.mark.parametrize("config", [PAIR, SMALL], ids=["pairs", "small"])
def test_activations_and_biases(device: str, config: moe_config.Config, name: str) -> None:
    act, first, second = EXTRAS[name]
    tokens = 2 if isinstance(config, PairConfig) else 23
    x, w13, w2, weights, ids = make_experts(tokens, 7, 64, 24, 3, torch.float32, device)
    b13 = torch.randn(7, 48, device=device) if first else None
    b2 = torch.randn(7, 64, device=device) if second else None
    weights = torch.where(ids < 0, 0.0, weights)
    want = reference_experts(x, w13, w2, weights, ids, act, b13, b2)
    arguments = (x, w13, w2, weights, ids)
    close(by_config(config, arguments, Extras(act, b13, b2)), want, 1e-4)


def test_experts_are_the_same_every_time(device: str) -> None:
    arguments = make_experts(19, 5, 64, 32, 2, torch.bfloat16, device)
    first = by_config(SMALL, arguments)
    assert torch.equal(first, by_config(SMALL, arguments))


@pytest.mark.parametrize("tokens", [0, 1, 11, 80])
def test_fused_experts_by_rule(device: str, tokens: int) -> None:
    arguments = make_experts(max(tokens, 1), 5, 64, 32, 2, torch.float32, device)
    x, w13, w2, weights, ids = (*arguments[:1], *arguments[1:])
    x, weights, ids = x[:tokens], weights[:tokens].nan_to_num(), ids[:tokens]
    got = moe.fused_experts(x, w13, w2, weights, ids)
    assert got.shape == x.shape
    if tokens:
        close(got, reference_experts(x, w13, w2, weights, ids), 1e-4)


@pytest.mark.parametrize("with_residual", [True, False])
@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("tokens", [1, 3, 13, 40, 530])
def test_sparse_moe(
    device: str, on_gpu: bool, tokens: int, renormalize: bool, with_residual: bool
) -> None:
    if tokens > 500 and not on_gpu:
        pytest.skip("takes half a minute under the interpreter")
    experts, size, wide, k = 12, 1040 if tokens == 40 else 96, 48, 3
    x, residual = torch.randn(2, tokens, size, device=device)
    norm_weight = torch.rand(size, device=device) + 0.5
    router = torch.randn(experts, size, device=device)
    _, w13, w2, _, _ = make_experts(1, experts + 1, size, wide, k, torch.float32, device)
    w13, w2 = w13[:experts], w2[:experts]
    total = x + residual if with_residual else x.clone()
    normed = torch.nn.functional.rms_norm(total, (size,), norm_weight, 1e-6)
    chances, ids = (normed @ router.T).softmax(-1).topk(k)
    if renormalize:
        chances = chances / chances.sum(-1, keepdim=True)
    want = reference_experts(normed, w13, w2, chances, ids)
    before = x.clone(), residual.clone()
    out, new = moe.sparse_moe(
        x, residual if with_residual else None, norm_weight, 1e-6, router, w13, w2, k, renormalize
    )
    close(out, want, 1e-3)
    torch.testing.assert_close(new, total)
    assert torch.equal(x, before[0])
    assert torch.equal(residual, before[1])
    assert new.data_ptr() not in (x.data_ptr(), residual.data_ptr())


def test_what_is_declined() -> None:
    def reason(**changes: object) -> str | None:
        fields = {"dtype": "bfloat16", "weight_format": "bfloat16"} | changes
        shape = tuple({"E": 8, "K": 64, "I": 64, "k": 2, **fields.pop("shape", {})}.items())
        query = OpQuery(op="fused_experts", device="cuda", shape=shape, **fields)
        return dict(candidates(query))["triton"]

    assert reason() is None
    assert "weights of Q4_1" in str(reason(weight_format="Q4_1"))
    assert "I=20" in str(reason(shape={"I": 20}))
    assert "E=2048" in str(reason(shape={"E": 2048}))


def test_configs_are_data() -> None:
    problem = moe_config.Problem(128, 2048, 768, 8)
    for tokens in moe_config.BUCKETS:
        config = moe_config.by_rule(problem, tokens)
        assert moe_config.parse(moe_config.describe(config)) == config


def test_measured_choices_are_taken() -> None:
    problem, card = moe_config.Problem(128, 2048, 768, 8), "NVIDIA H200"
    assert isinstance(moe_config.choose(problem, 1, card, 2), PairConfig)
    measured = moe_config.choose(problem, 16384, card, 2)
    assert measured != moe_config.by_rule(problem, 16384)
    assert moe_config.choose(problem, 3000, card, 2) == measured
    assert moe_config.choose(problem, 1000, card, 2) == moe_config.by_rule(problem, 1024)
    assert moe_config.choose(problem, 16384, "another", 2) == moe_config.by_rule(problem, 16384)
    assert moe_config.choose(problem, 16384, card, 4) == moe_config.by_rule(problem, 16384, 4)


def make_layer(device: str, traceable: bool) -> tuple[SparseMoE, RMSNorm]:
    """With dummy weights, the same every time."""
    build = BuildContext(device=torch.device(device), traceable=traceable)
    experts = FusedMoE(
        build,
        hidden_size=64,
        intermediate_size=32,
        num_experts=6,
        top_k=2,
        routing=Routing(renormalize=True),
    )
    model = torch.nn.ModuleDict(
        {"mlp": SparseMoE(build, experts), "norm": RMSNorm(build, 64, 1e-6)}
    )
    load_dummy(model, 0, torch.float32, build.device)
    return model["mlp"], model["norm"]


def test_layer_fuses_norm_router_and_experts(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(registry.PREFERENCE, device, ("reference",))
        apart, norm = make_layer(device, False)
    monkeypatch.setitem(registry.PREFERENCE, device, ("triton", "reference"))
    assert apart.gate.weight_bytes == make_layer(device, False)[0].gate.weight_bytes
    for traceable in (False, True):
        fused, _ = make_layer(device, traceable)
        for tokens in (2, 40):
            x, residual = torch.randn(2, tokens, 64, device=device)
            want, total = apart(norm, x, residual.clone())
            out, new = fused(norm, x, residual)
            close(out, want, 1e-4)
            torch.testing.assert_close(new, total)


def test_layer_is_one_operator_when_traced(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.PREFERENCE, device, ("triton", "reference"))
    fused, norm = make_layer(device, True)
    x, residual = torch.randn(2, 3, 64, device=device)
    arguments = (x, residual, norm.weight, norm.eps, fused._handle)
    torch.library.opcheck(
        torch.ops.atom.sparse_moe.default, arguments, test_utils=("test_schema", "test_faketensor")
    )
