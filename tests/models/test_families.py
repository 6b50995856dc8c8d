"""Every published family against transformers, through the paged caches of its kinds."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import PagedModel
from hub import FAMILIES, hub_checkpoint, hub_reference
from torch import Tensor

from atom.config.schema import Config, EngineConfig, ModelConfig
from atom.models.loader import load_model
from atom.models.registry import ARCHITECTURES
from atom.models.source import resolve_source

CPU = torch.device("cpu")
BLOCK_SIZES = {"deepseek_v4": 128}  # what its compressed entries divide


def is_here(family: str) -> bool:
    (architecture,) = FAMILIES[family]["config"]["architectures"]
    return importlib.util.find_spec(ARCHITECTURES[architecture].partition(":")[0]) is not None


SUPPORTED = [name for name in FAMILIES if is_here(name)]


@pytest.fixture(params=SUPPORTED)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def load(path: Path, block_size: int = 16, **options: Any) -> Any:
    engine = EngineConfig(kv_cache_block_size=block_size)
    config = Config(model=ModelConfig(model=str(path), dtype="float32"), engine=engine)
    return load_model(resolve_source(config.model), config, CPU, torch.float32, **options)


def paged(family: str, block_size: int = 4, **options: Any) -> PagedModel:
    size = BLOCK_SIZES.get(family, block_size)
    return PagedModel(load(hub_checkpoint(family), size, **options), size)


def reference(family: str) -> tuple[list[int], list[int], Tensor]:
    """(prompt, greedy tokens after it, logits of both)."""
    found = hub_reference(hub_checkpoint(family))
    return found["input_ids"].tolist(), found["greedy_ids"].tolist(), found["logits"]


def assert_near(got: Tensor, want: Tensor) -> None:
    """1e-4 of the largest logit."""
    assert got.shape == want.shape
    assert bool(got.isfinite().all())
    assert float((got - want).abs().max() / want.abs().max()) < 1e-4


@pytest.mark.parametrize("chunks", [[1000], [37, 1, 1, 9]], ids=str)
def test_logits_in_any_chunks(family: str, chunks: list[int]) -> None:
    prompt, after, want = reference(family)
    assert_near(paged(family).logits([*prompt, *after], chunks), want)


def test_a_prompt_token_by_token(family: str) -> None:
    prompt, _, want = reference(family)
    assert_near(paged(family, 16).logits(prompt[:40], [1]), want[:40])


def test_sequences_of_a_batch_do_not_mix(family: str) -> None:
    """Prefill chunks, decodes and padding in one step; a sequence in the slot of one that ended."""
    prompt, after, want = reference(family)
    ids = [*prompt, *after]
    model = paged(family)
    model.step({"gone": ids[5:25]})
    model.forget("gone")
    sizes = {"a": [20, 1, 1, 40], "b": [3, 9, 1, 30], "c": [11, 5, 60, 1]}
    lengths = {"a": len(ids), "b": 50, "c": 90}
    done = dict.fromkeys(sizes, 0)
    got: dict[str, list[Tensor]] = {key: [] for key in sizes}
    while any(done[key] < lengths[key] for key in sizes):
        step = {}
        for key, left in sizes.items():
            end = min(lengths[key], done[key] + (left.pop(0) if left else 17))
            if done[key] < end:
                step[key] = ids[done[key] : end]
                done[key] = end
        for key, logits in model.step(step, num_padding=3).items():
            got[key].append(logits)
    for key, parts in got.items():
        assert_near(torch.cat(parts), want[: lengths[key]])


def test_greedy_tokens(family: str) -> None:
    prompt, after, _ = reference(family)
    assert len(after) == 32
    assert paged(family, 16).greedy(prompt, 32, chunk=29) == after
