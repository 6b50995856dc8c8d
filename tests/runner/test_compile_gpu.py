"""Every compile level on a GPU computes what level 0 does, for every family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from compiling import load_traceable, logits_of
from tiny import FAMILIES, random_prompt, tiny_checkpoint
from torch import Tensor

from atom.config.schema import Config, ModelConfig
from atom.engine.compiler.compiler import compile_forward
from atom.engine.compiler.store import Store
from atom.engine.runner import compilation
from atom.models.loader import load_model
from atom.models.source import resolve_source

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
CHUNKS = [[41], [23, 1, 1, 9], [1]]
# Level 0 may add to the residual in place, the others never do: sums are the same, and the rest is
# the rounding of operations that the compiler fuses, none of which are left between the kernels.
TOLERANCE = {torch.bfloat16: 0.06, torch.float32: 1e-3}


def load_eager(path: Path, dtype: torch.dtype) -> Any:
    config = Config(model=ModelConfig(model=str(path), dtype=str(dtype).removeprefix("torch.")))
    return load_model(resolve_source(config.model), config, torch.device("cuda", 0), dtype)


def all_logits(model: Any, forward: Any) -> list[Tensor]:
    ids = random_prompt(41)
    return [logits_of(model, forward, ids, chunks, "cuda") for chunks in CHUNKS]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_level_3(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    path, device = tiny_checkpoint(family), torch.device("cuda", 0)
    eager = load_eager(path, dtype)
    model = load_traceable(path, dtype, device=device)
    for start in range(2):
        made = compile_forward(model, device, 2048, Store(tmp_path))
        assert (made.traced, made.compiled > 0) == (start == 0, start == 0 and made.num_pieces > 0)
        for got, want in zip(
            all_logits(model, made.forward), all_logits(eager, eager.forward), strict=True
        ):
            torch.testing.assert_close(got, want, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("family", ["llama3", "qwen3_moe"])
def test_levels_1_and_2(family: str, level: int) -> None:
    path, dtype = tiny_checkpoint(family), torch.bfloat16
    eager = load_eager(path, dtype)
    model = load_traceable(path, dtype, device=torch.device("cuda", 0))
    torch._dynamo.reset()
    if level == 1:
        forward = torch.compile(model.forward)
    else:
        forward = compilation._compile_once(model.forward)
    for got, want in zip(all_logits(model, forward), all_logits(eager, eager.forward), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=TOLERANCE[dtype])
