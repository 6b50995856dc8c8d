"""Packed experts of the native library, against the reference."""

from __future__ import annotations

import pytest
import torch

from atom.layers.build import BuildContext
from atom.layers.moe import FusedMoE
from atom.models.loader import load_dummy
from atom.ops.contracts import SILU, GatedActivation, Routing
from atom.ops.cpu.build import CannotBuild
from atom.ops.reference.moe import fused_experts

try:
    from atom.ops.cpu import native
    from atom.ops.cpu.moe import NativeExperts

    native.load()
except CannotBuild as reason:
    pytest.skip(f"no native kernels: {reason}", allow_module_level=True)


@pytest.mark.parametrize("oss", [False, True], ids=["plain", "gpt_oss"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tokens", [0, 1, 37])
def test_packed_experts(tokens: int, dtype: torch.dtype, oss: bool) -> None:
    experts, size, wide, k = 6, 64, 48, 3
    w13, w2 = torch.randn(experts, 2 * wide, size) / 8, torch.randn(experts, size, wide) / 8
    w13, w2 = w13.to(dtype), w2.to(dtype)
    act = GatedActivation("gpt_oss", 1.0) if oss else SILU
    b13, b2 = (torch.randn(experts, 2 * wide), torch.randn(experts, size)) if oss else (None, None)
    x, weights = torch.randn(tokens, size), torch.rand(tokens, k)
    ids = torch.stack([torch.randperm(experts - 1)[:k] for _ in range(max(tokens, 1))])[:tokens]
    ids[torch.rand(tokens, k) < 0.1] = -1  # elsewhere; and nobody chose the last one
    packed = NativeExperts(w13, w2, act, b13, b2)
    got = packed(x, weights, ids.int())
    want = fused_experts(x, w13.float(), w2.float(), weights, ids.int(), act, b13, b2)
    assert (got.shape, got.dtype) == (x.shape, x.dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    assert float((got - want).norm()) <= tolerance * float(want.norm())
    assert packed.nbytes >= w13.nbytes + w2.nbytes


def test_the_layer_lets_go_of_what_is_packed() -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_experts": 3, "top_k": 2}
    layer = FusedMoE(BuildContext(), **sizes, routing=Routing(renormalize=True))
    model = torch.nn.ModuleDict({"experts": layer})
    load_dummy(model, 0, torch.bfloat16, torch.device("cpu"))
    assert layer.weight_format == "bfloat16"
    assert isinstance(layer.packed, NativeExperts)
    assert layer.w13.numel() == layer.w2.numel() == 0
    assert layer.weight_bytes == layer.packed.nbytes
    x, logits = torch.randn(4, 32), torch.randn(4, 3)
    assert torch.equal(layer(x, logits), layer.packed(x, *layer.route(logits)))
