"""Products with a dense weight: every kernel, fused or not, against float64."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from atom.ops import registry
from atom.ops.registry import OpQuery
from atom.ops.triton import linear
from atom.ops.triton import linear_config as config
from atom.ops.triton import linear_products as products

EPS = 1e-5
ONE_TOKEN = [
    config.Rows(block_n=2, num_warps=2),
    config.Rows(block_n=4, num_warps=4, waves=1, prefetch=1),
    config.Columns(block_n=4, block_k=64, num_warps=2, stages=2, prefetch=64),
    config.Columns(block_n=2, block_k=128, num_warps=2),
]
FEW_TOKENS = [
    config.Skinny(16, 16, 64, 4, 3, prefetch=64),
    config.Skinny(16, 64, 64, 4, 3, swap=True),
    config.Skinny(64, 16, 64, 4, 3, tma=True),
    config.Skinny(8, 64, 64, 4, 3, swap=True, tma=True, prefetch=64),
]
SPLIT = [
    config.Skinny(16, 16, 64, 4, 3, split=3),
    config.Skinny(16, 64, 64, 4, 3, split=3, swap=True, tma=True),
]


def rows(m: int, k: int, dtype: torch.dtype, device: str) -> Tensor:
    """[m, k], its rows apart, as of a slice of a wider tensor."""
    return torch.randn(m, k + 16, dtype=torch.float32).to(device, dtype)[:, :k]


def close(got: Tensor, want: Tensor, limit: float = 6e-3) -> None:
    assert got.shape == want.shape
    error = (got.double() - want).norm() / want.norm()
    assert error < limit, f"relative error {error:.2e}"  # NaN, too, fails


def normed(r: Tensor, gamma: Tensor) -> Tensor:
    wide = r.double()
    return wide * (wide.square().mean(-1, keepdim=True) + EPS).rsqrt() * gamma.double()


class Case:
    """Random operands and the answers in float64."""

    def __init__(
        self, m: int, n: int, k: int, device: str, dtype: torch.dtype = torch.bfloat16
    ) -> None:
        self.x, self.residual = rows(m, k, dtype, device), rows(m, k, dtype, device)
        self.weight = (torch.randn(n, k, device=device) / k**0.5).to(dtype)
        self.bias = torch.randn(n, device=device).to(dtype)
        self.gamma = (1 + torch.randn(k, device=device) / 4).to(dtype)
        self.r = self.x + self.residual

    def product(self, x: Tensor, bias: bool) -> Tensor:
        y = x.double() @ self.weight.double().T
        return y + self.bias.double() if bias else y

    def gated(self, x: Tensor, bias: bool) -> Tensor:
        gate, up = self.product(x, bias).chunk(2, -1)
        return F.silu(gate) * up


def packed(case: Case, chosen: Any) -> Any:
    """The weight with one choice for every number of tokens."""
    out = linear.TritonLinear(case.weight)
    everything = (chosen,) * len(config.BUCKETS)
    out._products = products.Products(*case.weight.shape, case.weight.dtype, case.weight.device)
    for kind in ("plain", "normed", "gated"):
        old = getattr(out._products, kind)
        if old is not None:
            new = products.Launcher(old.problem, case.weight.device, everything)
            setattr(out._products, kind, new)
    return out


def check(case: Case, chosen: Any, bias: bool, fused: bool = True) -> None:
    p = packed(case, chosen)
    b = case.bias if bias else None
    close(p(case.x, b), case.product(case.x, bias))
    if not fused:
        return
    y, r = p.norm_linear(case.x, case.residual.clone(), case.gamma, EPS, b)
    assert torch.equal(r, case.r)
    close(y, case.product(normed(case.r, case.gamma), bias))
    y, r = p.norm_linear(case.x, None, case.gamma, EPS, b)
    assert r is case.x
    close(y, case.product(normed(case.x, case.gamma), bias))
    before = case.residual.clone()
    y, r = p.norm_gated(case.x, before, case.gamma, EPS, b)
    assert torch.equal(r, case.r)
    close(y, case.gated(normed(case.r, case.gamma), bias))


@pytest.mark.parametrize("chosen", ONE_TOKEN, ids=str)
@pytest.mark.parametrize(("n", "k"), [(22, 192), (16, 256)])
def test_one_token(chosen: Any, n: int, k: int, device: str, on_gpu: bool) -> None:
    if on_gpu:
        n, k = n * 100, k * 8
    check(Case(1, n, k, device), chosen, bias=n % 3 == 0)


@pytest.mark.parametrize("chosen", FEW_TOKENS, ids=str)
def test_few_tokens(chosen: Any, device: str, on_gpu: bool) -> None:
    n, k = (3 * 512 + 32, 2048) if on_gpu else (44, 128)
    check(Case(5, n, k, device), chosen, bias=chosen.tma)


@pytest.mark.parametrize("chosen", SPLIT, ids=str)
def test_split_products_add_up_and_never_vary(chosen: Any, device: str, on_gpu: bool) -> None:
    n, k = (3 * 512 + 32, 3 * 2048) if on_gpu else (36, 192)
    case = Case(7, n, k, device)
    check(case, chosen, bias=True, fused=False)
    p = packed(case, chosen)
    first = p(case.x)
    for _ in range(50 if on_gpu else 2):
        assert torch.equal(p(case.x), first)
    assert not products.scratch_of(case.weight.device).arrivals.any()


def test_every_choice_for_a_shape_without_measurements(device: str, on_gpu: bool) -> None:
    n, k = (512, 4096) if on_gpu else (32, 128)
    for m in (1, 2, 17, 300):
        case = Case(m, n, k, device)
        p = linear.pack(case.weight)
        close(p(case.x, case.bias), case.product(case.x, True))
        y, r = p.norm_gated(case.x, case.residual.clone(), case.gamma, EPS)
        assert torch.equal(r, case.r)
        close(y, case.gated(normed(case.r, case.gamma), False))
        logits = p.linear_f32(case.x)
        assert logits.dtype == torch.float32
        close(logits, case.product(case.x, False), 3e-5 if m <= 32 or on_gpu else 6e-3)


def test_odd_widths_and_float16(device: str) -> None:
    for n, k in ((7, 72), (9, 40)):
        for m in (1, 3):
            case = Case(m, n, k, device, torch.float16)
            p = linear.pack(case.weight)
            close(p(case.x, case.bias), case.product(case.x, True), 2e-3)
            y, _ = p.norm_linear(case.x, case.residual.clone(), case.gamma, EPS)
            close(y, case.product(normed(case.r, case.gamma), False), 2e-3)


def test_no_tokens(device: str) -> None:
    case = Case(1, 8, 64, device)
    p = linear.pack(case.weight)
    assert p(case.x[:0]).shape == (0, 8)
    assert p.linear_f32(case.x[:0]).shape == (0, 8)


def test_traced_form_is_the_same_and_leaves_its_inputs_alone(device: str) -> None:
    case = Case(2, 16, 128, device)
    plain, traced = linear.pack(case.weight), linear.pack_traced(case.weight)

    def forward(x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        y, r = traced.norm_linear(x, None, case.gamma, EPS)
        y2, r2 = traced.norm_linear(x, residual, case.gamma, EPS, case.bias)
        z, r3 = traced.norm_gated(traced(x) @ case.weight, r2, case.gamma, EPS)
        z1, _ = traced.norm_gated(r3, None, case.gamma, EPS)
        return y + y2 + traced.linear_f32(x).sum(), z + z1, r, r3

    before = case.residual.clone()
    compiled = torch.compile(forward, backend="aot_eager", fullgraph=True)
    got = compiled(case.x, case.residual)
    for a, b in zip(got, forward(case.x, case.residual), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(case.residual, before)
    y, _ = plain.norm_linear(case.x, before, case.gamma, EPS, case.bias)
    torch.testing.assert_close(
        traced.norm_linear(case.x, case.residual, case.gamma, EPS, case.bias)[0], y
    )


def test_registered_for_dense_weights_of_the_activations_dtype() -> None:
    def declined(dtype: str, weight: str) -> str | None:
        query = OpQuery(op="linear", device="cuda", dtype=dtype, weight_format=weight)
        return dict(registry.candidates(query))["triton"]

    assert declined("bfloat16", "bfloat16") is None
    assert "Q4_1" in str(declined("bfloat16", "Q4_1"))
    assert "float32" in str(declined("float32", "float32"))
    assert "float16" in str(declined("bfloat16", "float16"))
    query = OpQuery(
        op="linear", device="cuda", dtype="bfloat16", weight_format="bfloat16", traceable=True
    )
    assert registry.select(query) is linear.pack_traced


def test_a_choice_survives_being_written_down() -> None:
    for choice in (*ONE_TOKEN, *FEW_TOKENS, *SPLIT, None):
        assert config.parse(config.describe(choice)) == choice


def test_measured_choices_fit_their_problems() -> None:
    tables = sorted((Path(config.__file__).parent / "configs").glob("linear_*.json"))
    assert tables
    for table in tables:
        for problem, choices in json.loads(table.read_text()).items():
            kind, size = problem.split()
            n, k = (int(part) for part in size.split("x"))
            assert str(config.Problem(kind, n, k)) == problem
            assert {int(m) for m in choices} <= set(config.BUCKETS)
            for m, entry in choices.items():
                choice = config.parse(entry)
                if isinstance(choice, config.Skinny):
                    assert choice.block_m >= int(m)
                    assert k % (choice.split * choice.block_k) == 0
                    assert choice.split == 1 or kind != "gated"  # parts have no activation
                else:
                    assert choice is None or m == "1"


@pytest.mark.parametrize("kind", ["linear", "norm", "gated"])
def test_rules_give_choices_that_fit(kind: str) -> None:
    both = 2 if kind == "gated" else 1
    sizes = itertools.product((8, 64, 1000, 8192, 150000), (64, 896, 2560, 4096, 9728, 18432))
    for (n, k), m, shared in itertools.product(sizes, config.BUCKETS, (50_000, 99_000, 224_000)):
        choice = config.by_rule(config.Problem(kind, n, k), m, shared)
        if isinstance(choice, config.Skinny):
            assert choice.block_m >= m
            assert k % (choice.split * choice.block_k) == 0
            assert choice.split == 1 or both == 1
            stage = 2 * choice.block_k * (both * choice.block_n + choice.block_m)
            assert choice.num_stages * stage <= shared
        else:
            assert choice is None or m == 1
