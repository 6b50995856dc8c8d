"""Collects what `atom doctor` shows: machine, devices, kernels, caches, a plan of the memory.

Answers are plain data; nothing is printed here. A part that cannot be had carries its reason
instead, because a doctor that fails on a sick machine is of no use.
"""

from __future__ import annotations

import dataclasses
import importlib
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from atom.config.environment import environment_problem
from atom.config.schema import Config, ModelConfig
from atom.engine.deployment import row_sizes
from atom.engine.runner.cache_sizes import plan_caches
from atom.engine.runner.memory import (
    GIB,
    RESERVE_BYTES,
    RESERVE_SHARE,
    available_memory,
    cpu_budget,
)
from atom.errors import AtomError, ConfigError, ModelError
from atom.models.embedded import EMBEDDED
from atom.models.features import check_features
from atom.models.footprint import (
    CacheUse,
    Footprint,
    activation_bytes,
    cache_uses,
    footprint,
    stored_format,
)
from atom.models.operations import operations
from atom.models.source import ModelSource, resolve_source
from atom.models.stored import DTYPE_BYTES, quantisation_of_weights, why_not_loaded
from atom.ops.registry import OpQuery, candidates
from atom.utils.cache import cache_dir
from atom.utils.machine import Machine, describe_machine


@dataclass(frozen=True, slots=True)
class Devices:
    """`chosen` is where the model would run; `gpus` are names with their memory in bytes."""

    chosen: str
    why: str
    gpus: tuple[tuple[str, int], ...]
    torch_threads: int
    compiler: str  # of the CPU kernels, or why there is none


@dataclass(frozen=True, slots=True)
class Kernel:
    """Who serves one operation. `declined` maps each backend asked before it to its reason."""

    op: str
    query: str
    backend: str | None
    declined: dict[str, str]


@dataclass(frozen=True, slots=True)
class Cache:
    name: str
    path: str
    files: int
    bytes: int


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes, except where the name says tokens. `kv_tokens` is what fits beside the weights."""

    model: str
    architecture: str
    parameters: int
    weights_bytes: int
    weights_from: str
    activations_bytes: int  # an estimate of the largest step's peak; on a GPU with the reserve
    dtype: str
    kv_cache_dtype: str
    kv_bytes_per_token: int
    caches: tuple[CacheUse, ...]
    kv_bytes: int
    kv_tokens: int
    max_model_len: int
    full_contexts: float  # sequences of max_model_len that fit at once
    problem: str | None  # why this cannot run here, in one line


@dataclass(frozen=True, slots=True)
class Diagnosis:
    machine: Machine
    devices: Devices
    environment_problem: str | None
    kernels: tuple[Kernel, ...]
    caches: tuple[Cache, ...]
    memory: MemoryPlan | None
    no_model: str | None  # why there are neither kernels nor a plan

    @property
    def healthy(self) -> bool:
        """Whether the model could run here as far as this can tell."""
        served = all(kernel.backend is not None for kernel in self.kernels)
        fits = self.memory is None or self.memory.problem is None
        # The embedded model is only not fetched yet; any other that is missing was named wrongly.
        found = self.no_model is None or self.no_model.startswith(EMBEDDED.name)
        return served and fits and found and self.environment_problem is None

    def as_json(self) -> Any:
        told = msgspec.to_builtins(self)
        if self.memory is not None:
            told["memory"]["caches"] = [use._asdict() for use in self.memory.caches]
        return told


def diagnose(config: Config, env: Mapping[str, str]) -> Diagnosis:
    """Everything about `config` on this machine. Downloads no weights."""
    devices = find_devices(config)
    source, no_model = _find_source(config.model)
    kernels: tuple[Kernel, ...] = ()
    memory = None
    if source is not None:
        from atom.engine.runner.settle import settle_block_size

        config = settle_block_size(config, devices.chosen)
        kernels = _kernels(source, config, devices.chosen)
        memory = _plan(source, config, devices)
    return Diagnosis(
        machine=describe_machine(),
        devices=devices,
        environment_problem=environment_problem(env),
        kernels=kernels,
        caches=tuple(_caches()),
        memory=memory,
        no_model=no_model,
    )


def find_devices(config: Config) -> Devices:
    import torch

    gpus = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            gpus.append((str(properties.name), int(properties.total_memory)))
    asked = config.engine.device
    chosen = asked if asked != "auto" else "cuda" if gpus else "cpu"
    if asked != "auto":
        why = f"device = {asked}"
    elif gpus:
        why = "torch sees a GPU"
    else:
        built = torch.version.cuda or torch.version.hip
        why = "torch sees no GPU" if built else "torch is built for CPU only"
    return Devices(chosen, why, tuple(gpus), torch.get_num_threads(), _compiler())


def _compiler() -> str:
    build = importlib.import_module("atom.ops.cpu.build")
    try:
        path = build.compiler()
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30)
    except (AtomError, OSError, subprocess.SubprocessError) as error:
        return f"none: {error}".splitlines()[0]
    lines = done.stdout.splitlines()
    return f"{path} ({lines[0]})" if lines else path


def _find_source(model: ModelConfig) -> tuple[ModelSource | None, str | None]:
    """The model's files as far as they are cheap: never weights, never the embedded model."""
    if model.model is None and not (cache_dir("models") / EMBEDDED.file_name).exists():
        return None, f"{EMBEDDED.name} has not been fetched yet; atom serve or atom run will"
    if (model.model or "").endswith(".gguf") and not Path(model.model or "").expanduser().exists():
        return None, f"{model.model} is not on this machine, and only its file says what it holds"
    try:
        return resolve_source(dataclasses.replace(model, load_dummy=True)), None
    except AtomError as error:
        return None, str(error)


