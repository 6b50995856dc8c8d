"""Loading of experts: every way a checkpoint stores them gives the same layer."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from atom.layers.build import BuildContext
from atom.layers.moe import FusedMoE
from atom.layers.weights import WeightSlot
from atom.ops import registry
from atom.ops.contracts import Routing
from atom.parallel.state import ParallelState

E, K, I = 3, 8, 12  # noqa: E741


def make(tp_rank: int = 0, tp_size: int = 1) -> FusedMoE:
    parallel = ParallelState(tp_rank=tp_rank, tp_size=tp_size)
    return FusedMoE(
        BuildContext(parallel=parallel),
        hidden_size=K,
        intermediate_size=I,
        num_experts=E,
        top_k=2,
        routing=Routing(renormalize=True),
    )


def stored(tensor: Tensor) -> SimpleNamespace:
    return SimpleNamespace(dense=lambda *index: tensor[index])


def fill(layer: FusedMoE, tensors: dict[str, Tensor]) -> FusedMoE:
    slots: dict[str, WeightSlot] = {slot.name: slot for slot in layer.slots("m")}
    for name, tensor in tensors.items():
        assert slots[name].shape == tuple(tensor.shape)
        slots[name].load(stored(tensor))
    layer.finish()
    return layer


@pytest.fixture(autouse=True)
def _dense_experts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Native kernels pack them."""
    monkeypatch.setitem(registry.PREFERENCE, "cpu", ("reference",))


@pytest.fixture
def weights() -> dict[str, Tensor]:
    """gate, up [E, I, K] and down [E, K, I]."""
    torch.manual_seed(0)
    return {"gate": torch.randn(E, I, K), "up": torch.randn(E, I, K), "down": torch.randn(E, K, I)}


def layouts(weights: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    single = {f"m.{e}.{kind}_proj.weight": w[e] for kind, w in weights.items() for e in range(E)}
    stacked = {f"m.{kind}_proj.weight": w for kind, w in weights.items()}
    both = torch.cat([weights["gate"], weights["up"]], dim=1)
    return [single, stacked, {"m.gate_up_proj": both, "m.down_proj": weights["down"]}]


@pytest.mark.parametrize("layout", [0, 1, 2], ids=["single", "stacked", "fused"])
@pytest.mark.parametrize("rank", [0, 1, None])
def test_a_rank_holds_its_part(weights: dict[str, Tensor], layout: int, rank: int | None) -> None:
    layer = make() if rank is None else make(rank, 2)
    fill(layer, layouts(weights)[layout])
    part = slice(0, I) if rank is None else slice(rank * I // 2, (rank + 1) * I // 2)
    want = torch.cat([weights["gate"][:, part], weights["up"][:, part]], dim=1)
    assert torch.equal(layer.w13, want)
    assert torch.equal(layer.w2, weights["down"][:, :, part])
    assert layer.weight_bytes == want.nbytes + layer.w2.nbytes


def test_weights_keep_the_type_they_are_stored_in(weights: dict[str, Tensor]) -> None:
    narrow = {name: tensor.bfloat16() for name, tensor in layouts(weights)[0].items()}
    layer = fill(make(), narrow)
    assert layer.w13.dtype == layer.w2.dtype == torch.bfloat16
