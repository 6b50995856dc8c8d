"""Values of a configuration that change what a model computes, and are not implemented.

Layers check what they read (rotary scaling, activations). Here is what a family would otherwise
pass over in silence, each refused in one line. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from atom.errors import ModelError
from atom.models.hf_config import HFConfig
from atom.models.inventory import num_experts

_FULL, _SLIDING, _LINEAR = "full_attention", "sliding_attention", "linear_attention"
# Beginning of an architecture's name -> kinds of attention that its layers may have. Families that
# are not here do not choose by `layer_types`, or check it themselves.
_KINDS = {
    "Glm4Moe": (_FULL,),
    "GptOss": (_FULL, _SLIDING),
    "Llama": (_FULL,),
    "MiniMax": (_FULL,),
    "Mistral": (_FULL, _SLIDING),
    "Mixtral": (_FULL, _SLIDING),
    "Qwen2": (_FULL, _SLIDING),
    "Qwen3ForCausalLM": (_FULL, _SLIDING),
    "Qwen3Moe": (_FULL, _SLIDING),
    "Qwen3Next": (_FULL, _LINEAR),
    "Qwen3_5": (_FULL, _LINEAR),
}
# Families whose routers take these, in the words of a config.
_SCORES = {
    "DeepseekV2": ("softmax",),
    "DeepseekV3": ("sigmoid",),
    "DeepseekV4": ("sqrtsoftplus",),
    "Glm": ("sigmoid",),
    "KimiK25": ("sigmoid",),
    "MiniMax": ("sigmoid",),
    "Mixtral": ("softmax",),
    "Qwen3": ("softmax",),
    "GptOss": ("softmax",),
}
_METHODS = {
    "DeepseekV2": ("greedy", "group_limited_greedy"),
    "DeepseekV3": ("noaux_tc",),
    "DeepseekV4": ("noaux_tc",),
    "Glm": ("noaux_tc",),
    "KimiK25": ("noaux_tc",),
}
_UNBIASED = ("DeepseekV4", "MiniMax", "Mixtral", "Mistral")
_GROUPED = ("DeepseekV2", "DeepseekV3", "Glm", "KimiK25")


def check_features(config: HFConfig) -> None:
    """Raise `ModelError` for the first value that this version does not implement."""
    _check_layers(config)
    if not num_experts(config):
        return
    _one_of(config, "scoring_func", _SCORES)
    _one_of(config, "topk_method", _METHODS)
    if config.get("moe_layer_freq", 1) != 1 and config.architecture.startswith("Glm4Moe"):
        _refuse(config, "moe_layer_freq", ["1"])
    _check_counts(config)


def _find(config: HFConfig, table: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The entry whose name is the longest beginning of the architecture's."""
    near = [name for name in table if config.architecture.startswith(name)]
    return table[max(near, key=len)] if near else ()


def _refuse(config: HFConfig, name: str, supported: Iterable[str]) -> None:
    raise ModelError(
        f"{config.where}: {name} {config.get(name)!r} is not supported for "
        f"{config.architecture}; supported: {', '.join(supported)}"
    )


def _one_of(config: HFConfig, name: str, table: Mapping[str, tuple[str, ...]]) -> None:
    supported = _find(config, table)
    if supported and config.get(name) is not None and config.get(name) not in supported:
        _refuse(config, name, supported)


def _check_layers(config: HFConfig) -> None:
    if config.get("attention_bias") and config.architecture.startswith(_UNBIASED):
        _refuse(config, "attention_bias", ["false"])
    kinds, supported = config.get("layer_types"), _find(config, _KINDS)
    if kinds is None or not supported:
        return
    count = config.positive_int("num_hidden_layers")
    if not isinstance(kinds, list) or len(kinds) < count:
        found = len(kinds) if isinstance(kinds, list) else repr(kinds)
        raise ModelError(
            f"{config.where}: layer_types names the kinds of {found} layers, and "
            f"num_hidden_layers is {count}"
        )
    unknown = sorted({str(kind) for kind in kinds[:count]} - set(supported))
    if unknown:
        raise ModelError(
            f"{config.where}: layer_types {', '.join(unknown)} is not supported for "
            f"{config.architecture}; supported: {', '.join(supported)}"
        )


def _check_counts(config: HFConfig) -> None:
    experts, top_k = num_experts(config), config.positive_int("num_experts_per_tok")
    if top_k > experts:
        raise ModelError(
            f"{config.where}: num_experts_per_tok {top_k} is more than there are experts: {experts}"
        )
    groups = config.get("n_group") or 1
    if groups == 1 or not config.architecture.startswith(_GROUPED):
        return
    if not isinstance(groups, int) or experts % groups:
        raise ModelError(f"{config.where}: n_group {groups!r} does not divide {experts} experts")
    chosen = config.positive_int("topk_group")
    if chosen > groups or top_k > chosen * (experts // groups):
        raise ModelError(
            f"{config.where}: topk_group {chosen} of n_group {groups} do not hold "
            f"num_experts_per_tok {top_k} of {experts} experts"
        )