def _dtypes(source: ModelSource, config: Config, device: str) -> tuple[str, str]:
    """Names of the activations' and the KV cache's dtype, by the runner's own rules."""
    import torch

    from atom.engine.runner.kv_cache import settled_kv_dtype
    from atom.models.loader import KV_DTYPES, resolve_dtype

    dtype = resolve_dtype(config, source, torch.device(device))
    kv_dtype = KV_DTYPES[settled_kv_dtype(config, source.config, device, dtype)]
    return str(dtype).removeprefix("torch."), str(kv_dtype).removeprefix("torch.")


def _plan(source: ModelSource, config: Config, devices: Devices) -> MemoryPlan:
    from atom.engine.runner.settle import resolve_max_model_len

    dtype, kv_dtype = _dtypes(source, config, devices.chosen)
    keeps = _keeps_stored(config, source, devices.chosen)
    ranks = config.parallel.tensor_parallel_size
    needs = footprint(
        source,
        dtype,
        kv_dtype,
        keep_stored=keeps,
        packed=_keeps_packed(source, config, devices.chosen),
        ranks=ranks,
    )
    context = resolve_max_model_len(config, source)
    block_size = config.engine.block_size
    uses = cache_uses(source.config, kv_dtype, dtype, ranks=ranks)
    sizes = row_sizes(uses, block_size)
    tokens, held, activations, problem = 0, 0, 0, None
    try:
        activations = _activations(config, source, devices, dtype)
        budget, where = _budget(config, devices, needs, activations)
        plan = plan_caches(config, sizes, max_model_len=context, budget=budget, source=where)
        tokens = plan.layout.num_blocks * block_size
        held = sizes.total(plan.layout, config.scheduler.max_num_seqs)
    except ConfigError as error:
        problem = str(error)
    problem = _cannot_be_loaded(source) or problem
    return MemoryPlan(
        model=source.name,
        architecture=source.config.architecture,
        parameters=needs.parameters,
        weights_bytes=needs.weight_bytes,
        weights_from=needs.weights_from,
        activations_bytes=activations,
        dtype=dtype,
        kv_cache_dtype=kv_dtype,
        kv_bytes_per_token=needs.kv_bytes_per_token,
        caches=tuple(uses),
        kv_bytes=held,
        kv_tokens=tokens,
        max_model_len=context,
        full_contexts=round(tokens / context, 2),
        problem=problem,
    )


