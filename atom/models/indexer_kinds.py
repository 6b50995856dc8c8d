"""Which blocks of a sparse model have an indexer; transformers' `GlmMoeDsaConfig` has the rules."""

from __future__ import annotations

from atom.errors import ModelError
from atom.models.hf_config import HFConfig

KINDS = {"F": "full", "S": "shared"}


def indexer_kind(config: HFConfig, index: int) -> str:
    """Whether block `index` has an indexer ("full") or not ("shared"): the config lists it, or
    gives a pattern, or says that every `index_topk_freq`-th does, from some block on. A layer
    behind the last block has one."""
    count = config.positive_int("num_hidden_layers")
    kinds = config.get("indexer_types") or config.get("index_topk_pattern")
    if index >= count:
        return "full"
    if kinds is None:
        kind = _scheduled(config, index)
    elif not isinstance(kinds, (str, list)) or len(kinds) < count:
        raise ModelError(
            f"{config.where}: indexer_types must name the kind of each of {count} blocks, got "
            f"{kinds!r}"
        )
    else:
        kind = KINDS.get(str(kinds[index]), str(kinds[index]))
    if kind not in KINDS.values() or (index == 0 and kind == "shared"):
        raise ModelError(
            f"{config.where}: indexer type {kind!r} of block {index} is not supported; supported: "
            "full, and shared after a full one"
        )
    return kind


def _scheduled(config: HFConfig, index: int) -> str:
    values = [config.get("index_topk_freq", 1), config.get("index_skip_topk_offset", 2)]
    if not all(isinstance(value, int) for value in values):
        raise ModelError(
            f"{config.where}: index_topk_freq and index_skip_topk_offset must be counts, got "
            f"{values[0]!r} and {values[1]!r}"
        )
    every, offset = values
    return "shared" if max(index - offset + 1, 0) % max(every, 1) else "full"
