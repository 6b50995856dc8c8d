"""Compile level 3 of models whose operations are all kernels: nothing is left to be compiled."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from compiling import Interpreter, interpreter, load_traceable
from tiny import make_tiny
from torch import Tensor

from atom.engine.compiler.compiler import compile_forward
from atom.engine.compiler.plan import OpCall
from atom.engine.compiler.store import Store
from atom.layers.attention import Attention
from atom.layers.context import ForwardContext, set_forward_context
from atom.ops import registry
from atom.ops.contracts import AttentionMetadata

__all__ = ["interpreter"]  # a fixture
SIZES = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 320}


def only_queries(layer: Attention, qkv: Tensor, positions: Tensor) -> Tensor:
    """In the place of attention, whose kernels have tests of their own."""
    return qkv[:, : layer.num_heads].contiguous()


@pytest.mark.parametrize("family", ["llama3", pytest.param("qwen3_moe", marks=pytest.mark.slow)])
def test_kernels_are_called_without_a_dispatcher(
    family: str,
    device: str,
    interpreter: Interpreter,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(registry.PREFERENCE, "cpu", ("triton", "reference"))
    extra = {"mlp_only_layers": []} if family == "qwen3_moe" else {}
    path = make_tiny(family, tmp_path / "model", num_hidden_layers=1, **SIZES, **extra)
    model = load_traceable(path, torch.bfloat16, device=torch.device(device))
    made = compile_forward(model, torch.device(device), 64, Store(tmp_path / "store"))
    assert interpreter.graphs == {}
    ops = [step.op for step in made.forward.plan.steps if isinstance(step, OpCall)]
    assert len(ops) == made.num_steps
    assert {"atom::attention", "aten::view"} <= set(ops)
    unused = torch.zeros(1, device=device)
    meta = AttentionMetadata(3, 1, 3, 3, unused, unused, unused, unused)
    ids, positions = torch.tensor([[7, 300, 41], [0, 1, 2]], device=device)
    with torch.inference_mode(), set_forward_context(ForwardContext(meta, only_queries)):
        want = model.forward(ids, positions)
        assert torch.isfinite(want).all()
        assert torch.equal(made.forward(ids, positions), want)
