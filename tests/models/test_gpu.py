"""Models on a GPU: the same logits as transformers on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from harness import PagedModel
from tiny import FAMILIES, make_tiny, random_prompt, reference_logits, tiny_checkpoint

from atom.config.schema import Config, EngineConfig, ModelConfig
from atom.models.loader import load_model, resolve_dtype
from atom.models.source import resolve_source

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]


def on_gpu(path: Path, dtype: str, kv: str = "auto") -> PagedModel:
    config = Config(
        model=ModelConfig(model=str(path), dtype=dtype), engine=EngineConfig(kv_cache_dtype=kv)
    )
    source, device = resolve_source(config.model), torch.device("cuda")
    model = load_model(source, config, device, resolve_dtype(config, source, device))
    return PagedModel(model, block_size=4, device="cuda")


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_float32(family: str) -> None:
    path, ids = tiny_checkpoint(family), random_prompt(61)
    got = on_gpu(path, "float32").logits(ids, [23, 1, 1, 9])
    torch.testing.assert_close(got, reference_logits(path, ids), rtol=0, atol=2e-4)


@pytest.mark.parametrize("family", ["llama3", "qwen3"])
@pytest.mark.parametrize("kv", ["auto", "fp8"])
def test_bfloat16(family: str, kv: str, tmp_path: Path) -> None:
    path, ids = make_tiny(family, tmp_path, dtype="bfloat16"), random_prompt(61)
    want = reference_logits(path, ids)
    paged = on_gpu(path, "auto", kv)
    assert paged.model.lm_head.packed.dequantize().device.type == "cuda"
    got = paged.logits(ids, [23, 1, 1, 9])
    similarity = torch.nn.functional.cosine_similarity(got, want, dim=-1)
    assert float(similarity.mean()) > (0.99 if kv == "fp8" else 0.999)
