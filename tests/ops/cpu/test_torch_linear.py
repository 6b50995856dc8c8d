"""The linears that serve where nothing can be compiled."""

from __future__ import annotations

import pytest
import torch
from cpu_support import make_weight

from atom.ops.cpu import torch_linear
from atom.ops.reference import linear as ref_linear
from atom.ops.registry import OpQuery


def relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).norm() / want.norm())


@pytest.mark.parametrize("fmt", ["Q4_1", "Q8_0", "bfloat16", "float16"])
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("rows", [1, 19])
def test_linear(monkeypatch: pytest.MonkeyPatch, fmt: str, bf16: bool, rows: int) -> None:
    if not bf16 and not torch_linear._has_fbgemm():
        pytest.skip("this torch has no fbgemm")
    monkeypatch.setattr(torch_linear, "_has_bf16", lambda: bf16)
    weight = make_weight(fmt, 48, 96)
    exact = ref_linear.pack(weight).dequantize()
    packed = torch_linear.pack(weight)
    assert isinstance(packed, torch_linear.BF16Linear if bf16 else torch_linear.FP16Linear)
    x, bias = torch.randn(rows, 130)[:, 5:101], torch.randn(48)
    want = torch.nn.functional.linear(x, exact, bias)
    assert relative_error(packed(x, bias), want) < 6e-3
    assert relative_error(packed.dequantize(), exact) < 3e-3
    assert packed(x).dtype == torch.float32
    assert packed.nbytes == 2 * 48 * 96


def test_weight_too_large_for_fp16_stays_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_linear, "_has_bf16", lambda: False)
    packed = torch_linear.pack(torch.full((4, 8), 1e5, dtype=torch.bfloat16))
    assert isinstance(packed, torch_linear.FP32Linear)
    assert torch.isfinite(packed(torch.ones(1, 8))).all()


def test_declines_what_it_would_slow_down_or_spoil() -> None:
    assert torch_linear.declines(OpQuery(op="linear", weight_format="float32"))
    assert torch_linear.declines(OpQuery(op="linear", dtype="bfloat16", weight_format="Q4_1"))
