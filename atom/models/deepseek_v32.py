"""DeepSeek V3.2 and GLM-5: DeepSeek V3 whose attention reads the keys that an indexer chooses.

Of GLM-5.2's blocks only some have an indexer; the others use the choice of the last one before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from atom.errors import ModelError
from atom.layers.build import BuildContext
from atom.layers.indexer import IndexedAttention
from atom.models.deepseek_v2 import DeepseekV3ForCausalLM

if TYPE_CHECKING:
    from atom.models.hf_config import HFConfig

KINDS = {"F": "full", "S": "shared"}


def indexer_kind(config: HFConfig, index: int) -> str:
    """Whether block `index` has an indexer ("full") or not ("shared"): the config lists it, or
    gives a pattern, or says that every `index_topk_freq`-th does, from some block on. A layer
    behind the last block has one."""
    kinds = config.get("indexer_types") or config.get("index_topk_pattern")
    if index >= config.num_hidden_layers:
        return "full"
    if kinds is None:
        after = index - config.get("index_skip_topk_offset", 2) + 1
        return "shared" if max(after, 0) % max(config.get("index_topk_freq", 1), 1) else "full"
    if len(kinds) < config.num_hidden_layers:
        raise ModelError(
            f"{config.where}: {len(kinds)} indexer_types for {config.num_hidden_layers} blocks"
        )
    kind = KINDS.get(kinds[index], kinds[index])
    if kind not in KINDS.values() or (index == 0 and kind == "shared"):
        raise ModelError(
            f"{config.where}: indexer type {kind!r} of block {index} is not supported; supported: "
            "full, and shared after a full one"
        )
    return str(kind)


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
