"""The layers that predict one token further, against transformers' blocks composed by hand."""

from __future__ import annotations

import pytest
import torch
from harness import PagedModel
from hub import FAMILIES, hub_checkpoint, hub_reference
from test_families import SUPPORTED, assert_near, load

from atom.errors import ModelError
from atom.layers.build import BuildContext
from atom.layers.context import ForwardContext, set_forward_context
from atom.models.common import CausalLM
from atom.models.hf_config import HFConfig
from atom.models.registry import resolve


def has_layer(family: str) -> bool:
    """Qwen's and DeepSeek V4's, which takes streams, have tests of their own."""
    (architecture,) = FAMILIES[family]["config"]["architectures"]
    makes = resolve(architecture).make_mtp is not CausalLM.make_mtp
    return makes and FAMILIES[family]["mtp"] == "nextn"


WITH_MTP = [name for name in SUPPORTED if has_layer(name)]


def mtp_logits(paged: PagedModel, ids: list[int], chunks: list[int]) -> torch.Tensor:
    """As `PagedModel.logits`, of the layer behind the model: row i from slot i, all but the last
    token being known to have a next one."""
    model, out, at, sizes = paged.model, [], 0, list(chunks)
    while at < len(ids) - 1:
        size = sizes.pop(0) if len(sizes) > 1 else sizes[0]
        end = min(at + size, len(ids) - 1)
        meta = paged.metadata({"only": ids[at:end]}, 0)
        positions = torch.arange(at, end)
        with torch.inference_mode(), set_forward_context(ForwardContext(meta)):
            hidden = model(torch.tensor(ids[at:end]), positions)
            further = model.mtp(torch.tensor(ids[at + 1 : end + 1]), positions, hidden)
            out.append(model.compute_logits(further))
        paged.advance({"only": ids[at:end]})
        at = end
    return torch.cat(out)


@pytest.mark.parametrize("chunks", [[1000], [37, 1, 1, 36]], ids=str)
@pytest.mark.parametrize("family", WITH_MTP)
def test_mtp_logits(family: str, chunks: list[int]) -> None:
    path = hub_checkpoint(family)
    found = hub_reference(path)
    ids = [*found["input_ids"].tolist(), *found["greedy_ids"].tolist()]
    paged = PagedModel(load(path, 4, mtp=True), 4)
    assert_near(mtp_logits(paged, ids, chunks), found["mtp_logits"])
    if family == "deepseek_v3" and chunks == [1000]:  # the model before it is as without it
        assert_near(paged.logits(ids, chunks, key="again"), found["logits"])


def test_its_bytes_count() -> None:
    path = hub_checkpoint("deepseek_v3")
    with_layer, without = (load(path, mtp=mtp) for mtp in (True, False))
    assert with_layer.weight_bytes > without.weight_bytes
    assert len(with_layer.cache_layers()) == len(without.cache_layers()) + 1


@pytest.mark.parametrize("family", ["llama2", "kimi_k2"])
def test_models_without_one(family: str) -> None:
    """Llama has none at all, Kimi-K2 is of a family that has them."""
    config = HFConfig(FAMILIES[family]["config"])
    with pytest.raises(ModelError, match="no MTP layer"):
        resolve(config.architecture)(config, BuildContext(mtp=True))
