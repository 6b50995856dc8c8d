"""What is DeepSeek V4's alone; logits and greedy tokens are tested with every other family."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from harness import PagedModel
from hub import hub_checkpoint, hub_reference
from safetensors.torch import load_file, save_file
from test_families import CPU, assert_near, load, reference

from atom.config.schema import Config, EngineConfig, ModelConfig
from atom.errors import ModelError
from atom.layers.context import ForwardContext, set_forward_context
from atom.models.hf_config import HFConfig
from atom.models.loader import load_model
from atom.models.registry import resolve
from atom.models.source import resolve_source
from atom.models.v4_config import V4Config
from atom.parallel.state import ParallelState

FAMILY = "deepseek_v4"


def v4_config(**changes: object) -> HFConfig:
    raw = json.loads((hub_checkpoint(FAMILY) / "config.json").read_text())
    for name, value in changes.items():
        raw.pop(name) if value is None else raw.update({name: value})
    return HFConfig(raw)


@pytest.mark.parametrize("chunks", [[1000], [37, 1, 1, 9]], ids=str)
def test_mtp_logits(chunks: list[int]) -> None:
    """The layer takes the target's streams before they collapse."""
    prompt, after, want = reference(FAMILY)
    ids = [*prompt, *after]
    paged = PagedModel(load(hub_checkpoint(FAMILY), 128, mtp=True), 128)
    model, own, further, at, sizes = paged.model, [], [], 0, list(chunks)
    while at < len(ids) - 1:
        end = min(at + (sizes.pop(0) if len(sizes) > 1 else sizes[0]), len(ids) - 1)
        meta, positions = paged.metadata({"only": ids[at:end]}, 0), torch.arange(at, end)
        with torch.inference_mode(), set_forward_context(ForwardContext(meta)):
            hidden, streams = model.collapse(model.streams(torch.tensor(ids[at:end]), positions))
            own.append(model.compute_logits(hidden))
            hidden = model.mtp(torch.tensor(ids[at + 1 : end + 1]), positions, streams)
            further.append(model.compute_logits(hidden))
        paged.advance({"only": ids[at:end]})
        at = end
    assert_near(torch.cat(further), hub_reference(hub_checkpoint(FAMILY))["mtp_logits"])
    assert_near(torch.cat(own), want[:-1])


def test_blocks_of_several_entries_and_a_float8_cache() -> None:
    """Blocks of 256 tokens: two entries of the long kind, rings that are not whole blocks."""
    prompt, after, want = reference(FAMILY)
    ids = [*prompt, *after]
    path = hub_checkpoint(FAMILY)
    assert_near(PagedModel(load(path, 256), 256).logits(ids, [100, 3, 61]), want)
    engine = EngineConfig(kv_cache_block_size=128, kv_cache_dtype="fp8")
    config = Config(model=ModelConfig(model=str(path), dtype="float32"), engine=engine)
    model = load_model(resolve_source(config.model), config, CPU, torch.float32)
    got = PagedModel(model, 128).logits(ids, [100, 3, 61])
    assert float((got - want).norm() / want.norm()) < 0.3
    assert bool(got.isfinite().all())


def test_only_sampled_rows() -> None:
    """A model that leaves out rows after the last attention gives the others as they were."""
    prompt, _, want = reference(FAMILY)
    model = load(hub_checkpoint(FAMILY), 128, selects_rows=True)
    paged, rows = PagedModel(model, 128), torch.tensor([3, 150])
    meta = paged.metadata({"only": prompt}, 0)
    inputs = (torch.tensor(prompt), torch.arange(len(prompt)))
    with torch.inference_mode(), set_forward_context(ForwardContext(meta, rows=rows)):
        got = model.compute_logits(model(*inputs))
    assert_near(got, want[rows])


