"""DeepSeek V3.2 and GLM-5: DeepSeek V3 whose attention reads the keys that an indexer chooses.

Of GLM-5.2's blocks only some have an indexer; the others use the choice of the last one before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from atom.layers.build import BuildContext
from atom.layers.indexer import Choice
from atom.models.deepseek_v2 import DeepseekV3ForCausalLM
from atom.models.indexer_kinds import indexer_kind
from atom.models.latent_sparse import IndexedAttention

if TYPE_CHECKING:
    from atom.models.hf_config import HFConfig


class DeepseekV32ForCausalLM(DeepseekV3ForCausalLM):
    # How the indexer rotates unless the config says so: halves, or neighbouring pairs.
    index_interleaved: ClassVar[bool] = False
    _choice: Choice | None  # where blocks share one

    def attention(self, config: HFConfig, build: BuildContext, index: int) -> IndexedAttention:
        shared = [indexer_kind(config, i) == "shared" for i in range(config.num_hidden_layers)]
        if index == 0:
            self._choice = Choice() if any(shared) else None
        return IndexedAttention(
            config,
            build,
            interleaved=bool(config.get("indexer_rope_interleave", self.index_interleaved)),
            shared=index < len(shared) and shared[index],
            choice=self._choice,
        )


class GlmMoeDsaForCausalLM(DeepseekV32ForCausalLM):
    index_interleaved = True
