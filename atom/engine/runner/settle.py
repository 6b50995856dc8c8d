"""Settings that depend on the device and the model: auto becomes a value, limits are checked."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from atom.config.schema import Config
from atom.errors import ConfigError, ModelError
from atom.ops import registry
from atom.parallel.state import ParallelState

if TYPE_CHECKING:
    from atom.models.source import ModelSource


def resolve_device(config: Config, rank: int = 0) -> torch.device:
    """`device`, with auto decided: a GPU if torch can use one. Rank r of a machine gets GPU r."""
    asked = config.engine.device
    if asked == "cpu" or (asked == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if count == 0:
        raise ConfigError("device = cuda, but torch sees no GPU: use device = cpu or auto")
    if rank >= count:
        raise ConfigError(
            f"tensor_parallel_size needs {rank + 1} GPUs, but torch sees {count}: use at most that"
        )
    return torch.device("cuda", rank)


def resolve_max_model_len(config: Config, source: ModelSource) -> int:
    """Positions that a sequence may have: what was asked for, at most the model's own limit."""
    limit = int(source.config.max_position_embeddings)
    asked = config.model.max_model_len
    if asked is not None and asked > limit:
        raise ModelError(
            f"max_model_len = {asked} exceeds the {limit} positions of {source.name}: "
            "choose at most that"
        )
    return limit if asked is None else asked


def settle_block_size(config: Config, device: str, multiple: int = 1) -> Config:
    """`kv_cache_block_size`, with auto decided; `multiple` is what the model needs it to be one of.

    Small blocks share more of a prefix: of a question of 30 tokens with four answers, all but a
    few. A GPU's kernels read 16 keys at once.
    """
    size = config.engine.kv_cache_block_size
    if size is None:
        size = 4 if device == "cpu" and config.engine.num_kvcache_blocks < 0 else 16
        size = -(-size // multiple) * multiple
    elif size % multiple:
        raise ConfigError(
            f"kv_cache_block_size must be a multiple of {multiple} for this model, got {size}: "
            "leave it out, or give such a one"
        )
    elif device != "cpu" and size in (2, 4, 8):
        raise ConfigError(f"kv_cache_block_size must be 1 or a multiple of 16 on a GPU, got {size}")
    engine = dataclasses.replace(config.engine, kv_cache_block_size=size)
    return dataclasses.replace(config, engine=engine)


def settle(config: Config, kv_cache_dtype: str, max_model_len: int) -> Config:
    """`config` with the values that were decided here."""
    return dataclasses.replace(
        config,
        engine=dataclasses.replace(config.engine, kv_cache_dtype=kv_cache_dtype),
        model=dataclasses.replace(config.model, max_model_len=max_model_len),
    )


def least_over_ranks(value: int, parallel: ParallelState, device: torch.device) -> int:
    """What every rank can agree on: the smallest of their values."""
    if parallel.tp_size == 1:
        return value
    agreed = torch.tensor([value], dtype=torch.int64, device=device)
    dist.all_reduce(agreed, dist.ReduceOp.MIN)
    return int(agreed.item())


def chosen_backends() -> dict[str, str]:
    """Operation -> backend; a linear's weight format is part of the operation's name."""
    answers: dict[str, set[str]] = {}
    for query, backend in registry.chosen().items():
        name = f"{query.op} {query.weight_format}".rstrip()
        answers.setdefault(name, set()).add(backend)
    return {name: ", ".join(sorted(backends)) for name, backends in sorted(answers.items())}
