"""How many threads the model gets on CPU: one per physical core that this process may use."""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path

import psutil

from atom.utils.machine import usable_cpus

_TOPOLOGY = Path("/sys/devices/system/cpu")


def physical_cores() -> int:
    """Distinct cores among the CPUs of this process's affinity, cut by its quota; at least 1.

    Two hyper-threads share a core's vector units: a second thread there only gets in the way.
    """
    try:
        cpus = os.sched_getaffinity(0)
    except AttributeError:  # not Linux
        return psutil.cpu_count(logical=False) or os.cpu_count() or 1
    cores = {_core_of(cpu) for cpu in cpus}
    return max(1, min(len(cores), math.floor(usable_cpus())))


def _core_of(cpu: int) -> tuple[str, str]:
    """(socket, core) of a logical CPU; a machine that does not say counts each as a core."""
    folder = _TOPOLOGY / f"cpu{cpu}" / "topology"
    try:
        package = (folder / "physical_package_id").read_text().strip()
        return package, (folder / "core_id").read_text().strip()
    except OSError:
        return "", str(cpu)


def model_threads(asked: int, num_ranks: int) -> int:
    """Threads of one rank: what was asked for, else its share of the physical cores."""
    return asked or max(1, physical_cores() // num_ranks)


def use(count: int) -> None:
    """Threads of torch and of the native kernels, process-wide."""
    import torch

    from atom.ops.cpu import native
    from atom.ops.cpu.build import CannotBuild

    torch.set_num_threads(count)
    with contextlib.suppress(CannotBuild):  # then there are none; the registry says why
        native.set_num_threads(count)
