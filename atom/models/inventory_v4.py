"""Tensors and caches of DeepSeek V4, whose names are its own throughout."""

from __future__ import annotations

from collections.abc import Iterator

from atom.models.hf_config import HFConfig
from atom.models.inventory_types import (
    ALL,
    ATTENTION,
    EMBEDDING,
    EXPERTS,
    MLP,
    NORM,
    TOKEN,
    WINDOW,
    CacheNeed,
    Tensors,
)

_F32 = "float32"
_RATES = {"compressed_sparse_attention": 4, "heavily_compressed_attention": 128}


def tensors(config: HFConfig) -> Iterator[Tensors]:
    hidden = config.positive_int("hidden_size")
    vocab = (config.vocab_size, hidden)
    yield Tensors("embed.weight", vocab, ALL, EMBEDDING)
    for layer in range(config.positive_int("num_hidden_layers")):
        yield from _block(
            config, f"layers.{layer}.", ratio_of(config, layer), _is_hashed(config, layer)
        )
    yield Tensors("norm.weight", (hidden,), 1, NORM)
    yield from _collapse(config, "")
    yield Tensors("head.weight", vocab, ALL, EMBEDDING)


def ratio_of(config: HFConfig, layer: int) -> int:
    """Tokens per compressed entry of a layer; 0: it has a window only."""
    ratios = _ratios(config)
    return ratios[layer] if layer < len(ratios) else 0


def _ratios(config: HFConfig) -> list[int]:
    """In the published spelling, or in transformers'."""
    kinds = config.get("layer_types")
    if kinds is None:
        return [int(ratio) for ratio in config.compress_ratios]
    rates = _RATES | (config.get("compress_rates") or {})
    return [int(rates.get(kind, 0)) for kind in kinds]


def _is_hashed(config: HFConfig, layer: int) -> bool:
    """Whether the token's id chooses a layer's experts."""
    kinds = config.get("mlp_layer_types")
    if kinds is not None:
        return layer < len(kinds) and bool(kinds[layer] == "hash_moe")
    return layer < int(config.get("num_hash_layers", 3))


def mtp_tensors(config: HFConfig, count: int) -> Iterator[Tensors]:
    hidden = config.positive_int("hidden_size")
    for index in range(count):
        pre = f"mtp.{index}."
        yield from _block(config, pre, 0, False)
        for leaf in ("e_proj", "h_proj"):
            yield Tensors(f"{pre}{leaf}.weight", (hidden, hidden), 1, MLP, linear=True)
        for leaf in ("enorm", "hnorm", "norm"):
            yield Tensors(f"{pre}{leaf}.weight", (hidden,), 1, NORM)
        yield from _collapse(config, pre)


def _collapse(config: HFConfig, pre: str) -> Iterator[Tensors]:
    streams, hidden = config.positive_int("hc_mult"), config.positive_int("hidden_size")
    yield Tensors(f"{pre}hc_head_fn", (streams, streams * hidden), 1, MLP, dtype=_F32)
    yield Tensors(f"{pre}hc_head_base", (streams,), 1, MLP, dtype=_F32)
    yield Tensors(f"{pre}hc_head_scale", (1,), 1, MLP, dtype=_F32)


def _block(config: HFConfig, pre: str, ratio: int, hashed: bool) -> Iterator[Tensors]:
    hidden, streams = config.positive_int("hidden_size"), config.positive_int("hc_mult")
    yield Tensors(f"{pre}attn_norm.weight", (hidden,), 1, NORM)
    yield from _attention(config, f"{pre}attn.", ratio)
    yield Tensors(f"{pre}ffn_norm.weight", (hidden,), 1, NORM)
    yield from _experts(config, f"{pre}ffn.", hashed)
    mixes = 2 * streams + streams * streams
    for part in ("attn", "ffn"):
        yield Tensors(f"{pre}hc_{part}_fn", (mixes, streams * hidden), 1, MLP, dtype=_F32)
        yield Tensors(f"{pre}hc_{part}_base", (mixes,), 1, MLP, dtype=_F32)
        yield Tensors(f"{pre}hc_{part}_scale", (3,), 1, MLP, dtype=_F32)


def _linear(name: str, n: int, k: int, ways: int) -> Tensors:
    return Tensors(f"{name}.weight", (n, k), ways, ATTENTION, linear=True)


