"""Plans a recipe for the GPUs that it names, from configurations alone: no weights, no GPU, no
network for models that are known here. Imports no torch.

The figures are the runner's own rules applied to what a configuration says; what only a run can
tell (the largest step's peak, the runtime's memory, graphs) is estimated, and said to be.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from atom.config.schema import Config
from atom.engine.runner.cache_sizes import CacheBytes, CachePlan, plan_caches
from atom.engine.runner.memory import GIB, RESERVE_BYTES, RESERVE_SHARE
from atom.errors import ConfigError, ModelError
from atom.models.features import check_features
from atom.models.footprint import (
    CacheUse,
    activation_bytes,
    active_parameters,
    bytes_of_rows,
    cache_uses,
    count_parameters,
    weight_bytes,
)
from atom.models.hf_config import HFConfig
from atom.models.inventory import block_multiple
from atom.models.inventory_types import SEQUENCE, TOKEN, WINDOW
from atom.models.sharing import possible_ranks, sharing_problem
from atom.models.stored import DTYPE_BYTES, scheme_of, stored_dtype, why_not_loaded

# Beside weights, caches and the largest step: 1.5 GiB of the runtime and 0.4 of graphs on an H200
# (docs/guides/memory.md).
RUNTIME_BYTES = 2 * GIB

KV_NAMES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "fp8": "float8_e4m3fn"}


@dataclass(frozen=True, slots=True)
class Target:
    """The GPUs of a deployment; `memory_bytes` of each is None where the recipe does not say."""

    name: str
    memory_bytes: int | None


@dataclass(frozen=True, slots=True)
class DeploymentPlan:
    """Bytes of one GPU. `problem` is why it does not fit, `advice` what would; both may be ""."""

    model: str
    architecture: str
    parameters: int
    active_parameters: int
    mtp_parameters: int  # not held: speculative decoding is not in this version
    stored_as: str
    not_loaded: str  # why this version cannot read the checkpoint; "" if it can
    gpus: int
    gpu: str
    gpu_bytes: int | None
    usable_bytes: int | None  # gpu_memory_utilization of it
    weights_bytes: int
    activations_bytes: int  # an estimate of the largest step, with the reserve
    runtime_bytes: int  # an estimate
    dtype: str
    kv_cache_dtype: str
    block_size: int
    max_model_len: int
    caches: tuple[CacheUse, ...]
    caches_bytes: int
    kv_tokens: int
    sequences: float  # of max_model_len that fit at once
    problem: str
    advice: str

    @property
    def fits(self) -> bool | None:
        """None where the recipe names no GPU."""
        if self.problem:
            return False
        return True if self.gpu_bytes is not None else None


def plan_deployment(config: Config, hf: HFConfig, name: str, target: Target) -> DeploymentPlan:
    """What `config` takes on each GPU of `target`; `name` is the model's."""
    plan = _plan(_settled(config, hf), hf, name, target)
    if not plan.problem:
        return plan
    found = next(_ways_out(_settled(config, hf), hf, name, target), "")
    return dataclasses.replace(plan, advice=found)


def _settled(config: Config, hf: HFConfig) -> Config:
    """With the values that a GPU's runner would choose."""
    engine, model = config.engine, config.model
    size, multiple = engine.kv_cache_block_size or 16, block_multiple(hf)
    if size % multiple and engine.kv_cache_block_size is None:
        size = multiple
    kv_dtype = "bf16" if engine.kv_cache_dtype == "auto" else engine.kv_cache_dtype
    limit = hf.positive_int("max_position_embeddings")
    return dataclasses.replace(
        config,
        engine=dataclasses.replace(engine, kv_cache_block_size=size, kv_cache_dtype=kv_dtype),
        model=dataclasses.replace(model, max_model_len=model.max_model_len or limit),
    )


def _dtype(config: Config, hf: HFConfig) -> str:
    asked = config.model.dtype
    stored = stored_dtype(hf)
    return asked if asked != "auto" else "bfloat16" if stored == "float32" else stored


def _plan(config: Config, hf: HFConfig, name: str, target: Target) -> DeploymentPlan:
    dtype, kv_dtype = _dtype(config, hf), KV_NAMES[config.engine.kv_cache_dtype]
    ranks, context = config.parallel.tensor_parallel_size, config.model.max_model_len or 0
    uses = cache_uses(hf, kv_dtype, dtype, ranks=ranks)
    weights = weight_bytes(hf, dtype, ranks=ranks)
    peak = _activations(config, hf, dtype)
    usable = None
    if target.memory_bytes is not None:
        usable = int(target.memory_bytes * config.engine.gpu_memory_utilization)
    problem = _settings_problem(config, hf)
    sizes, made = row_sizes(uses, config.engine.block_size), None
    if usable is not None and not problem:
        made, problem = _caches(config, sizes, usable - weights - peak - RUNTIME_BYTES, target)
        if usable <= weights:
            each = f" on each of {ranks} GPUs" if ranks > 1 else ""
            problem = (
                f"the weights take {weights / GIB:.1f} GiB{each}, more than the "
                f"{usable / GIB:.1f} GiB that may be filled"
            )
    tokens = made.layout.num_blocks * made.layout.block_size if made else 0
    held = sizes.total(made.layout, config.scheduler.max_num_seqs) if made else 0
    scheme = scheme_of(hf)
    return DeploymentPlan(
        model=name,
        architecture=hf.architecture,
        parameters=count_parameters(hf),
        active_parameters=active_parameters(hf),
        mtp_parameters=count_parameters(hf, mtp=True),
        stored_as=scheme.words if scheme else stored_dtype(hf),
        not_loaded=why_not_loaded(hf),
        gpus=ranks,
        gpu=target.name,
        gpu_bytes=target.memory_bytes,
        usable_bytes=usable,
        weights_bytes=weights,
        activations_bytes=peak,
        runtime_bytes=RUNTIME_BYTES,
        dtype=dtype,
        kv_cache_dtype=kv_dtype,
        block_size=config.engine.block_size,
        max_model_len=context,
        caches=tuple(uses),
        caches_bytes=held,
        kv_tokens=tokens,
        sequences=round(tokens / context, 2),
        problem=problem,
        advice="",
    )


