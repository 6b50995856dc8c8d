"""Compile level 3 of the published families: whatever mixes tokens or routes is one opaque call.

Pieces are interpreted, as in `test_compile_pieces`.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from compiling import Interpreter, Running, compiled, interpreter
from harness import PagedModel
from hub import hub_checkpoint
from test_families import BLOCK_SIZES, SUPPORTED, load
from tiny import random_prompt

from atom.engine.compiler.store import Store
from atom.engine.runner.facts import modules_of
from atom.layers.attention import Attention
from atom.layers.mixer import Mixer

__all__ = ["interpreter"]  # a fixture
PLAIN = {"llama2", "llama3", "qwen3", "qwen3_moe", "mixtral"}  # `test_compile_pieces` has them
ALIKE = {"deepseek_v2_group", "kimi_k2", "kimi_k25", "qwen3_5_moe"}  # layers as others', too


@pytest.mark.parametrize("family", [name for name in SUPPORTED if name not in PLAIN | ALIKE])
def test_logits_equal_eager_ones(family: str, interpreter: Interpreter, tmp_path: Path) -> None:
    size = BLOCK_SIZES.get(family, 16)
    model = load(hub_checkpoint(family), size, traceable=True)
    made = compiled(model, Store(tmp_path))
    assert len(interpreter.graphs) == made.num_pieces < made.num_steps
    ids, chunks = random_prompt(60), [41, 1, 1, 9]
    want = PagedModel(Running(model, model.forward), size).logits(ids, chunks)
    got = PagedModel(Running(model, made.forward), size).logits(ids, chunks)
    torch.testing.assert_close(got, want, rtol=0, atol=5e-5)


@pytest.mark.parametrize("family", ["qwen3_next", "deepseek_v3", "deepseek_v32", "deepseek_v4"])
def test_a_trace_is_told_of_every_mixer(family: str) -> None:
    model = load(hub_checkpoint(family), BLOCK_SIZES.get(family, 16))
    told = modules_of(model)
    json.dumps(told)
    for path, module in model.named_modules():
        if isinstance(module, (Attention, Mixer)):
            assert told[path]["kind"]


def test_dynamo_sees_through_mixers_as_well() -> None:
    """Which levels 1 and 2 need: one graph for any number of tokens."""
    model = load(hub_checkpoint("qwen3_5"), traceable=True)
    torch._dynamo.reset()
    forward = torch.compile(model.forward, backend="aot_eager", fullgraph=True)

    def run(input_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        torch._dynamo.mark_dynamic(input_ids, 0)
        torch._dynamo.mark_dynamic(positions, 0)
        out: torch.Tensor = forward(input_ids, positions)
        return out

    ids, chunks = random_prompt(60), [41, 10, 9]
    want = PagedModel(Running(model, model.forward)).logits(ids, chunks)
    torch.testing.assert_close(PagedModel(Running(model, run)).logits(ids, chunks), want)
