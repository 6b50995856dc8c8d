"""The KV pool: its type, its size, and the tensors that each attention layer gets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from atom.config.schema import Config
from atom.models.footprint import operations
from atom.ops import registry

if TYPE_CHECKING:
    from atom.layers.attention import Attention
    from atom.models.hf_config import HFConfig

KV_NAMES = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
    torch.float8_e4m3fn: "fp8",
}


def settled_kv_dtype(config: Config, hf: HFConfig, device: str, dtype: torch.dtype) -> str:
    """`kv_cache_dtype`, with auto decided: half the bytes where the device's own kernel reads them.

    On CPU that is bfloat16 under float32 activations, unless float32 was asked for by name: then
    everything is float32. Elsewhere it is the activations' dtype.
    """
    asked = config.engine.kv_cache_dtype
    if asked != "auto":
        return asked
    if device != "cpu" or config.model.dtype != "auto":
        return KV_NAMES[dtype]
    name = str(dtype).removeprefix("torch.")
    size = config.engine.block_size
    for query in operations(hf, device, name, "bfloat16", "float32", size):
        if query.op in ("paged_attention", "reshape_and_cache"):
            backend, declined = registry.candidates(query)[0]
            if backend != "cpu" or declined is not None:
                return KV_NAMES[dtype]
    return "bf16"


def block_bytes(layers: Sequence[Attention], block_size: int) -> int:
    """Bytes of one block over all layers, keys and values."""
    return sum(
        2 * block_size * layer.num_kv_heads * layer.head_dim * layer.kv_dtype.itemsize
        for layer in layers
    )


def bind(
    layers: Sequence[Attention], num_blocks: int, block_size: int, device: torch.device
) -> int:
    """Give each layer its caches [num_blocks, block_size, Hk, D]; returns their bytes."""
    total = 0
    for layer in layers:
        shape = (num_blocks, block_size, layer.num_kv_heads, layer.head_dim)
        options: dict[str, Any] = {"dtype": layer.kv_dtype, "device": device}
        # Not filled: on CPU a page costs memory only once it is written.
        layer.k_cache, layer.v_cache = torch.empty(shape, **options), torch.empty(shape, **options)
        total += layer.k_cache.nbytes + layer.v_cache.nbytes
    return total