def row_sizes(uses: list[CacheUse], block_size: int) -> CacheBytes:
    """Bytes of a block and of a slot over all layers of one rank."""
    rows = bytes_of_rows(uses, block_size)
    window = max(use.window for use in uses)
    return CacheBytes(rows[TOKEN], rows[WINDOW], rows[SEQUENCE], window)


def _activations(config: Config, hf: HFConfig, dtype: str) -> int:
    tokens = config.scheduler.max_num_batched_tokens
    samples = min(config.scheduler.max_num_seqs, tokens)
    peak = activation_bytes(hf, tokens, samples, DTYPE_BYTES[dtype])
    return peak + RESERVE_BYTES + int(RESERVE_SHARE * peak)


def _settings_problem(config: Config, hf: HFConfig) -> str:
    """What the model would refuse whatever the memory."""
    limit, asked = hf.positive_int("max_position_embeddings"), config.model.max_model_len or 0
    if asked > limit:
        return f"max_model_len = {asked} exceeds the {limit} positions of the model"
    size, multiple = config.engine.block_size, block_multiple(hf)
    if size % multiple:
        return (
            f"kv_cache_block_size = {size} is not a multiple of {multiple}, which this model needs"
        )
    try:
        check_features(hf)
    except ModelError as error:
        return str(error)
    return sharing_problem(hf, config.parallel.tensor_parallel_size)


def _caches(
    config: Config, sizes: CacheBytes, budget: int, target: Target
) -> tuple[CachePlan | None, str]:
    """(the caches, why they are too small)."""
    context = config.model.max_model_len or 0
    try:
        made = plan_caches(
            config, sizes, max_model_len=context, budget=budget, source=target.name or "the GPU"
        )
    except ConfigError as error:
        return None, str(error)
    tokens = made.layout.num_blocks * made.layout.block_size
    if tokens < context:
        return made, (
            f"{budget / GIB:.1f} GiB are left for caches, which hold {tokens:,} tokens: fewer than "
            f"one sequence of max_model_len = {context:,}"
        )
    return made, ""


def _ways_out(config: Config, hf: HFConfig, name: str, target: Target) -> Iterator[str]:
    """Single changes after which it fits, the least harmful first."""
    for words, changed in _changes(config, hf):
        plan = _plan(changed, hf, name, target)
        if not plan.problem:
            yield f"{words} ({plan.sequences:,.1f} sequences of {plan.max_model_len:,} fit then)"


def _changes(config: Config, hf: HFConfig) -> Iterator[tuple[str, Config]]:
    size, limit = config.engine.block_size, hf.positive_int("max_position_embeddings")
    context, now = config.model.max_model_len or 0, config.parallel.tensor_parallel_size
    if context > limit:
        model = dataclasses.replace(config.model, max_model_len=limit)
        yield f"max_model_len = {limit}", dataclasses.replace(config, model=model)
    if size % block_multiple(hf):
        engine = dataclasses.replace(config.engine, kv_cache_block_size=block_multiple(hf))
        words = f"kv_cache_block_size = {block_multiple(hf)}"
        yield words, dataclasses.replace(config, engine=engine)
    while context > 4096:
        context //= 2
        model = dataclasses.replace(config.model, max_model_len=context)
        yield f"max_model_len = {context}", dataclasses.replace(config, model=model)
    rows = config.scheduler.max_num_seqs
    while rows > 16:
        rows //= 2
        scheduler = dataclasses.replace(config.scheduler, max_num_seqs=rows)
        yield f"max_num_seqs = {rows}", dataclasses.replace(config, scheduler=scheduler)
    if config.engine.kv_cache_dtype != "fp8":
        engine = dataclasses.replace(config.engine, kv_cache_dtype="fp8")
        yield "kv_cache_dtype = fp8", dataclasses.replace(config, engine=engine)
    sizes = possible_ranks(hf)
    for ranks in [r for r in sizes if r > now] + [r for r in reversed(sizes) if r < now]:
        parallel = dataclasses.replace(config.parallel, tensor_parallel_size=ranks)
        yield f"tensor_parallel_size = {ranks}", dataclasses.replace(config, parallel=parallel)
