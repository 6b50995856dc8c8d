"""Every tensor of a checkpoint and every cache of its model, from the configuration alone.

Names are the hub's, so that a plan can be checked against a file, and a file be made of a plan.
Imports no torch. Vision towers, which no model here reads, are left out.
"""

from __future__ import annotations

from collections.abc import Iterator

from atom.models import inventory_v4
from atom.models.hf_config import HFConfig
from atom.models.inventory_mixers import CacheNeed, is_linear, mixer_caches, mixer_tensors
from atom.models.inventory_types import ALL, COPY, EMBEDDING, EXPERTS, MLP, NORM, Tensors

__all__ = ["CacheNeed", "Tensors", "caches", "mtp_layers", "mtp_tensors", "tensors"]

# Of tensors that published checkpoints hold and no model here reads.
VISION = ("model.visual.", "vision_tower.", "mm_projector.")

_PREFIX = {"KimiK25": "language_model.model.", "Qwen3_5": "model.language_model."}


def _prefix(config: HFConfig) -> str:
    found = (way for name, way in _PREFIX.items() if config.architecture.startswith(name))
    return next(found, "model.")


def is_v4(config: HFConfig) -> bool:
    return config.architecture.startswith("DeepseekV4")


def tensors(config: HFConfig) -> Iterator[Tensors]:
    """Of the model itself, without multi-token prediction."""
    if is_v4(config):
        yield from inventory_v4.tensors(config)
        return
    hidden, pre = config.positive_int("hidden_size"), _prefix(config)
    vocab = (config.vocab_size, hidden)
    yield Tensors(f"{pre}embed_tokens.weight", vocab, ALL, EMBEDDING)
    for layer in range(config.positive_int("num_hidden_layers")):
        yield from _block(config, f"{pre}layers.{layer}.", layer)
    yield Tensors(f"{pre}norm.weight", (hidden,), 1, NORM)
    if not config.tie_word_embeddings:
        head = "language_model.lm_head" if pre.startswith("language_model") else "lm_head"
        yield Tensors(f"{head}.weight", vocab, ALL, EMBEDDING)


def _block(config: HFConfig, pre: str, layer: int, *, last: bool = False) -> Iterator[Tensors]:
    """A decoder layer; `last`: of multi-token prediction, with full attention and its experts
    stored one by one."""
    hidden = config.positive_int("hidden_size")
    yield Tensors(f"{pre}input_layernorm.weight", (hidden,), 1, NORM)
    yield from mixer_tensors(config, pre, -1 if last else layer)
    yield Tensors(f"{pre}post_attention_layernorm.weight", (hidden,), 1, NORM)
    if is_dense(config, layer):
        yield from _mlp(f"{pre}mlp.", hidden, config.positive_int("intermediate_size"), MLP)
        if config.get("mlp_bias"):
            yield from _mlp_biases(config, f"{pre}mlp.")
    elif config.architecture.startswith("GptOss"):
        yield from _gpt_oss_experts(config, f"{pre}mlp.")
    else:
        yield from _experts(config, pre, stacked=not last)


def _mlp(
    pre: str, hidden: int, size: int, group: str, count: int = 1, old: bool = False
) -> Iterator[Tensors]:
    """`old`: Mixtral's names."""
    gate, up, down = ("w1", "w3", "w2") if old else ("gate_proj", "up_proj", "down_proj")
    for leaf in (gate, up):
        yield Tensors(f"{pre}{leaf}.weight", (size, hidden), ALL, group, count, linear=True)
    yield Tensors(f"{pre}{down}.weight", (hidden, size), ALL, group, count, linear=True)


def _mlp_biases(config: HFConfig, pre: str) -> Iterator[Tensors]:
    size = config.positive_int("intermediate_size")
    for leaf in ("gate_proj", "up_proj"):
        yield Tensors(f"{pre}{leaf}.bias", (size,), ALL, MLP)
    yield Tensors(f"{pre}down_proj.bias", (config.positive_int("hidden_size"),), 1, MLP)


def num_experts(config: HFConfig) -> int:
    """Of a layer that has any; 0 for a dense model."""
    for name in ("n_routed_experts", "num_local_experts", "num_experts"):
        if config.get(name):
            return config.positive_int(name)
    return 0


def expert_size(config: HFConfig) -> int:
    own = config.get("moe_intermediate_size") is not None
    return config.positive_int("moe_intermediate_size" if own else "intermediate_size")


def is_dense(config: HFConfig, layer: int) -> bool:
    """Whether a layer's MLP has no experts."""
    if not num_experts(config):
        return True
    kinds = config.get("mlp_layer_types")
    if kinds and layer < len(kinds):
        return bool(kinds[layer] == "dense")
    if "first_k_dense_replace" in config:
        every = int(config.get("moe_layer_freq") or 1)
        return layer < int(config.first_k_dense_replace) or layer % every != 0
    step = config.get("decoder_sparse_step") or 1
    return layer in (config.get("mlp_only_layers") or ()) or (layer + 1) % step != 0