def test_caches_of_the_kinds_of_blocks() -> None:
    model = load(hub_checkpoint(FAMILY), 128)
    window, long, short = model.cache_layers()[:3]
    assert [(s.name, s.kind, s.shape, s.window) for s in window.cache_specs()] == [
        ("cache", "window", (128, 64), 16)
    ]
    assert [(s.name, s.kind, s.shape, s.window) for s in long.cache_specs()] == [
        ("cache", "window", (128, 64), 16),
        ("ring", "window", (128, 128), 128),
        ("entries", "full", (1, 64), 0),
    ]
    assert [(s.name, s.kind, s.shape, s.window) for s in short.cache_specs()] == [
        ("cache", "window", (128, 64), 16),
        ("ring", "window", (16, 256), 8),
        ("entries", "full", (32, 64), 0),
        ("index_ring", "window", (16, 128), 8),
        ("index_keys", "full", (32, 32), 0),
    ]
    assert [layer.facts()["kind"] for layer in (window, long, short)] == [
        "v4_window",
        "v4_hca",
        "v4_csa",
    ]
    assert resolve("DeepseekV4ForCausalLM").block_multiple(v4_config()) == 128


def test_both_spellings_of_the_config() -> None:
    published = V4Config(v4_config())
    kinds = [*published.kinds]
    rope = {
        "main": {"rope_type": "default", "rope_theta": 10000},
        "compress": {"rope_theta": 160000, **published.hf.rope_scaling, "attention_factor": 1.0},
    }
    newer = V4Config(
        v4_config(
            layer_types=kinds,
            mlp_layer_types=["hash_moe"] * 2 + ["moe"] * 3,
            rope_parameters=rope,
            partial_rotary_factor=0.25,
            **dict.fromkeys(("compress_ratios", "num_hash_layers", "rope_scaling")),
            qk_rope_head_dim=None,
        )
    )
    assert newer.ratios == published.ratios == [0, 128, 4, 128, 4]
    assert newer.rope_size == published.rope_size == 16
    hashed = [[c.is_hashed(i) for i in range(6)] for c in (published, newer)]
    assert hashed[0] == hashed[1] == [True, True, False, False, False, False]
    build = load(hub_checkpoint(FAMILY), 128).embed.build
    for compressed in (False, True):
        torch.testing.assert_close(
            newer.rope(build, compressed), published.rope(build, compressed), rtol=0, atol=0
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compress_ratios": [0, 128, 4, 8, 4]}, "compress_ratios .* says 8; supported"),
        ({"compress_ratios": [0, 128]}, "says 2 of 5; supported"),
        ({"scoring_func": "softmax"}, "scoring_func 'softmax' is not supported"),
        ({"swiglu_limit": 0}, "swiglu_limit must be above 0, got 0"),
        ({"hc_mult": None}, "hc_mult, which this model needs"),
    ],
    ids=["ratio", "short", "scoring", "limit", "streams"],
)
def test_configs_that_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        V4Config(v4_config(**changes))


def test_tables_of_experts_are_checked(tmp_path: Path) -> None:
    shutil.copytree(hub_checkpoint(FAMILY), tmp_path, dirs_exist_ok=True)
    name = "layers.1.ffn.gate.tid2eid"
    (file,) = [f for f in tmp_path.glob("model*.safetensors") if name in load_file(str(f))]
    tensors = load_file(str(file))
    good = tensors[name]
    for bad, message in ((good + 7, "integers from 0 to 7"), (good * 0, "an expert twice")):
        save_file({**tensors, name: bad}, str(file))
        with pytest.raises(ModelError, match=f"{name}.*{message}"):
            load(tmp_path, 128)


def test_groups_that_ranks_cannot_share() -> None:
    config = Config(model=ModelConfig(model=str(hub_checkpoint(FAMILY)), load_dummy=True))
    with pytest.raises(ModelError, match="tensor_parallel_size 4 does not divide o_groups = 2"):
        load_model(
            resolve_source(config.model),
            config,
            CPU,
            torch.float32,
            parallel=ParallelState(0, 4),
        )
