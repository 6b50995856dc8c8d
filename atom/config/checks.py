"""Rules between settings, and the few values that follow from others."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from atom.config.schema import Config
from atom.errors import ConfigError

Where = Callable[[str], str]


def cross_check(config: Config, where: Where) -> Config:
    """The tree with derived values filled in; raises `ConfigError` naming the setting."""
    _check_cache(config, where)
    _check_eager(config, where)
    _check_names(config, where)
    return _clip_capture_sizes(config, where)


def _check_cache(config: Config, where: Where) -> None:
    size = config.engine.kv_cache_block_size
    if size is not None and size not in (1, 2, 4, 8) and size % 16:
        raise ConfigError(
            f"{where('kv_cache_block_size')} must be 1, 2, 4, 8 or a multiple of 16, got {size}"
        )
    if config.engine.num_kvcache_blocks == 0:
        raise ConfigError(
            f"{where('num_kvcache_blocks')} must be at least 1, or -1 to size it from memory, got 0"
        )
    if config.engine.num_kvcache_blocks > 0 and config.engine.kv_cache_memory_gb is not None:
        raise ConfigError(
            f"{where('kv_cache_memory_gb')} and num_kvcache_blocks both size the KV cache; give one"
        )


def _check_eager(config: Config, where: Where) -> None:
    if config.compile.enforce_eager and config.compile.cudagraph_mode not in (None, "none"):
        raise ConfigError(
            f"{where('cudagraph_mode')}: enforce_eager forbids cudagraph_mode "
            f"{config.compile.cudagraph_mode}; drop one of them"
        )


def _check_names(config: Config, where: Where) -> None:
    names = config.model.served_model_name
    if len(set(names)) != len(names):
        raise ConfigError(f"{where('served_model_name')} holds a name twice: {', '.join(names)}")


def _clip_capture_sizes(config: Config, where: Where) -> Config:
    """Sorted, without doubles, none above `max_num_seqs` (larger ones become that size)."""
    sizes = config.compile.cudagraph_capture_sizes
    if any(size < 1 for size in sizes):
        raise ConfigError(
            f"{where('cudagraph_capture_sizes')} must be at least 1, "
            f"got {','.join(map(str, sizes))}"
        )
    limit = config.scheduler.max_num_seqs
    clipped = tuple(sorted({min(size, limit) for size in sizes}))
    if clipped == sizes:
        return config
    compile_config = dataclasses.replace(config.compile, cudagraph_capture_sizes=clipped)
    return dataclasses.replace(config, compile=compile_config)
