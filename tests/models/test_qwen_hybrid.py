"""What is special to Qwen3-Next and Qwen3.5: their MTP layer, kinds of blocks, and bad configs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import PagedModel
from hub import hub_checkpoint, hub_reference
from test_families import assert_near, load
from torch import Tensor

from atom.errors import ModelError
from atom.layers.gated_attention import GatedAttention
from atom.layers.gated_delta_net import GatedDeltaNet

FAMILIES = ("qwen3_next", "qwen3_5", "qwen3_5_moe")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chunk", [1000, 13], ids=str)
def test_mtp_logits(family: str, chunk: int) -> None:
    """The layer's logits beside the target, whose step it shares, in one pass or several."""
    path = hub_checkpoint(family)
    found = hub_reference(path)
    ids = [*found["input_ids"].tolist(), *found["greedy_ids"].tolist()]
    model = PagedModel(load(path, mtp=True), 4)
    assert_near(mtp_logits(model, ids, chunk), found["mtp_logits"])


def mtp_logits(model: PagedModel, ids: list[int], chunk: int) -> Tensor:
    from atom.layers.context import ForwardContext, set_forward_context

    out = []
    for start in range(0, len(ids) - 1, chunk):
        end = min(start + chunk, len(ids) - 1)
        meta = model.metadata({"only": ids[start:end]}, 0)
        positions, following = torch.arange(start, end), torch.tensor(ids[start + 1 : end + 1])
        with torch.inference_mode(), set_forward_context(ForwardContext(meta)):
            hidden = model.model(torch.tensor(ids[start:end]), positions)
            hidden = model.model.mtp(following, positions, hidden)
            out.append(model.model.compute_logits(hidden))
        model.advance({"only": ids[start:end]})
    return torch.cat(out)


def test_mtp_tensors_are_left_out_unless_asked_for() -> None:
    with_mtp, without = (load(hub_checkpoint("qwen3_next"), mtp=mtp) for mtp in (True, False))
    assert len(with_mtp.cache_layers()) == len(without.cache_layers()) + 1
    assert with_mtp.weight_bytes > without.weight_bytes


@pytest.mark.parametrize(
    ("family", "linear"),
    [("qwen3_next", [True, True, True, False]), ("qwen3_5", [True, False, True, False])],
)
def test_which_blocks_are_linear(family: str, linear: list[bool]) -> None:
    layers = load(hub_checkpoint(family)).model.layers
    kinds = [type(getattr(layer, layer._attn_name)) for layer in layers]
    assert kinds == [GatedDeltaNet if is_linear else GatedAttention for is_linear in linear]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"linear_num_value_heads": 5}, "linear_num_value_heads 5 is not a multiple of .* 2"),
        ({"linear_key_head_dim": None}, "linear_key_head_dim must be a positive integer"),
    ],
    ids=["heads", "missing"],
)
def test_configs_that_cannot_be(overrides: dict[str, Any], message: str, tmp_path: Path) -> None:
    for file in hub_checkpoint("qwen3_next").iterdir():
        (tmp_path / file.name).symlink_to(file)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config | overrides))
    with pytest.raises(ModelError, match=message):
        load(tmp_path)


def test_zero_centred_norms_keep_their_precision() -> None:
    """1 + w in bfloat16 would lose what w has below 2^-8."""
    from atom.layers.build import BuildContext
    from atom.layers.norm import RMSNorm
    from atom.models.checkpoint import DummyTensor

    build = BuildContext(dtype=torch.bfloat16)
    tensor = DummyTensor("norm.weight", (64,), torch.bfloat16, build.device, 0)
    norm = RMSNorm(build, 64, 1e-6, offset=1.0)
    next(iter(norm.slots("norm"))).load(tensor)
    stored = tensor.read()
    assert isinstance(stored, Tensor)
    assert torch.equal(norm.weight, stored.float() + 1.0)
    x = torch.randn(3, 64, dtype=torch.bfloat16)
    assert norm(x).dtype == torch.bfloat16
