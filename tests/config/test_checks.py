"""Rules between settings."""

from __future__ import annotations

import dataclasses

import pytest

from atom.config import Config, resolve
from atom.config.checks import cross_check
from atom.errors import ConfigError


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16, 32, 48, 1024])
def test_block_sizes_that_kernels_can_page(size: int) -> None:
    assert resolve(None, {}, {"kv_cache_block_size": size}).engine.kv_cache_block_size == size


@pytest.mark.parametrize("size", [3, 6, 15, 17, 24])
def test_block_sizes_that_they_cannot(size: int) -> None:
    with pytest.raises(ConfigError, match="multiple of 16"):
        resolve(None, {}, {"kv_cache_block_size": size})


@pytest.mark.parametrize(
    ("sizes", "clipped"),
    [((), ()), ((1, 2, 4), (1, 2, 4)), ((8, 1, 1000, 8), (1, 8)), ((512, 1024), (8,))],
)
def test_capture_sizes_are_clipped_never_a_crash(
    sizes: tuple[int, ...], clipped: tuple[int, ...]
) -> None:
    config = Config()
    config = dataclasses.replace(
        config,
        compile=dataclasses.replace(config.compile, cudagraph_capture_sizes=sizes),
        scheduler=dataclasses.replace(config.scheduler, max_num_seqs=8),
    )
    assert cross_check(config, str).compile.cudagraph_capture_sizes == clipped


def test_contradictions() -> None:
    with pytest.raises(ConfigError, match="enforce_eager forbids"):
        resolve(None, {}, {"enforce_eager": True, "cudagraph_mode": "full"})
    with pytest.raises(ConfigError, match="give one"):
        resolve(None, {}, {"num_kvcache_blocks": 8, "kv_cache_memory_gb": 1.0})
    with pytest.raises(ConfigError, match="num-kvcache-blocks must be at least 1"):
        resolve(None, {}, {"num_kvcache_blocks": 0})
    with pytest.raises(ConfigError, match="must be at least 1"):
        resolve(None, {}, {"cudagraph_capture_sizes": "0,1"})