def _experts(config: HFConfig, pre: str, *, stacked: bool) -> Iterator[Tensors]:
    """Router, routed experts and those that every token takes."""
    hidden, size, count = (
        config.positive_int("hidden_size"),
        expert_size(config),
        num_experts(config),
    )
    old = config.architecture.startswith(("Mixtral", "MiniMax"))
    pre += "block_sparse_moe." if old else "mlp."
    yield Tensors(f"{pre}gate.weight", (count, hidden), 1, MLP)
    if name := _correction(config):
        yield Tensors(pre + name, (count,), 1, MLP, dtype="float32")
    if stacked and config.architecture.startswith("Qwen3_5Moe"):
        yield Tensors(f"{pre}experts.gate_up_proj", (count, 2 * size, hidden), ALL, EXPERTS)
        yield Tensors(f"{pre}experts.down_proj", (count, hidden, size), ALL, EXPERTS)
    else:
        yield from _mlp(pre + "experts.{}.", hidden, size, EXPERTS, count, old)
    if shared := config.get("shared_expert_intermediate_size"):  # Qwen's, with a gate
        yield from _mlp(f"{pre}shared_expert.", hidden, int(shared), MLP)
        yield Tensors(f"{pre}shared_expert_gate.weight", (1, hidden), 1, MLP)
    elif shared := config.get("n_shared_experts"):
        yield from _mlp(f"{pre}shared_experts.", hidden, int(shared) * size, MLP)


def _correction(config: HFConfig) -> str:
    """What the router's corrections are called; "" where there are none."""
    if config.architecture.startswith("MiniMax"):
        return "e_score_correction_bias" if config.get("use_routing_bias", True) else ""
    wanted = config.architecture.startswith("Glm4Moe") or config.get("topk_method") == "noaux_tc"
    return "gate.e_score_correction_bias" if wanted else ""


def _gpt_oss_experts(config: HFConfig, pre: str) -> Iterator[Tensors]:
    """[E, in, out], gate and up interleaved; MXFP4 checkpoints store the transpose in blocks."""
    hidden, size, count = (
        config.positive_int("hidden_size"),
        expert_size(config),
        num_experts(config),
    )
    yield Tensors(f"{pre}router.weight", (count, hidden), 1, MLP)
    yield Tensors(f"{pre}router.bias", (count,), 1, MLP)
    yield Tensors(f"{pre}experts.gate_up_proj", (count, hidden, 2 * size), ALL, EXPERTS)
    yield Tensors(f"{pre}experts.gate_up_proj_bias", (count, 2 * size), ALL, EXPERTS)
    yield Tensors(f"{pre}experts.down_proj", (count, size, hidden), ALL, EXPERTS)
    yield Tensors(f"{pre}experts.down_proj_bias", (count, hidden), 1, EXPERTS)


def mtp_layers(config: HFConfig) -> int:
    """Multi-token-prediction layers that the checkpoint of `config` holds."""
    if config.architecture.startswith(("Qwen3Next", "Qwen3_5")):  # Next's config does not say it
        return int(config.get("mtp_num_hidden_layers") or 1)
    if config.architecture.startswith(("Deepseek", "Glm")):
        return int(config.get("num_nextn_predict_layers") or 0)
    return 0  # MiniMax's config names modules, but their weights were never published


def mtp_tensors(config: HFConfig) -> Iterator[Tensors]:
    """Of all multi-token-prediction layers, copies of embedding and head included."""
    count = mtp_layers(config)
    if is_v4(config):
        yield from inventory_v4.mtp_tensors(config, count)
    elif config.architecture.startswith("Qwen") and count:
        yield from _qwen_mtp(config, count)
    else:
        for index in range(count):
            yield from _nextn(config, config.positive_int("num_hidden_layers") + index)


def _qwen_mtp(config: HFConfig, count: int) -> Iterator[Tensors]:
    hidden = config.positive_int("hidden_size")
    yield Tensors("mtp.fc.weight", (hidden, 2 * hidden), 1, MLP)
    for leaf in ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm"):
        yield Tensors(f"mtp.{leaf}.weight", (hidden,), 1, NORM)
    for index in range(count):
        yield from _block(
            config, f"mtp.layers.{index}.", config.positive_int("num_hidden_layers") - 1, last=True
        )


def _nextn(config: HFConfig, layer: int) -> Iterator[Tensors]:
    hidden, vocab = config.positive_int("hidden_size"), config.vocab_size
    pre = f"{_prefix(config)}layers.{layer}."
    for leaf in ("enorm", "hnorm", "shared_head.norm"):
        yield Tensors(f"{pre}{leaf}.weight", (hidden,), 1, NORM)
    yield Tensors(f"{pre}eh_proj.weight", (hidden, 2 * hidden), 1, MLP)
    yield from _block(config, pre, layer, last=True)
    yield Tensors(f"{pre}embed_tokens.weight", (vocab, hidden), ALL, COPY)
    yield Tensors(f"{pre}shared_head.head.weight", (vocab, hidden), ALL, COPY)


def caches(config: HFConfig) -> list[CacheNeed]:
    """What the model keeps between steps; equal layers are counted together."""
    if is_v4(config):
        each = [inventory_v4.caches(config, i) for i in range(config.num_hidden_layers)]
    else:
        layers = range(config.positive_int("num_hidden_layers"))
        each = [mixer_caches(config, layer) for layer in layers]
    found: dict[CacheNeed, int] = {}
    for needs in each:
        for need in needs:
            found[need] = found.get(need, 0) + 1
    return [need._replace(layers=count) for need, count in found.items()]


def has_state(config: HFConfig) -> bool:
    """Whether some layer keeps a recurrent state."""
    return any(is_linear(config, i) for i in range(config.positive_int("num_hidden_layers")))


def block_multiple(config: HFConfig) -> int:
    """Tokens of a KV block must be a multiple of this."""
    return inventory_v4.block_multiple(config) if is_v4(config) else 1
