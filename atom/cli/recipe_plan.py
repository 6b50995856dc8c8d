"""What `atom recipe check` says of a recipe's memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from atom.cli.common import gib

if TYPE_CHECKING:
    from pathlib import Path

    from atom.engine.deployment import DeploymentPlan, Target
    from atom.models.footprint import CacheUse
    from atom.models.hf_config import HFConfig


def config_of(path: Path) -> tuple[HFConfig, str]:
    """(configuration, name) of a recipe's model. Raises `AtomError`."""
    from atom.config import resolve
    from atom.models.published import find_config

    return find_config(resolve(path).model)


def plan_recipe(path: Path, hf: HFConfig, name: str, target: Target) -> DeploymentPlan:
    """The plan of a valid recipe. Raises `AtomError` for a model that cannot be."""
    from atom.config import resolve
    from atom.engine.deployment import plan_deployment
    from atom.models.registry import check_architecture

    check_architecture(hf.architecture)
    return plan_deployment(resolve(path), hf, name, target)


def recipe_target(path: Path) -> Target:
    from atom.config import resolve_tool

    resolved = resolve_tool("deployment", path)
    found = resolved.config.target
    return make_target(found.gpu, found.gpu_memory_gb, resolved.where("gpu"))


def make_target(gpu: str | None, gpu_memory_gb: float | None, where: str) -> Target:
    """`gpu` names a kind of GPU; its memory need be given only if it is not known."""
    from atom.config.deployment import GPU_MEMORY
    from atom.config.fields import nearest
    from atom.engine.deployment import Target
    from atom.errors import ConfigError

    size = gpu_memory_gb if gpu_memory_gb is not None else GPU_MEMORY.get(gpu or "")
    if gpu is not None and size is None:
        raise ConfigError(
            f"{where}: the memory of {gpu!r} is not known{nearest(gpu, GPU_MEMORY)}: give "
            f"gpu_memory_gb, too; known are {', '.join(GPU_MEMORY)}"
        )
    return Target(gpu or "", None if size is None else int(size * 2**30))


def verdict(plan: DeploymentPlan) -> str:
    """One line: the most important thing first."""
    if plan.problem:
        said = f"does not fit: {plan.problem}"
        return f"{said}; {plan.advice}" if plan.advice else said
    if plan.not_loaded:
        return f"fits, but cannot be loaded: {plan.not_loaded}"
    if plan.fits is None:
        return "no [deployment] says on which GPU: give --gpu or --gpu-memory-gb"
    return "fits"


def lines(plan: DeploymentPlan) -> Iterator[tuple[str, str]]:
    """(what, figures), for people."""
    yield "model", _model(plan)
    yield "weights", f"{_share(plan.weights_bytes, plan)} ({plan.stored_as})"
    for use in plan.caches:
        yield "cache", cache_words(use)
    if plan.gpu_bytes is not None and plan.usable_bytes is not None:
        left = plan.usable_bytes - plan.weights_bytes - plan.activations_bytes - plan.runtime_bytes
        name = f"{plan.gpu}, " if plan.gpu else ""
        yield (
            "gpu",
            f"{name}{gib(plan.usable_bytes)} of {gib(plan.gpu_bytes)}: weights "
            f"{gib(plan.weights_bytes)}, the largest step about {gib(plan.activations_bytes)}, "
            f"runtime and graphs about {gib(plan.runtime_bytes)}, caches {gib(max(0, left))}",
        )
    if plan.kv_tokens:
        yield (
            "room",
            f"{plan.kv_tokens:,} tokens in {gib(plan.caches_bytes)}: {plan.sequences:,.1f} "
            f"sequences of {plan.max_model_len:,}",
        )


def _model(plan: DeploymentPlan) -> str:
    active = plan.active_parameters
    said = f"{plan.model} ({plan.architecture}), {count_words(plan.parameters)} parameters"
    if active < 0.8 * plan.parameters:
        said += f", {count_words(active)} per token"
    if plan.mtp_parameters:
        said += (
            f"; {count_words(plan.mtp_parameters)} of multi-token prediction are left out (no "
            "speculative decoding in this version)"
        )
    return said


def count_words(parameters: int) -> str:
    return f"{parameters / 1e9:,.1f} B" if parameters >= 1e9 else f"{parameters / 1e6:,.1f} M"


def _share(size: int, plan: DeploymentPlan) -> str:
    return gib(size) if plan.gpus == 1 else f"{gib(size)} on each of {plan.gpus} GPUs"


def cache_words(use: CacheUse) -> str:
    small = use.bytes < 1 << 20
    size = f"{use.bytes / 1024:,.1f} KiB" if small else f"{use.bytes / 2**20:,.1f} MiB"
    layers = f"{use.layers} layers"
    if use.lives == "window":
        return f"{use.name}: {size} per token of the last {use.window} ({layers})"
    per = "token" if use.lives == "token" else "sequence"
    return f"{use.name}: {size} per {per} ({layers})"


def as_json(plan: DeploymentPlan) -> Any:
    import msgspec

    told = {"fits": plan.fits, "verdict": verdict(plan)}
    caches = [use._asdict() for use in plan.caches]
    return {**msgspec.to_builtins(plan), "caches": caches, **told}
