"""Section [deployment] of a recipe: where it is meant to run. `atom recipe check` plans for it.

It describes hardware, so neither a variable nor a flag of the server sets it, and nothing that
runs obeys it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from atom.config.schema import setting

# GiB that the runtime reports for the card, less than the gigabytes of its name: H200 as seen here,
# the others as others report them. gpu_memory_gb says it better for a card at hand.
GPU_MEMORY: dict[str, float] = {
    "A100-80GB": 79.2,
    "B200": 178.4,
    "H100": 79.2,
    "H200": 139.8,
    "L40S": 44.4,
    "MI300X": 191.7,
    "MI325X": 255.7,
    "MI355X": 287.7,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentTarget:
    """The GPUs; as many as tensor_parallel_size says."""

    gpu: str | None = setting(None, f"Kind of GPU; known by their memory: {', '.join(GPU_MEMORY)}")
    gpu_memory_gb: float | None = setting(
        None, "Memory of one GPU, in GiB (default: what its kind has)", gt=0
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentConfig:
    """Where a recipe is meant to run: what `atom recipe check` plans for. Nothing else reads it."""

    target: DeploymentTarget = field(default_factory=DeploymentTarget)
