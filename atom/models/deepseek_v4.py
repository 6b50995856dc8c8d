"""DeepSeek V4: compressed attention between hyper-connected streams.

Blocks carry N residual streams, and hand a layer's output on to whoever mixes the streams next.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import Tensor, nn

from atom.errors import ModelError
from atom.layers.build import BuildContext
from atom.layers.embedding import ParallelLMHead, VocabParallelEmbedding
from atom.layers.linear import ReplicatedLinear
from atom.layers.norm import RMSNorm
from atom.layers.rows import SampledRows
from atom.layers.v4_attention import V4Attention
from atom.layers.v4_hyper import Streams
from atom.models.common import CausalLM, check_config
from atom.models.v4_config import V4Config
from atom.ops.contracts_v4 import Pending

if TYPE_CHECKING:
    from atom.models.hf_config import HFConfig


class Block(nn.Module):
    """Streams in and out; `ids` [T] choose experts in the first blocks."""

    def __init__(self, config: V4Config, build: BuildContext, index: int) -> None:
        super().__init__()
        self.hc_attn, self.attn_norm = config.hyper(build)
        self.attn = V4Attention(build, **config.attention(build, index))
        self.hc_ffn, self.ffn_norm = config.hyper(build)
        self.ffn = config.moe(build, index)
        self.rows: SampledRows | None = None

    def forward(self, positions: Tensor, ids: Tensor, streams: Streams) -> Streams:
        x, values, post, comb = self.hc_attn(streams)
        assert post is not None
        assert comb is not None
        out = self.attn(x, positions)
        if self.rows is not None:
            out, values = self.rows(out, values)
            post, comb = self.rows(post, comb)
            ids, _ = self.rows(ids, ids)
        x, values, post, comb = self.hc_ffn(Streams(values, Pending(out, post, comb)))
        assert post is not None
        assert comb is not None
        return Streams(values, Pending(self.ffn(x, ids), post, comb))

    __call__ = forward


class DeepseekV4ForCausalLM(CausalLM):
    """Modules are named as the checkpoint's tensors are."""

    weight_map: tuple[tuple[str, str], ...] = (
        (".w1.weight", ".gate_proj.weight"),
        (".w3.weight", ".up_proj.weight"),
        (".w2.weight", ".down_proj.weight"),
    )

    def __init__(self, config: HFConfig, build: BuildContext) -> None:
        nn.Module.__init__(self)
        check_config(config)
        v4 = V4Config(config)
        self.selects_rows = build.selects_rows
        self.mtp_prefixes = () if build.mtp else self.mtp_weights(config)
        self.num_streams = v4.num_streams
        size = (config.vocab_size, config.hidden_size)
        self.embed = VocabParallelEmbedding(build, *size)
        blocks = [Block(v4, build, i) for i in range(config.num_hidden_layers)]
        if build.selects_rows:
            blocks[-1].rows = SampledRows(build)
        self.layers = nn.ModuleList(blocks)
        self.hc_head, self.norm = v4.hyper(build, head=True)
        self.head = ParallelLMHead(build, *size)
        self.mtp = self.make_mtp(config, build) if build.mtp else None

    def forward(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        return self.collapse(self.streams(input_ids, positions))[0]

    __call__ = forward

    def streams(self, ids: Tensor, positions: Tensor) -> Streams:
        """What the last block gives, with its output still to be added."""
        streams = Streams(self.embed(ids).unsqueeze(1).repeat(1, self.num_streams, 1))
        for block in self.layers:
            streams = block(positions, ids, streams)
        return streams

    def collapse(self, streams: Streams) -> tuple[Tensor, Tensor]:
        """(hidden [T, H] for the head, all streams [T, N, H], which `mtp` takes)."""
        hidden, values, _, _ = self.hc_head(streams)
        return hidden, values

    def compute_logits(self, hidden: Tensor) -> Tensor:
        return self.head(hidden)

    @classmethod
    def mtp_weights(cls, config: HFConfig) -> tuple[str, ...]:
        return ("mtp.",)

    def make_mtp(self, config: HFConfig, build: BuildContext) -> nn.Module:
        if not config.get("num_nextn_predict_layers"):
            raise ModelError(
                f"{config.where}: num_nextn_predict_layers 0: no MTP layer, load the model without"
            )
        # Only the first of several is built; the others' tensors are left out.
        self.mtp_prefixes = tuple(
            f"mtp.{i}." for i in range(1, int(config.num_nextn_predict_layers))
        )
        self.weight_map = (*self.weight_map, ("mtp.0.", "mtp."))
        return V4MTP(V4Config(config), build, self.embed)

    @classmethod
    def block_multiple(cls, config: HFConfig) -> int:
        return math.lcm(*(ratio or 1 for ratio in V4Config(config).ratios))


class V4MTP(Block):
    """(ids of the next tokens [T], positions [T], the target's streams [T, N, H]) -> hidden
    [T, H], normed. A block with a window only, its experts chosen by score."""

    def __init__(self, config: V4Config, build: BuildContext, embed: nn.Module) -> None:
        super().__init__(config, build, config.hf.num_hidden_layers)
        size, eps = config.hf.hidden_size, config.hf.rms_norm_eps
        self.enorm, self.hnorm = RMSNorm(build, size, eps), RMSNorm(build, size, eps)
        self.e_proj = ReplicatedLinear(build, size, size)
        self.h_proj = ReplicatedLinear(build, size, size)
        self.hc_head, self.norm = config.hyper(build, head=True)
        self._embed = (embed,)  # in a tuple: a submodule of the target

    def forward(self, next_ids: Tensor, positions: Tensor, hidden: Tensor) -> Tensor:  # type: ignore[override]
        embedded = self.e_proj(self.enorm(self._embed[0](next_ids)))
        carried = self.h_proj(self.hnorm(hidden).flatten(0, 1)).view(hidden.shape)
        streams = Streams(embedded.unsqueeze(1) + carried)
        out: Tensor = self.hc_head(super().forward(positions, next_ids, streams))[0]
        return out

    __call__ = forward  # type: ignore[assignment]
