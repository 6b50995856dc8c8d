"""The last block computes only the rows that are sampled: the same rows, eagerly and in pieces."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from compiling import Interpreter, compiled, interpreter
from harness import PagedModel, make_metadata
from hub import hub_checkpoint
from test_families import BLOCK_SIZES, load
from tiny import random_prompt, tiny_checkpoint

from atom.config.schema import CompileConfig, Config, ModelConfig
from atom.engine.compiler.store import Store
from atom.engine.runner import compilation, kv_cache
from atom.layers.context import ForwardContext, set_forward_context
from atom.models.loader import load_model
from atom.models.source import resolve_source

__all__ = ["interpreter"]  # a fixture
CPU = torch.device("cpu")
LENGTHS = (23, 5, 12)
ROWS = torch.tensor([22, 27])  # two of three prompts sample


@pytest.mark.parametrize("pieces", [False, True], ids=["eager", "pieces"])
@pytest.mark.parametrize("family", ["llama3", "qwen3", "qwen3_moe", "mixtral"])
def test_selected_rows(family: str, pieces: bool, interpreter: Interpreter, tmp_path: Path) -> None:
    config = Config(model=ModelConfig(model=str(tiny_checkpoint(family)), dtype="float32"))
    source = resolve_source(config.model)
    model = load_model(source, config, CPU, torch.float32, traceable=pieces, selects_rows=True)
    kv_cache.bind(model.cache_layers(), kv_cache.Counts(8, 8, 8), CPU)
    forward = compiled(model, Store(tmp_path)).forward if pieces else model.forward
    meta = make_metadata([([0, 1], 0, 23), ([2], 0, 5), ([3], 0, 12)], 16)
    ids = torch.tensor(random_prompt(sum(LENGTHS)))
    positions = torch.cat([torch.arange(n) for n in LENGTHS])
    with torch.inference_mode():
        with set_forward_context(ForwardContext(meta)):
            every = forward(ids, positions)
        with set_forward_context(ForwardContext(meta, rows=ROWS)):
            some = forward(ids, positions)
    assert (len(every), len(some)) == (sum(LENGTHS), len(ROWS))
    torch.testing.assert_close(some, every[ROWS], rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("family", "pieces"),
    [("qwen3_5", True), ("gpt_oss", False), ("deepseek_v3", False), ("deepseek_v4", True)],
)
def test_selected_rows_behind_any_mixer(
    family: str, pieces: bool, interpreter: Interpreter, tmp_path: Path
) -> None:
    size = BLOCK_SIZES.get(family, 16)
    model = load(hub_checkpoint(family), size, traceable=pieces, selects_rows=True)
    forward = compiled(model, Store(tmp_path)).forward if pieces else model.forward
    ids = torch.tensor(random_prompt(sum(LENGTHS)))
    positions = torch.cat([torch.arange(n) for n in LENGTHS])
    meta = PagedModel(model, size).metadata({n: [0] * n for n in LENGTHS}, 0)
    with torch.inference_mode():
        with set_forward_context(ForwardContext(meta)):
            every = forward(ids, positions)
        with set_forward_context(ForwardContext(meta, rows=ROWS)):
            some = forward(ids, positions)
    assert (len(every), len(some)) == (sum(LENGTHS), len(ROWS))
    torch.testing.assert_close(some, every[ROWS], rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("level", "device", "can"),
    [
        (0, "cuda", True),
        (1, "cuda", False),
        (2, "cuda", False),
        (3, "cuda", True),
        (3, "cpu", False),
    ],
)
def test_where_rows_are_selected(level: int, device: str, can: bool) -> None:
    config = Config(compile=CompileConfig(level=level))
    assert compilation.can_select_rows(config, torch.device(device)) is can
