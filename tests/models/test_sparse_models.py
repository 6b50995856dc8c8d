"""DeepSeek V3.2 and GLM-5: what the tests of all families do not reach."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from harness import PagedModel
from hub import FAMILIES, hub_checkpoint, hub_reference
from test_families import assert_near, load
from test_mtp import mtp_logits

from atom.config.schema import Config, EngineConfig, ModelConfig
from atom.errors import ModelError
from atom.layers.build import BuildContext
from atom.layers.indexer import SparseMLA
from atom.models.hf_config import HFConfig
from atom.models.indexer_kinds import indexer_kind
from atom.models.loader import load_model
from atom.models.registry import resolve
from atom.models.source import resolve_source


def references(family: str, **overrides: Any) -> tuple[Any, list[int], dict[str, torch.Tensor]]:
    """(checkpoint, the tokens of its reference, the reference)."""
    path = hub_checkpoint(family, **overrides)
    found = hub_reference(path)
    return path, [*found["input_ids"].tolist(), *found["greedy_ids"].tolist()], found


def mixers(model: Any) -> list[SparseMLA]:
    return [module for module in model.modules() if isinstance(module, SparseMLA)]


@pytest.mark.parametrize("chunks", [[1000], [37, 1, 9]], ids=str)
def test_layers_that_share_a_choice(chunks: list[int]) -> None:
    """Blocks 0, 1 and 3 have indexers; 2 uses that of 1. The layer behind them has its own."""
    schedule = {"num_hidden_layers": 4, "index_topk_freq": 2, "index_skip_topk_offset": 2}
    path, ids, found = references("glm_moe_dsa", **schedule)
    model = load(path, 4, mtp=True)
    caches = [[spec.name for spec in layer.cache_specs()] for layer in mixers(model)]
    both = ["latent_cache", "index_cache"]
    assert caches == [both, both, ["latent_cache"], both, both]
    facts = [layer.facts() for layer in mixers(model)]
    assert [f["shares_choice"] for f in facts] == [False, False, True, False, False]
    assert facts[0]["top_k"] == 16
    paged = PagedModel(model, 4)
    assert_near(paged.logits(ids, chunks), found["logits"])
    assert_near(mtp_logits(PagedModel(model, 4), ids, chunks), found["mtp_logits"])


def test_short_contexts_are_not_ranked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to index_topk keys all are read, but kept: ranking begins in the middle of a sequence."""
    path, ids, found = references("deepseek_v32", index_topk=100)
    assert len(ids) > 101
    paged = PagedModel(load(path, 4), 4)
    ranked: list[int] = []
    for layer in mixers(paged.model):
        indexer = layer._indexer[0]
        assert indexer is not None
        best = indexer._best

        def counted(q: torch.Tensor, *rest: Any, best: Any = best) -> torch.Tensor:
            ranked.append(len(q))
            out: torch.Tensor = best(q, *rest)
            return out

        monkeypatch.setattr(indexer, "_best", counted)
    want = found["logits"]
    assert_near(paged.logits(ids[:100], [60, 40]), want[:100])
    assert not ranked
    rest = paged.step({"only": ids[100:]})["only"]
    assert_near(rest, want[100:])
    assert ranked == [len(ids) - 100] * 3


def test_a_float8_cache_leaves_the_index_alone() -> None:
    """Keys are ranked as without it: only the latents are coarser."""
    path, ids, found = references("glm_moe_dsa")
    engine = EngineConfig(kv_cache_block_size=4, kv_cache_dtype="fp8")
    config = Config(model=ModelConfig(model=str(path), dtype="float32"), engine=engine)
    cpu = torch.device("cpu")
    model = load_model(resolve_source(config.model), config, cpu, torch.float32)
    dtypes = {spec.name: spec.dtype for spec in mixers(model)[0].cache_specs()}
    assert dtypes == {"latent_cache": torch.float8_e4m3fn, "index_cache": torch.float32}
    got = PagedModel(model, 4).logits(ids[:60], [37, 1, 9])
    error = (got - found["logits"][:60]).abs().flatten()
    assert bool(got.isfinite().all())
    assert float(error.median()) < 0.5  # of logits whose standard deviation is 3


@pytest.mark.parametrize(
    ("config", "kinds"),
    [
        ({}, "FFFFFF"),
        ({"index_topk_freq": 4, "index_skip_topk_offset": 3}, "FFFSSS"),
        ({"index_topk_freq": 2}, "FFSFSF"),
        ({"index_topk_pattern": "FSFSSF"}, "FSFSSF"),
        ({"indexer_types": ["full", "shared"] * 3}, "FSFSFS"),
    ],
    ids=str,
)
def test_which_blocks_have_indexers(config: dict[str, Any], kinds: str) -> None:
    config = {"num_hidden_layers": 6, **config}
    found = [indexer_kind(HFConfig(config), index) for index in range(7)]
    assert "".join(kind[0].upper() for kind in found) == kinds + "F"
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GlmMoeDsaConfig(**config).indexer_types
    assert list(theirs) == found[:6]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"indexer_types": ["shared", "full", "full"]}, "'shared' of block 0 is not supported"),
        ({"indexer_types": ["full", "full"]}, "kind of each of 3 blocks, got .'full', 'full'.$"),
        ({"indexer_types": 3}, "kind of each of 3 blocks, got 3"),
        ({"index_topk_freq": "2"}, "must be counts, got '2' and 2"),
        ({"index_topk_freq": 2, "index_skip_topk_offset": 0}, "'shared' of block 0"),
        ({"index_topk_pattern": "FXF"}, "indexer type 'X' of block 1"),
        ({"index_head_dim": 8}, "index_head_dim 8 is less than the 16 channels"),
        ({"attention_bias": True}, "needs a q_lora_rank, and no attention_bias"),
        ({"q_lora_rank": None}, "needs a q_lora_rank, and no attention_bias"),
        ({"index_topk": 0}, "index_topk must be a positive integer"),
    ],
    ids=str,
)
def test_what_is_refused(config: dict[str, Any], message: str) -> None:
    raw = {**FAMILIES["glm_moe_dsa"]["config"], **config}
    with pytest.raises(ModelError, match=message):
        resolve("GlmMoeDsaForCausalLM")(HFConfig(raw), BuildContext())