def _cannot_be_loaded(source: ModelSource) -> str:
    """What the loader will refuse of the configuration; "" if nothing."""
    if source.format != "gguf" and (reason := why_not_loaded(source.config)):
        return reason
    try:
        check_features(source.config)
    except ModelError as error:
        return str(error)
    return ""


def _activations(config: Config, source: ModelSource, devices: Devices, dtype: str) -> int:
    """The largest step, estimated; 0 on CPU, where a share of what is free is set aside for it."""
    if devices.chosen == "cpu":
        return 0
    scheduler = config.scheduler
    tokens = scheduler.max_num_batched_tokens
    samples = min(scheduler.max_num_seqs, tokens)
    peak = activation_bytes(source.config, tokens, samples, DTYPE_BYTES[dtype])
    return peak + RESERVE_BYTES + int(RESERVE_SHARE * peak)


def _budget(
    config: Config, devices: Devices, needs: Footprint, activations: int
) -> tuple[int, str]:
    """(bytes left for the KV cache beside weights and activations, where the figure comes from).

    Graphs and the runtime's own memory are not known before a run, so a GPU's figure is an upper
    bound.
    """
    if devices.chosen == "cpu":
        available = available_memory() // config.parallel.tensor_parallel_size
        free = available - needs.weight_bytes
        if free <= 0:
            raise ConfigError(_too_big(needs, available, "free memory"))
        return cpu_budget(config, free)
    if not devices.gpus:
        raise ConfigError("device = cuda, but torch sees no GPU here")
    share = config.engine.gpu_memory_utilization
    usable = int(devices.gpus[0][1] * share)
    if usable <= needs.weight_bytes:
        raise ConfigError(_too_big(needs, usable, f"{share:g} of the GPU's memory"))
    return usable - needs.weight_bytes - activations, f"gpu_memory_utilization = {share:g}"


def _too_big(needs: Footprint, available: int, what: str) -> str:
    return (
        f"the weights take {needs.weight_bytes / GIB:.1f} GiB, more than the "
        f"{available / GIB:.1f} GiB of {what}: choose a smaller or quantised model"
    )


def _kernels(source: ModelSource, config: Config, device: str) -> tuple[Kernel, ...]:
    return tuple(_ask(query) for query in _queries(source, config, device))


def _queries(source: ModelSource, config: Config, device: str) -> list[OpQuery]:
    dtype, kv_dtype = _dtypes(source, config, device)
    stored = stored_format(source)
    weights = stored if _keeps_stored(config, source, device) else dtype
    block_size = config.engine.block_size
    return operations(source.config, device, dtype, kv_dtype, weights, block_size)


def _keeps_stored(config: Config, source: ModelSource, device: str) -> bool:
    """Whether weights stay in the form they are stored in (as the loader decides)."""
    if source.format == "gguf":  # packed blocks are read by the CPU's kernels alone
        return config.model.dtype != "float32" and device == "cpu"
    return config.model.dtype == "auto" and device == "cpu"


def _keeps_packed(source: ModelSource, config: Config, device: str) -> bool:
    """Whether a kernel here multiplies from the quantised experts, which are dequantised else."""
    if quantisation_of_weights(source.config) != "mxfp4":
        return True
    asked = [
        query
        for query in _queries(source, config, device)
        if query.op == "fused_experts" and query.weight_format == "mxfp4"
    ]
    return all(_ask(query).backend not in (None, "reference") for query in asked)


def _ask(query: OpQuery) -> Kernel:
    if query.op == "fused_experts":  # a backend may keep them in a form of its own
        for backend, reason in candidates(dataclasses.replace(query, op="pack_experts")):
            if reason is None:
                return Kernel(query.op, str(query), backend, {})
    declined: dict[str, str] = {}
    for backend, reason in candidates(query):
        if reason is None:
            return Kernel(query.op, str(query), backend, declined)
        declined[backend] = reason
    return Kernel(query.op, str(query), None, declined)


def _caches() -> list[Cache]:
    found = []
    for name in ("models", "kernels", "compiled"):
        path = cache_dir(name)
        files = [p for p in path.rglob("*") if p.is_file() and not p.name.endswith("lock")]
        size = sum(p.stat().st_size for p in files)
        found.append(Cache(name, str(path), len(files), size))
    return found
