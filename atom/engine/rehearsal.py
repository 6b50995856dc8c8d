"""`atom serve --tiny`: a deployment's settings over a model that any machine can run.

Everything of the recipe that fits this machine is kept: scheduling, compilation, cache types. What
is changed carries "--tiny" as its source, and is said.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from atom.config import Resolved
from atom.config.resolve import Source
from atom.config.schema import Config
from atom.models.footprint import count_parameters
from atom.models.hf_config import HFConfig
from atom.models.inventory import block_multiple
from atom.models.published import find_config
from atom.models.sharing import possible_ranks
from atom.models.stored import stored_dtype, why_not_loaded
from atom.models.tiny import write_tiny

CONTEXT = 2048  # tokens of a rehearsed sequence, at most
SEQUENCES = 4  # of that length that the caches hold


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """`notes` say in lines what is not as the recipe has it."""

    resolved: Resolved
    notes: tuple[str, ...]


def rehearse(resolved: Resolved, folder: Path, num_gpus: int | None = None) -> Rehearsal:
    """Make the tiny model in `folder`. `num_gpus`: of this machine, counted if None."""
    config = resolved.config
    published, name = find_config(config.model)
    folder = folder / f"{name.rpartition('/')[2]}-tiny"
    small = write_tiny(published, folder, config.model.seed)
    gpus = num_gpus if num_gpus is not None else _count_gpus(config)
    changed = _changes(config, small, name, folder, gpus)
    groups: dict[str, object] = {
        section: dataclasses.replace(getattr(config, section), **values)
        for section, values in changed.items()
    }
    sources = dict(resolved.sources)
    for section, values in changed.items():
        for key, value in values.items():
            if value != getattr(getattr(config, section), key):
                sources[key] = Source("flag", "--tiny")
    made = dataclasses.replace(config, **groups)  # type: ignore[arg-type]
    return Rehearsal(Resolved(made, sources), tuple(_notes(config, made, published, small, name)))


def _count_gpus(config: Config) -> int:
    if config.engine.device == "cpu":
        return 0
    import torch

    return int(torch.cuda.device_count())


def _changes(
    config: Config, small: HFConfig, name: str, folder: Path, gpus: int
) -> dict[str, dict[str, object]]:
    """Section -> key -> value."""
    engine = config.engine
    limit = min(CONTEXT, small.positive_int("max_position_embeddings"))
    context = min(config.model.max_model_len or limit, limit)
    size = engine.kv_cache_block_size or max(16, block_multiple(small))
    wanted = min(config.parallel.tensor_parallel_size, max(1, gpus))
    ranks = max(size for size in possible_ranks(small) if size <= wanted)
    blocks = SEQUENCES * -(-context // size)
    return {
        "model": {
            "model": str(folder),
            "served_model_name": config.model.served_model_name or (name,),
            "tokenizer": None,
            "chat_template": None,
            "revision": None,
            "load_dummy": False,
            "max_model_len": context,
        },
        "engine": {
            "num_kvcache_blocks": blocks,
            "kv_cache_block_size": size,
            "kv_cache_memory_gb": None,
        },
        "parallel": {"tensor_parallel_size": ranks},
    }


def _notes(
    asked: Config, made: Config, published: HFConfig, small: HFConfig, name: str
) -> list[str]:
    layers = f"{small.num_hidden_layers} of {published.num_hidden_layers} layers"
    notes = [
        f"{small.architecture} in the shape of {name}: {layers}, "
        f"{count_parameters(small) / 1e6:.1f} M random parameters; its text is noise"
    ]
    before, ranks = asked.parallel.tensor_parallel_size, made.parallel.tensor_parallel_size
    if before != ranks:
        notes.append(f"tensor_parallel_size {before} -> {ranks}: what this machine has GPUs for")
    context = asked.model.max_model_len
    if context != made.model.max_model_len:
        notes.append(f"max_model_len {context or 'auto'} -> {made.model.max_model_len}")
    if reason := why_not_loaded(published):
        notes.append(f"weights in {stored_dtype(small)}: {reason.rpartition(':')[0]}")
    return notes
