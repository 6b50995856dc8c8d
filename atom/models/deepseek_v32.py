"""DeepSeek V3.2 and GLM-5: DeepSeek V3 whose attention reads the keys that an indexer chooses.

Of GLM-5.2's blocks only some have an indexer; the others use the choice of the last one before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from atom.layers.build import BuildContext
from atom.layers.indexer import IndexedAttention
from atom.models.deepseek_v2 import DeepseekV3ForCausalLM
from atom.models.indexer_kinds import indexer_kind

if TYPE_CHECKING:
    from atom.models.hf_config import HFConfig


class DeepseekV32ForCausalLM(DeepseekV3ForCausalLM):
    # How the indexer rotates unless the config says so: halves, or neighbouring pairs.
    index_interleaved: ClassVar[bool] = False
    _last_full: tuple[IndexedAttention]  # in a tuple: a submodule of its block

    def attention(self, config: HFConfig, build: BuildContext, index: int) -> IndexedAttention:
        interleaved = bool(config.get("indexer_rope_interleave", self.index_interleaved))
        shared = indexer_kind(config, index) == "shared"
        source = self._last_full[0] if shared else None
        attn = IndexedAttention(config, build, interleaved=interleaved, source=source)
        if not shared:
            self._last_full = (attn,)
        return attn


class GlmMoeDsaForCausalLM(DeepseekV32ForCausalLM):
    index_interleaved = True
