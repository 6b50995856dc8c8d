"""Whether a model can be shared out over so many ranks, from its configuration alone."""

from __future__ import annotations

from atom.models.hf_config import HFConfig
from atom.models.inventory import expert_size, is_dense, num_experts
from atom.models.inventory_mixers import is_latent


def sharing_problem(config: HFConfig, ranks: int) -> str:
    """What `ranks` does not divide, in the words of the layers; "" if all can be shared."""
    for what, size in _shared(config):
        if size % ranks:
            return (
                f"tensor_parallel_size {ranks} does not divide {what} = {size}: "
                "choose a size that does"
            )
    heads = config.num_key_value_heads
    one_for_all = is_latent(config) or heads == 1  # held by every rank
    if not one_for_all and heads % ranks and ranks % heads:
        return (
            f"tensor_parallel_size {ranks} neither divides nor is a multiple of "
            f"num_key_value_heads = {heads}: choose a size that is"
        )
    return ""


def _shared(config: HFConfig) -> list[tuple[str, int]]:
    found = [("num_attention_heads", config.positive_int("num_attention_heads"))]
    if num_experts(config) and not config.architecture.startswith("GptOss"):
        found.append(("the experts' intermediate size", expert_size(config)))
    layers = range(config.positive_int("num_hidden_layers"))
    if config.get("intermediate_size") and any(is_dense(config, i) for i in layers):
        found.append(("intermediate_size", config.positive_int("intermediate_size")))
    for name in ("linear_num_key_heads", "o_groups"):
        if name in config:
            found.append((name, config.positive_int(name)))
    return found


def possible_ranks(config: HFConfig, most: int = 64) -> list[int]:
    """Powers of two that a model can be shared out over."""
    sizes = (2**power for power in range(most.bit_length()))
    return [size for size in sizes if size <= most and not sharing_problem(config, size)]
