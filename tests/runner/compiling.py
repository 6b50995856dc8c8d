"""What tests of compile levels share: models built to be traced, and a stand-in for Inductor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import PagedModel
from torch import Tensor

from atom.config.schema import Config, ModelConfig
from atom.engine.compiler import inductor
from atom.engine.compiler.compiler import Compiled, compile_forward
from atom.engine.compiler.split import Piece
from atom.engine.compiler.store import Store
from atom.models.loader import load_model
from atom.models.source import resolve_source
from atom.parallel.state import SINGLE, ParallelState

CPU = torch.device("cpu")
MAX_TOKENS = 256


def load_traceable(
    path: Path,
    dtype: torch.dtype = torch.float32,
    parallel: ParallelState = SINGLE,
    device: torch.device = CPU,
) -> Any:
    name = str(dtype).removeprefix("torch.")
    config = Config(model=ModelConfig(model=str(path), dtype=name))
    source = resolve_source(config.model)
    return load_model(source, config, device, dtype, parallel=parallel, traceable=True)


def compiled(model: Any, store: Store, max_tokens: int = MAX_TOKENS) -> Compiled:
    return compile_forward(model, CPU, max_tokens, store)


class Running:
    """A model whose forward is another one."""

    def __init__(self, model: Any, forward: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.compute_logits = model.compute_logits
        self.attention_layers = model.attention_layers
        self.cache_layers = model.cache_layers
        self._forward = forward

    def __call__(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        return self._forward(input_ids, positions)


def logits_of(
    model: Any,
    forward: Callable[[Tensor, Tensor], Tensor],
    ids: list[int],
    chunks: list[int],
    device: str = "cpu",
) -> Tensor:
    return PagedModel(Running(model, forward), block_size=16, device=device).logits(ids, chunks)


class Interpreter:
    """Runs pieces node by node instead of compiling them, and counts them."""

    def __init__(self) -> None:
        self.graphs: dict[str, Any] = {}
        self.loaded = 0

    def compile_piece(self, piece: Piece) -> str:
        code = f"piece {len(self.graphs)}"
        self.graphs[code] = piece.graph
        return code

    def load_piece(self, code: str) -> inductor.Call:
        graph = self.graphs[code]
        self.loaded += 1
        return lambda args: graph(*args)


@pytest.fixture
def interpreter(monkeypatch: pytest.MonkeyPatch) -> Interpreter:
    stand_in = Interpreter()
    monkeypatch.setattr(inductor, "compile_piece", stand_in.compile_piece)
    monkeypatch.setattr(inductor, "load_piece", stand_in.load_piece)
    return stand_in
