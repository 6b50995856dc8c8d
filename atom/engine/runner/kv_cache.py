"""What layers keep between steps: its type, its size, and the tensors that each layer gets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

from atom.config.schema import Config
from atom.engine.plan import StateCopy
from atom.engine.runner.cache_sizes import CacheBytes
from atom.layers.caches import FULL, STATE, WINDOW, CacheSpec
from atom.models.operations import operations
from atom.ops import registry

if TYPE_CHECKING:
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


class CacheLayer(Protocol):
    """`Attention` or a `Mixer`."""

    def cache_specs(self) -> tuple[CacheSpec, ...]: ...


class Counts(NamedTuple):
    """Rows of the caches of each kind."""

    full: int  # blocks
    window: int  # blocks
    state: int  # slots

    def of(self, kind: str) -> int:
        return {FULL: self.full, WINDOW: self.window, STATE: self.state}[kind]


class Caches(NamedTuple):
    """What was given to the layers. `states` are [layers, slots, *shape]: those of one shape and
    type lie together, so that copying a sequence's state takes few calls."""

    nbytes: int
    states: tuple[Tensor, ...]

    def copy_states(self, copies: Iterable[StateCopy]) -> None:
        """Enqueue them, one after the other."""
        for source, target in copies:
            for state in self.states:
                state[:, target].copy_(state[:, source])


def cache_bytes(layers: Sequence[CacheLayer]) -> CacheBytes:
    """What a block or slot takes over all layers."""
    sizes = {FULL: 0, WINDOW: 0, STATE: 0}
    window = 0
    for layer in layers:
        for spec in layer.cache_specs():
            sizes[spec.kind] += spec.row_bytes
            window = max(window, spec.window)
    return CacheBytes(sizes[FULL], sizes[WINDOW], sizes[STATE], window)


def bind(layers: Sequence[CacheLayer], counts: Counts, device: torch.device) -> Caches:
    """Give each layer its caches [blocks or slots, *shape].

    They are not filled: on CPU a page costs memory only once it is written.
    """
    total = 0
    states: dict[tuple[tuple[int, ...], torch.dtype], list[tuple[CacheLayer, str]]] = defaultdict(
        list
    )
    for layer in layers:
        for spec in layer.cache_specs():
            if spec.kind == STATE:
                states[spec.shape, spec.dtype].append((layer, spec.name))
                continue
            shape = (counts.of(spec.kind), *spec.shape)
            cache = torch.empty(shape, dtype=spec.dtype, device=device)
            setattr(layer, spec.name, cache)
            total += cache.nbytes
    pools = []
    for (shape, dtype), users in states.items():
        pool = torch.empty((len(users), counts.state, *shape), dtype=dtype, device=device)
        for (layer, name), state in zip(users, pool, strict=True):
            setattr(layer, name, state)
        pools.append(pool)
        total += pool.nbytes
    return Caches(total, tuple(pools))


def release(layers: Sequence[CacheLayer]) -> None:
    """Let the caches go, so that larger ones find room."""
    for layer in layers:
        for spec in layer.cache_specs():
            delattr(layer, spec.name)


def zero(layers: Sequence[CacheLayer]) -> None:
    """For steps that read what nobody has written."""
    for layer in layers:
        for spec in layer.cache_specs():
            getattr(layer, spec.name).view(torch.uint8).zero_()
