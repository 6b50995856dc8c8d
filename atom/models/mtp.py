"""The layer that predicts one token further: multi-token prediction (MTP).

DeepSeek-V3, arXiv 2412.19437, section 2.2. At slot i it takes the target's hidden state at position
i, after the final norm, and the embedding of token i + 1; the head gives logits of token i + 2 from
what it returns. Embedding and head are the target's; checkpoints that hold copies are not read
twice. Applied to its own output, the layer predicts the token after.

| style | names in checkpoints |
|---|---|
| nextn (DeepSeek, GLM) | `model.layers.L.`, L the number of blocks: `enorm`, `hnorm`, `eh_proj`, \
a whole block, `shared_head.norm` |
| qwen | `mtp.`: `pre_fc_norm_embedding`, `pre_fc_norm_hidden`, `fc`, `layers.0.`, `norm` |
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from atom.errors import ModelError
from atom.layers.build import BuildContext
from atom.layers.linear import ReplicatedLinear
from atom.layers.norm import RMSNorm

if TYPE_CHECKING:
    from collections.abc import Callable

    from atom.models.common import CausalLM, DecoderLayer
    from atom.models.hf_config import HFConfig

WeightMap = tuple[tuple[str, str], ...]

QWEN_PREFIX = "mtp."
QWEN_NAMES: WeightMap = (
    ("mtp.pre_fc_norm_embedding.", "mtp.enorm."),
    ("mtp.pre_fc_norm_hidden.", "mtp.hnorm."),
    ("mtp.fc.", "mtp.proj."),
    ("mtp.layers.0.", "mtp.layer."),
)
NEXTN_NAMES: WeightMap = (  # behind the layer's path
    ("enorm.", "mtp.enorm."),
    ("hnorm.", "mtp.hnorm."),
    ("eh_proj.", "mtp.proj."),
    ("shared_head.norm.", "mtp.norm."),
    ("", "mtp.layer."),
)


def nextn_weights(config: HFConfig) -> tuple[str, ...]:
    """For `CausalLM.mtp_weights`: every layer behind the last block."""
    first = config.positive_int("num_hidden_layers")
    count = int(config.get("num_nextn_predict_layers") or 0)
    return tuple(f"model.layers.{first + i}." for i in range(count))


def nextn_mtp(model: CausalLM, config: HFConfig, build: BuildContext) -> MTP:
    """For `CausalLM.make_mtp`: the first such layer. Later ones are left out, as are the copies of
    embedding and head."""
    if not (found := nextn_weights(config)):
        raise ModelError(
            f"{config.where}: num_nextn_predict_layers 0: no MTP layer, load the model without"
        )
    first, *later = found
    names = ((first + theirs, ours) for theirs, ours in NEXTN_NAMES)
    model.weight_map = (*model.weight_map, *names)
    model.mtp_prefixes = (f"{first}embed_tokens.", f"{first}shared_head.head.", *later)
    layer = model.make_layer(config, build, config.num_hidden_layers)
    return MTP(config, build, layer, model.model.embed_tokens, norm_offset=model.norm_offset)


def qwen_mtp(model: CausalLM, config: HFConfig, build: BuildContext, layer: DecoderLayer) -> MTP:
    """For `CausalLM.make_mtp`, of a block with full attention."""
    model.weight_map = (*model.weight_map, *QWEN_NAMES)
    return MTP(config, build, layer, model.model.embed_tokens, norm_offset=model.norm_offset)


class MTP(nn.Module):
    """(ids of the next tokens [T], positions [T], hidden [T, H]) -> hidden [T, H], normed.

    `layer` is a block of the family. Its caches are its own, under the step's block table: slot i
    is written where position i's keys are.
    """

    def __init__(
        self,
        config: HFConfig,
        build: BuildContext,
        layer: DecoderLayer,
        embed: Callable[[Tensor], Tensor],
        *,
        norm_offset: float = 0.0,
    ) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.rms_norm_eps
        self.enorm = RMSNorm(build, size, eps, norm_offset)
        self.hnorm = RMSNorm(build, size, eps, norm_offset)
        self.proj = ReplicatedLinear(build, 2 * size, size)
        self.layer = layer
        self.norm = RMSNorm(build, size, eps, norm_offset)
        self._embed = (embed,)  # in a tuple: a submodule of the target

    def forward(self, next_ids: Tensor, positions: Tensor, hidden: Tensor) -> Tensor:
        embedded = self.enorm(self._embed[0](next_ids))
        x = self.proj(torch.cat((embedded, self.hnorm(hidden)), dim=-1))
        x, residual = self.layer(positions, x, None)
        return self.norm.add(x, residual)[0]

    __call__ = forward
