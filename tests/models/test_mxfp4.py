"""GPT-OSS as published, experts in MXFP4."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from harness import PagedModel, free_port
from mxfp4_checkpoint import mxfp4_pair
from test_families import load
from test_tensor_parallel import run_ranks
from tiny import random_prompt

from atom.config.schema import Config, ModelConfig
from atom.errors import ModelError
from atom.layers import mxfp4 as layers
from atom.layers.build import BuildContext
from atom.layers.moe import FusedMoE
from atom.layers.weights import ALL
from atom.models.checkpoint import DummyTensor
from atom.models.loader import load_model
from atom.models.source import resolve_source
from atom.ops.contracts import GatedActivation, MXFP4Weight, Routing
from atom.ops.reference.mxfp4 import VALUES, dequantize, pack
from atom.parallel.state import ParallelState


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return mxfp4_pair(tmp_path_factory.mktemp("mxfp4"))


def logits(path: Path) -> torch.Tensor:
    return PagedModel(load(path), block_size=4).logits(random_prompt(40), [17, 1, 9])


def test_packed_experts_are_what_transformers_unpacks(
    pair: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    layers._say_dense.cache_clear()
    with caplog.at_level(logging.WARNING, layers.__name__):
        got = logits(pair[0])
    assert torch.equal(got, logits(pair[1]))
    assert [r.message for r in caplog.records if "MXFP4" in r.message]  # once, with the price


def test_dummy_weights_are_of_a_usual_size(pair: tuple[Path, Path]) -> None:
    config = Config(model=ModelConfig(model=str(pair[0]), dtype="float32", load_dummy=True))
    cpu = torch.device("cpu")
    model = load_model(resolve_source(config.model), config, cpu, torch.float32)
    experts = next(m for m in model.modules() if isinstance(m, FusedMoE))
    tensor = DummyTensor("m.scales", (3, 2), torch.bfloat16, cpu, 0)
    assert set(tensor.packed(ALL, ALL).flatten().tolist()) == {120}
    assert experts.weight_format == "float32"
    assert bool(PagedModel(model).logits(random_prompt(9), [9]).isfinite().all())


def test_ranks_share_out_groups(tmp_path: Path) -> None:
    """Two ranks, and three groups of 32 for them."""
    paths = mxfp4_pair(tmp_path / "odd", intermediate_size=96)
    ranks = run_ranks(2, free_port(), tmp_path, [str(path) for path in paths])
    for number, path in enumerate(paths):
        for rank in ranks:
            torch.testing.assert_close(rank[str(number)], logits(path), rtol=0, atol=1e-4)


def test_shares_of_a_size_that_does_not_divide() -> None:
    """90 groups, as published, over 4 ranks."""
    shares = [share(2880, rank, 4) for rank in range(4)]
    assert [s.stop - s.start for s in shares] == [736, 736, 704, 704]
    assert [s.start for s in shares[1:]] == [s.stop for s in shares[:-1]]
    with pytest.raises(ModelError, match=r"tensor_parallel_size 8 .* 4 groups"):
        share(128, 0, 8)
    with pytest.raises(ModelError, match=r"intermediate_size 100 .* 32"):
        share(100, 0, 1)


def share(size: int, rank: int, ranks: int) -> slice:
    build = BuildContext(parallel=ParallelState(rank, ranks))
    experts = layers.MXFP4Experts(
        build,
        hidden_size=64,
        intermediate_size=size,
        num_experts=1,
        top_k=1,
        routing=Routing(),
        act=GatedActivation("gpt_oss", 7.0),
    )
    return experts.share


def test_order_of_nibbles() -> None:
    """Of a checkpoint, byte i holds values 2i and 2i + 1; of ours, i and i + 16."""
    codes = torch.arange(32) % 16
    blocks = (codes[0::2] | (codes[1::2] << 4)).to(torch.uint8).view(1, 1, 1, 16)
    weight = pack(blocks, torch.tensor([[[128]]], dtype=torch.uint8))
    assert isinstance(weight, MXFP4Weight)
    assert weight.shape == (1, 1, 32)
    assert weight.nbytes == 17
    want = 2 * torch.tensor([*VALUES, *(-v for v in VALUES)] * 2)
    assert torch.equal(dequantize(weight.data, weight.scales)[0, 0], want)
    extremes = torch.tensor([[[0]], [[255]]], dtype=torch.uint8)
    small, none = dequantize(weight.data.expand(2, 1, 16), extremes)[:, 0]
    assert float(small[2]) == 2.0**-127
    assert bool(none.isnan().all())


def test_other_methods_are_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    text = (pair[0] / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace("mxfp4", "quark"))
    config = Config(model=ModelConfig(model=str(tmp_path), load_dummy=True))
    with pytest.raises(ModelError, match="quark"):
        load_model(resolve_source(config.model), config, torch.device("cpu"), torch.float32)