def _attention(config: HFConfig, pre: str, ratio: int) -> Iterator[Tensors]:
    hidden, heads = config.positive_int("hidden_size"), config.positive_int("num_attention_heads")
    dim, rank = config.head_dim, config.positive_int("q_lora_rank")
    groups, inner = config.positive_int("o_groups"), config.positive_int("o_lora_rank")
    yield _linear(f"{pre}wq_a", rank, hidden, 1)
    yield Tensors(f"{pre}q_norm.weight", (rank,), 1, NORM)
    yield _linear(f"{pre}wq_b", heads * dim, rank, heads)
    yield _linear(f"{pre}wkv", dim, hidden, 1)
    yield Tensors(f"{pre}kv_norm.weight", (dim,), 1, NORM)
    yield _linear(f"{pre}wo_a", groups * inner, heads * dim // groups, groups)
    yield _linear(f"{pre}wo_b", hidden, groups * inner, groups)
    yield Tensors(f"{pre}attn_sink", (heads,), heads, ATTENTION, dtype=_F32)
    if ratio:
        yield from _compressor(f"{pre}compressor.", hidden, dim, ratio)
    if ratio == 4:
        index, keys = config.positive_int("index_n_heads"), config.positive_int("index_head_dim")
        yield _linear(f"{pre}indexer.wq_b", index * keys, rank, 1)
        yield Tensors(f"{pre}indexer.weights_proj.weight", (index, hidden), 1, ATTENTION)
        yield from _compressor(f"{pre}indexer.compressor.", hidden, keys, ratio)


def _compressor(pre: str, hidden: int, dim: int, ratio: int) -> Iterator[Tensors]:
    width = compressed_width(dim, ratio)
    yield Tensors(f"{pre}ape", (ratio, width), 1, ATTENTION, dtype=_F32)
    yield Tensors(f"{pre}norm.weight", (dim,), 1, NORM)
    for leaf in ("wkv", "wgate"):
        yield Tensors(f"{pre}{leaf}.weight", (width, hidden), 1, ATTENTION)


def compressed_width(dim: int, ratio: int) -> int:
    """Channels of a token before compression: windows of ratio 4 overlap, so each token counts
    in two of them, with channels of its own."""
    return 2 * dim if ratio == 4 else dim


def _experts(config: HFConfig, pre: str, hashed: bool) -> Iterator[Tensors]:
    hidden, size = config.positive_int("hidden_size"), config.positive_int("moe_intermediate_size")
    count = config.positive_int("n_routed_experts")
    yield Tensors(f"{pre}gate.weight", (count, hidden), 1, MLP)
    if hashed:
        top_k = config.positive_int("num_experts_per_tok")
        yield Tensors(f"{pre}gate.tid2eid", (config.vocab_size, top_k), 1, MLP, dtype="int64")
    else:
        yield Tensors(f"{pre}gate.bias", (count,), 1, MLP, dtype=_F32)
    shared = size * int(config.get("n_shared_experts") or 0)
    parts = [("experts.{}.", size, EXPERTS, count), ("shared_experts.", shared, MLP, 1)]
    for part, width, group, number in parts:
        if width:
            for leaf in ("w1", "w3"):
                name = f"{pre}{part}{leaf}.weight"
                yield Tensors(name, (width, hidden), ALL, group, number, linear=True)
            name = f"{pre}{part}w2.weight"
            yield Tensors(name, (hidden, width), ALL, group, number, linear=True)


def caches(config: HFConfig, layer: int) -> list[CacheNeed]:
    dim, window = config.head_dim, config.positive_int("sliding_window")
    found = [CacheNeed("keys and values", WINDOW, dim, window=window)]
    ratio = ratio_of(config, layer)
    if not ratio:
        return found
    seen = 2 * ratio if ratio == 4 else ratio
    widths = [dim]
    found.append(CacheNeed(f"compressed {ratio}:1", TOKEN, dim, ratio=ratio))
    if ratio == 4:
        keys = config.positive_int("index_head_dim")
        widths.append(keys)
        found.append(CacheNeed(f"index keys {ratio}:1", TOKEN, keys, ratio=ratio))
    name = f"values and gates to be compressed {ratio}:1"
    before = sum(2 * compressed_width(width, ratio) for width in widths)
    found.append(CacheNeed(name, WINDOW, before, dtype="model", window=seen, kept=2 * seen))
    return found


def block_multiple(config: HFConfig) -> int:
    """A block holds whole compressed entries."""
    return max([1, *_ratios(config)])
