"""Compile level 3 of the published families: whatever mixes tokens or routes is one opaque call.

Pieces are interpreted, as in `test_compile_pieces`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from compiling import Interpreter, Running, compiled, interpreter
from harness import PagedModel
from hub import hub_checkpoint
from test_families import BLOCK_SIZES, SUPPORTED, load
from tiny import random_prompt

from atom.engine.compiler.store import Store

__all__ = ["interpreter"]  # a fixture
PLAIN = {"llama2", "llama3", "qwen3", "qwen3_moe", "mixtral"}  # `test_compile_pieces` has them


@pytest.mark.parametrize("family", [name for name in SUPPORTED if name not in PLAIN])
def test_logits_equal_eager_ones(family: str, interpreter: Interpreter, tmp_path: Path) -> None:
    size = BLOCK_SIZES.get(family, 16)
    model = load(hub_checkpoint(family), size, traceable=True)
    made = compiled(model, Store(tmp_path))
    assert len(interpreter.graphs) == made.num_pieces < made.num_steps
    ids, chunks = random_prompt(60), [41, 1, 1, 9]
    want = PagedModel(Running(model, model.forward), size).logits(ids, chunks)
    got = PagedModel(Running(model, made.forward), size).logits(ids, chunks)
    torch.testing.assert_close(got, want, rtol=0, atol=5e-5)
